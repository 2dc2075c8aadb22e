"""Each process of a mount, killed or stopped, at each stage of its life: it works again or is gone, and nothing stays.

Stopped is what a hang looks like from outside. A mount whose session process is stopped cannot answer its users; but it
can be unmounted, by force, and then they go on.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mountsafe.errors import ExitCode
from mountsafe.limits import LAUNCH_DEADLINE
from mountsafe.session.mounter import is_mounted
from tests.vm.command.stage import Person, Stage, Started
from tests.vm.command.test_faults import ASK, BOUND, content, expected, questions, wait_for
from tests.vm.command.traces import PATIENCE, Traces, descendants, state

Image = Callable[[str], Path]
PARTS = {
    "supervisor": b"mountsafe.session.supervisor",
    "session": b"mountsafe.session.server",
    "appliance": b"mountsafe.appliance.serve",
    "QEMU": b"\0-incoming\0",
}
SENTENCES = {  # that the user gets when one of them is lost while it mounts
    "supervisor": re.compile("mounting ended"),
    "session": re.compile("the session process ended before it served|not mounted within|no answer|unmounted"),
    "appliance": re.compile("the appliance process ended|did not (start|attach|stream) in|did not start"),
    "QEMU": re.compile("the virtual machine did not|the appliance process ended|no answer from the virtual machine"),
}
WRAPPERS = (b"bwrap", b"setsid", b"prlimit", b"setpriv")
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
ENOUGH = (ExitCode.OK, ExitCode.NOT_MOUNTED)
ON_TRYING = "no answer from the mount's supervisor"


@pytest.fixture(scope="module")
def impatient(stage: Stage) -> Path:
    """The command line with short deadlines."""
    changes = {
        "LAUNCH_DEADLINE = 90.0": "LAUNCH_DEADLINE = 7.0",
        "ATTACH_DEADLINE = 15.0": "ATTACH_DEADLINE = 3.0",
        "REQUEST_DEADLINE = 30.0": "REQUEST_DEADLINE = 3.0",
        "\nMOUNT_DEADLINE = 120.0": "\nMOUNT_DEADLINE = 3.0",
        "CALL_DEADLINE = 120.0": "CALL_DEADLINE = 15.0",
        "UNMOUNT_DEADLINE = 20.0": "UNMOUNT_DEADLINE = 3.0",
    }
    return stage.variant("short-deadlines", {"limits.py": changes})


def part(name: str, above: int) -> int | None:
    """The process of a mount that has this name, among the descendants of another; None if there is none."""
    for pid in descendants(above):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if PARTS[name] in words and not words.split(b"\0")[0].endswith(WRAPPERS):
                return pid
    return None


def strike(name: str, number: int, above: int) -> int:
    """Send a signal to a part as soon as it is there."""
    found: list[int] = []
    wait_for(lambda: found or found.extend(filter(None, [part(name, above)])) or found)
    os.kill(found[0], number)
    return found[0]


@contextmanager
def mounted(person: Person, source: Path, top: Path, program: Path) -> Iterator[int]:
    """Mount, and see afterwards that it can be unmounted and that nothing is left; the supervisor's process id."""
    before = Traces.taken(person)
    record = person.run("mount", source, top, "--json", program=[str(program)]).ok().json()
    yield record["supervisor"]
    end(person, top, program)
    before.assert_same(person, PATIENCE)
    assert not top.exists()


def end(person: Person, top: Path, program: Path) -> None:
    """Unmount; by force if that is what we are told to do."""
    done = person.run("unmount", top, program=[str(program)])
    if done.code not in ENOUGH:
        assert done.code == ExitCode.BUSY or ON_TRYING in done.err
        assert "--force" in done.err
        done = person.run("unmount", "--force", top, program=[str(program)])
    assert done.code in ENOUGH, done.err


# --- while it starts -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [KILL, STOP])
@pytest.mark.parametrize("name", PARTS)
def test_while_it_starts(user: Person, folder: Path, image: Image, impatient: Path, name: str, number: int) -> None:
    before = Traces.taken(user)
    top = folder / "m"
    with user.start("mount", image("ext4"), top, program=[str(impatient)]) as process:
        victim = strike(name, number, process.pid)
        if name == "supervisor" and number == STOP:  # its user waits, and then he does not
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=BOUND + 30.0)
    assert "Traceback" not in err
    if process.returncode == ExitCode.OK:  # the virtual machine was started in another way
        assert name in ("QEMU", "appliance")
        user.run("unmount", top, program=[str(impatient)]).ok()
    elif process.returncode != ExitCode.INTERRUPTED:
        (sentence,) = [line for line in err.splitlines() if line.startswith("mountsafe: ")]
        assert SENTENCES[name].search(sentence)
    assert state(victim) in ("", "Z", "X")
    before.assert_same(user, PATIENCE)
    assert not top.exists()


