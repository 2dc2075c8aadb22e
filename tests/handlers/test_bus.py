"""The daemon's end of a real bus, cancelled at any moment: a stop is no fault of the bus, and no fault of ours."""

import gc
import logging
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio
import trio.lowlevel

from mountsafe import trios
from mountsafe.daemon.control import Control
from tests.hotplug.machine import wait_for

CONFIGURATION = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type> <listen>unix:path={path}</listen> <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/> <allow eavesdrop="true"/> <allow own="*"/>
  </policy>
</busconfig>
"""


def is_there(place: Path) -> bool:
    """Whether somebody listens: its file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(os.fspath(place)) == 0


@pytest.fixture
def bus(
    tmp_path: Path, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    place, configuration = tmp_path / "bus", tmp_path / "bus.conf"
    configuration.write_text(CONFIGURATION.format(path=place))
    daemon = subprocess.Popen([program("dbus-daemon"), f"--config-file={configuration}", "--nofork"])
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={place}")
    try:
        wait_for(lambda: is_there(place), "the bus")
        yield daemon
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


# jeepney leaves its socket to the garbage collector if it is cancelled while it connects.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("bus")
def test_a_stop_at_any_moment_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def stop_after(steps: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Control(Mock()).run)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    for steps in range(120):
        trios.run(stop_after, steps)
    gc.collect()  # now, not in the middle of another test
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_bus_that_goes_is_said_and_looked_for_again(
    bus: subprocess.Popen[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def outlive() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Control(Mock()).run)
            await said("on the system bus", 1)
            bus.terminate()
            await said("nobody can ask", 1)
            await trio.to_thread.run_sync(bus.wait)
            (tmp_path / "bus").unlink(missing_ok=True)
            again = await trio.to_thread.run_sync(subprocess.Popen, bus.args)
            await said("on the system bus", 2)
            nursery.cancel_scope.cancel()
        again.terminate()
        again.wait()

    async def said(words: str, times: int) -> None:
        with trio.fail_after(60):
            while caplog.text.count(words) < times:  # noqa: ASYNC110  # a log tells nobody
                await trio.sleep(0.05)

    trios.run(outlive)
