"""A supervisor that somebody else starts for us, as a service manager does: it hears us, and ends when told to."""

import os
import signal
import sys
from pathlib import Path

import pytest

from mountsafe.errors import UserError
from mountsafe.session.runtime import runtimes
from mountsafe.session.start import Starting
from mountsafe.system.units import Unit

# Stands in for `systemd-run --pipe` and for `systemctl stop`: the command is another one's child, and has our input.
RUN = """
import ctypes, os, sys, time
place, command = sys.argv[1], sys.argv[2:]
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: as a service manager, it sees off what it has started
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        with open(place, "w") as file:
            file.write(str(os.getpid()))
        os.execvp(command[0], command)
    os._exit(0)
os.wait()
while not (os.path.exists(place) and open(place).read()):
    time.sleep(0.01)
os.waitpid(int(open(place).read()), 0)
"""
STOP = """
import os, signal, sys
if os.path.exists(sys.argv[1]):
    try:
        os.kill(int(open(sys.argv[1]).read()), signal.SIGTERM)
    except ProcessLookupError:
        pass
"""


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    place = os.fspath(tmp_path / "pid")
    return Unit([sys.executable, "-c", RUN, place], [sys.executable, "-c", STOP, place])


@pytest.mark.usefixtures("looking")  # which has the appliance
def test_it_is_told_to_end_by_who_has_started_it(unit: Unit, tmp_path: Path) -> None:
    starting = Starting(unit=unit)
    place = tmp_path / "pid"
    while not (place.exists() and place.read_text()):
        assert starting.alive
    supervisor = int(place.read_text())
    assert supervisor != starting.pid
    starting.end()
    assert not starting.alive
    assert not Path(f"/proc/{supervisor}").exists()


def test_what_goes_wrong_is_heard(unit: Unit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOUNTSAFE_APPLIANCE", os.fspath(tmp_path / "none"))
    starting = Starting(unit=unit)
    with pytest.raises(UserError, match="appliance is missing"):
        starting.follow(print, print)
    assert not starting.alive
    starting.end()


def test_what_one_leaves_that_was_killed_is_cleaned_up() -> None:
    before = {runtime.path for runtime in runtimes()}
    starting = Starting()
    while not (made := {runtime.path for runtime in runtimes() if runtime.alive()} - before):
        assert starting.alive
    os.kill(starting.pid, signal.SIGKILL)
    starting.end()
    assert not [path for path in made if path.exists()]


def test_one_that_says_nothing_is_not_waited_for_for_ever() -> None:
    starting = Starting()
    os.kill(starting.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match="said nothing"):
        starting.follow(print, print, patience=0.1)
    assert not starting.alive