def test_qemu_dies_again_and_again_while_it_starts(user: Person, folder: Path, image: Image) -> None:
    """It is noticed at once: from the saved state, and when it boots instead."""
    with user.start("mount", image("ext4"), folder / "m") as process:
        first = strike("QEMU", KILL, process.pid)
        began = time.monotonic()
        wait_for(lambda: state(first) in ("", "Z", "X"))
        wait_for(lambda: booting(process) not in (None, first))
        second = booting(process)
        assert second is not None
        os.kill(second, KILL)
        _, err = process.communicate(timeout=BOUND)
        assert time.monotonic() - began < LAUNCH_DEADLINE  # which passes where nobody notices
    assert process.returncode == ExitCode.APPLIANCE
    assert "the virtual machine did not start" in err


def booting(process: Started) -> int | None:
    """The QEMU that boots and does not start from a saved state, or from the next one."""
    for pid in descendants(process.pid):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"qemu-system-x86_64") and b"-kernel" in words and b"-incoming" not in words:
                return pid
    return None


# --- while it is mounted -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [KILL, STOP])
@pytest.mark.parametrize("name", ["appliance", "QEMU"])
def test_while_nobody_uses_it(
    user: Person, folder: Path, image: Image, impatient: Path, name: str, number: int
) -> None:
    """It works again, with the next question or the one after it."""
    top = folder / "m"
    with mounted(user, image("ext4"), top, impatient) as supervisor:
        strike(name, number, supervisor)
        asking = iter(questions(top))
        if number == STOP:
            user.python(ASK, next(asking))  # it may have to wait for the deadline, and get an error
        user.python(ASK, next(asking)).ok()
        assert content(user, top / "random.bin") == expected("random.bin")


@pytest.mark.parametrize("name", ["session", "supervisor"])
def test_what_is_stopped_while_it_is_used(user: Person, folder: Path, image: Image, impatient: Path, name: str) -> None:
    top = folder / "m"
    reading = ["sh", "-c", 'while cat "$0"/many/* >/dev/null 2>&1; do :; done']
    with mounted(user, image("ext4"), top, impatient) as supervisor, user.start(top, program=reading) as reader:
        os.kill(supervisor if name == "supervisor" else part(name, supervisor) or 0, STOP)
        end(user, top, impatient)
        reader.communicate(timeout=BOUND)


def test_a_suspended_machine(user: Person, folder: Path, image: Image, impatient: Path) -> None:
    """All processes of a mount stand still for longer than a deadline, in the middle of a question. Then it works."""
    top = folder / "m"
    with mounted(user, image("ext4"), top, impatient) as supervisor:
        asking = iter(questions(top))
        with user.start(next(asking), program=["/usr/bin/python3", "-c", ASK]) as waiting:
            everything = [supervisor, *descendants(supervisor)]
            for number, seconds in ((STOP, 4.0), (signal.SIGCONT, 0.0)):
                for pid in everything:
                    with suppress(ProcessLookupError):  # a helper of QEMU's start may end meanwhile
                        os.kill(pid, number)
                time.sleep(seconds)
            waiting.communicate(timeout=BOUND)  # with an answer or an error
        user.python(ASK, next(asking)).ok()
        assert content(user, top / "random.bin") == expected("random.bin")


# --- while it is unmounted -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [KILL, STOP])
@pytest.mark.parametrize("name", PARTS)
def test_while_it_is_unmounted(
    user: Person, folder: Path, image: Image, impatient: Path, name: str, number: int
) -> None:
    top = folder / "m"
    with mounted(user, image("ext4"), top, impatient) as supervisor:
        victim = supervisor if name == "supervisor" else part(name, supervisor)
        assert victim is not None
        with user.start("unmount", top, program=[str(impatient)]) as process:
            while state(victim) and process.poll() is None and is_mounted(top):
                time.sleep(0.005)
            with suppress(ProcessLookupError):
                os.kill(victim, number)
            _, err = process.communicate(timeout=BOUND)
        assert process.returncode == ExitCode.OK or (name == "supervisor" and ON_TRYING in err)
