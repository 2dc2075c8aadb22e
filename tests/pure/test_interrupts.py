"""Ctrl-C at each step of what a command does before, while and after it can undo it: nothing is left of it."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from mountsafe.cli import interrupts, main, opening
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.source import open_medium
from mountsafe.session import start
from mountsafe.session.order import MountOptions

# In the place of a supervisor: it ends when it has its order, or when nobody is there any more.
SUPERVISOR = "#!/bin/sh\nexec head -c 1 >/dev/null\n"
Interrupted = AbstractContextManager[Callable[[], bool]]
NOT_REACHED = 99  # a code of no command: the scene was over before that step
PACKAGE = Path(main.__file__).parent.parent
MOUNTING = ("cli/interrupts.py", "cli/opening.py", "session/places.py", "session/start.py", "session/targets.py")
COMMAND = ("cli/interrupts.py", "cli/main.py")


@pytest.fixture(autouse=True)
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test leaves of how this process takes Ctrl-C, pytest has its own afterwards."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def interrupted_at(step: int, modules: Collection[str]) -> Iterator[Callable[[], bool]]:
    """Send SIGINT at a step: a call or its return, of a function of the modules or from one. Tells whether it came.

    What the handler raises then comes from that very place, as when a signal had come there.
    """
    files = {os.fspath(PACKAGE / module) for module in modules}
    seen = 0

    def trace(frame: FrameType, event: str, what: object) -> None:
        nonlocal seen
        if frame.f_code.co_filename in files:
            seen += 1
            if seen == step:
                signal.raise_signal(signal.SIGINT)

    sys.setprofile(trace)
    try:
        yield lambda: seen >= step
    finally:
        sys.setprofile(None)


@dataclass(frozen=True)
class Played:
    """How a process ended that was interrupted at a step (its code, a signal's number below 0), and what it said."""

    step: int
    code: int
    said: str


def each_step(scene: Callable[[], object], modules: Collection[str]) -> Iterator[Played]:
    """Play a scene in a process of its own again and again, interrupted one step later each time."""
    for step in range(1, 100_000):
        read, write = os.pipe()
        if not (pid := os.fork()):
            _play(partial(interrupted_at, step, modules), scene, write)
        os.close(write)
        with open(read, encoding="utf-8") as words:
            said = words.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == NOT_REACHED:
            return
        yield Played(step, code, said)


def _play(interrupted: Callable[[], Interrupted], scene: Callable[[], object], output: int) -> NoReturn:
    for fd in (1, 2):
        os.dup2(output, fd)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    code, came = 0, bool
    try:
        with interrupted() as came:
            scene()
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:  # noqa: BLE001  # whoever forked is told
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code if came() else NOT_REACHED)


def test_before_a_mount_is_there_it_leaves_no_folder_and_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, stub, folder = tmp_path / "image", tmp_path / "supervisor", tmp_path / "folder"
    image.write_bytes(bytes(1 << 20))
    stub.write_text(SUPERVISOR)
    stub.chmod(0o755)
    folder.mkdir()
    monkeypatch.setattr(start, "PYTHON", str(stub))
    for needed in ("require_fuse", "prepare", "judge_of"):
        monkeypatch.setattr(f"mountsafe.cli.opening.{needed}", lambda *_: None)
    medium = open_medium(image)

    def scene() -> None:
        try:
            opening.begin(medium, folder / "m", MountOptions(), True)
        except UserError:  # the supervisor has ended
            sys.exit(ExitCode.FAILURE)
        except KeyboardInterrupt:
            sys.exit(ExitCode.INTERRUPTED)

    interrupted = 0
    for played in each_step(scene, MOUNTING):
        assert list(folder.iterdir()) == [], played
        assert played.code == ExitCode.INTERRUPTED, played
        interrupted += 1
    os.close(medium.fd)
    assert interrupted > 100


def test_a_second_one_is_not_held_back() -> None:
    with interrupts.Held():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interrupts.ignore()


def test_the_first_one_comes_at_the_end() -> None:
    held = interrupts.Held()
    with held:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            held.__exit__()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_done_is_not_undone_by_the_end_of_what_holds_it_back() -> None:
    with interrupts.Held() as held, held.lifted():
        interrupts.ignore()
    signal.raise_signal(signal.SIGINT)
    interrupts.hear_no_more()
    signal.raise_signal(signal.SIGINT)


def test_a_command_ends_by_it_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has not begun yet, or is over: as `__main__` starts it."""
    monkeypatch.setattr(sys, "argv", ["mountsafe", "unmount", "--json", "--all", "/nowhere"])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    codes = set()
    for played in each_step(main.run, COMMAND):
        assert "Traceback" not in played.said, played
        assert ("interrupted" in played.said) == (played.code == ExitCode.INTERRUPTED), played
        codes.add(played.code)
    assert codes == {-signal.SIGINT, ExitCode.INTERRUPTED}


LOST = """
import signal, time
from mountsafe.cli import interrupts

class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

interrupts.hear()
try:
    Dying()
    time.sleep(100)
except KeyboardInterrupt:
    print("heard")
"""


def test_one_that_comes_where_nothing_can_be_raised_is_heard_all_the_same(repository: Path) -> None:
    command = [sys.executable, "-c", LOST]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, timeout=50)
    assert (done.stdout, done.stderr) == ("heard\n", "")
