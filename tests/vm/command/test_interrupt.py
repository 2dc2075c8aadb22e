"""Ctrl-C at each stage of a mount: the process group gets SIGINT, and nothing is left."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe.errors import ExitCode
from tests.vm.command.stage import DEADLINE, Person, Started
from tests.vm.command.traces import PATIENCE, Traces

Image = Callable[[str], Path]


def interrupted(process: Started) -> str:
    """Send what a terminal sends at Ctrl-C; return what was said."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    return out + err


@pytest.mark.parametrize("doing", ["starting the virtual machine", "mounting"])
def test_while_mounting(person: Person, folder: Path, image: Image, doing: str) -> None:
    before = Traces.taken(person)
    with person.start("mount", image("ext4"), folder / "m") as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith(doing):
            assert line
        assert "Traceback" not in interrupted(process)
    assert process.returncode == ExitCode.INTERRUPTED
    before.assert_same(person)
    assert not (folder / "m").exists()


def test_at_any_moment(user: Person, image: Image) -> None:
    """From the interpreter's first steps until after the mount: it was interrupted, or it came too late."""
    for step in range(12):
        folder = user.folder()
        before = Traces.taken(user)
        with user.start("mount", image("romfs"), folder / "m") as process:
            time.sleep(step * step * 0.012)
            said = interrupted(process)
        if process.returncode == 0:
            user.run("unmount", folder / "m").ok()
        elif "Traceback" in said:  # Python's own, while it still imports: before our first line can run
            assert said.rstrip().endswith("KeyboardInterrupt"), said
            assert "mountsafe/cli" not in said, said  # __main__ silences Ctrl-C while that is imported
        else:
            assert process.returncode in (ExitCode.INTERRUPTED, -signal.SIGINT), said
        before.assert_same(user, PATIENCE)
        assert list(folder.iterdir()) == [], f"step {step}: {process.returncode}, {said}"
        folder.rmdir()


def test_inspect(person: Person, image: Image) -> None:
    before = Traces.taken(person)
    with person.start("inspect", image("ext4")) as process:
        assert process.stderr is not None
        process.stderr.readline()
        assert "Traceback" not in interrupted(process)
    assert process.returncode == ExitCode.INTERRUPTED
    before.assert_same(person)


def test_a_hangup_unmounts_the_foreground(user: Person, folder: Path, image: Image) -> None:
    """The terminal is closed: its group gets SIGHUP."""
    before = Traces.taken(user)
    with user.start("mount", image("romfs"), folder / "m", "--foreground") as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGHUP)
        process.communicate(timeout=DEADLINE)
    before.assert_same(user, PATIENCE)
    assert not (folder / "m").exists()
