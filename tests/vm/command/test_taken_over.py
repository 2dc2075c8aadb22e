"""A QEMU or an appliance process that is taken over while its mount is in use: this test speaks in its place.

It takes copies of what they hold open, stops QEMU, and says what it likes, to the process beside it in the box, to the
session process and to the supervisor. The box is the real one.
"""

import array
import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.limits import CALL_DEADLINE, LOG_BYTES
from tests.vm.command.stage import Person, Stage
from tests.vm.command.test_faults import ASK, content, expected, machine, questions
from tests.vm.command.traces import PATIENCE, Traces

Image = Callable[[str], Path]
PIDFD_GETFD = 438
MEMORY_KIB = 150 << 10  # of the supervisor, whatever it is told
GARBAGE = os.urandom(1 << 16)
FOR_EVER = b'{"event": "VSERPORT_CHANGE", "data": {"id": "ms1", "open": false}}\n'
STRANGE = b'7\n{"event":1}\n{"return":{}}\n{"error":5}\n{"event":"VSERPORT_CHANGE"}\n\xff\n'


class Hands:
    """What a taken-over process holds: QEMU's monitor and streams, and the appliance process's channel."""

    def __init__(self, qemu: int, serve: int, stack: ExitStack) -> None:
        held = [stack.enter_context(each) for each in copies(qemu)]
        up = [stack.enter_context(each) for each in copies(serve)]
        self.monitor = [each for each in held if each.getsockname() == "/tmp/qmp" and is_connected(each)]
        self.streams = [each for each in held if not each.getsockname() and is_connected(each)]
        self.control = [each for each in up if each.type == socket.SOCK_SEQPACKET and is_connected(each)]
        assert len(self.monitor) == len(self.control) == 1
        assert len(self.streams) > 1


def copies(pid: int) -> Iterator[socket.socket]:
    """Every unix socket that a process holds, as if we were it; they do not block."""
    pidfd = os.pidfd_open(pid)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    for name in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            continue
        fd = syscall(PIDFD_GETFD, pidfd, int(name), 0)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        yield socket.socket(fileno=fd)
    os.close(pidfd)


def is_connected(each: socket.socket) -> bool:
    try:
        each.getpeername()
    except OSError:
        return False
    return each.family == socket.AF_UNIX


def say(to: list[socket.socket], data: bytes) -> None:
    for each in to:
        with suppress(OSError):
            each.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def hand_over(to: list[socket.socket]) -> None:
    """Descriptors that nobody asked for."""
    fds = array.array("i", [0] * 200)
    for each in to:
        with suppress(OSError):
            each.sendmsg(
                [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            )


def frames(hands: Hands) -> None:
    """Answers of the agent's form that nobody asked for, of all lengths."""
    for number in range(64):
        say(hands.streams, wire.HEADER.pack(number % 7 * 9, number, number % 32) + os.urandom(number % 7 * 9))


LIES: dict[str, Callable[[Hands], None]] = {
    "garbage to all": lambda hands: say([*hands.monitor, *hands.streams, *hands.control], GARBAGE),
    "garbage to the monitor's reader": lambda hands: say(hands.monitor, GARBAGE),
    "a line without end": lambda hands: say(hands.monitor, b"[" * (1 << 16)),
    "events without end": lambda hands: say(hands.monitor, FOR_EVER * 512),
    "answers of the wrong kind": lambda hands: say(hands.monitor, STRANGE),
    "answers that nobody asked for": frames,
    "garbage to the supervisor": lambda hands: say(hands.control, GARBAGE),
    "too deep for the supervisor": lambda hands: say(hands.control, b"[" * 60000),
    "what was done, to the supervisor": lambda hands: say(hands.control, b'{"done": "stream"}'),
    "descriptors": lambda hands: hand_over([*hands.monitor, *hands.streams, *hands.control]),
}


@contextmanager
def taken_over(parts: dict[str, int], lie: Callable[[Hands], None]) -> Iterator[None]:
    """Lie in the place of a virtual machine's QEMU for as long as it holds."""
    stop = threading.Event()
    with ExitStack() as stack:
        hands = Hands(parts["qemu"], parts["serve"], stack)
        os.kill(parts["qemu"], signal.SIGSTOP)

        def speak() -> None:
            while not stop.wait(0.001):
                lie(hands)

        liar = threading.Thread(target=speak)
        liar.start()
        try:
            yield
        finally:
            stop.set()
            liar.join()


def most_memory(pid: int) -> int:
    """The most that a process ever had, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def hurried(stage: Stage) -> Path:
    """The command line with a short deadline for the agent's answers: most lies are ended by that."""
    return stage.variant("hurried", {"limits.py": {"REQUEST_DEADLINE = 30.0": "REQUEST_DEADLINE = 3.0"}})


@pytest.mark.parametrize("lie", LIES)
def test_who_speaks_in_the_place_of_qemu(person: Person, folder: Path, image: Image, hurried: Path, lie: str) -> None:
    """No call hangs, the supervisor lives and stays small, another virtual machine takes over, and nothing is left."""
    if os.geteuid() != 0:
        pytest.skip("only root may take over a box from outside")
    before = Traces.taken(person)
    source, top = image("ext4"), folder / "m"
    person.run("mount", source, top, program=[str(hurried)]).ok()
    asking = iter(questions(top))
    person.python(ASK, next(asking)).ok()
    parts = machine(person, source)
    supervisor = person.records_of(source)["supervisor"]
    with taken_over(parts, LIES[lie]):
        began = time.monotonic()
        person.python(ASK, next(asking))  # whatever comes of it
        assert time.monotonic() - began < CALL_DEADLINE
        person.python(ASK, next(asking)).ok()  # by another virtual machine, which nobody has taken over
        assert content(person, top / "random.bin") == expected("random.bin")
        record = person.records_of(source)
        assert record["supervisor"] == supervisor
        assert record["virtual_machine"] not in parts.values()
    assert most_memory(supervisor) < MEMORY_KIB
    assert all(path.stat().st_size <= LOG_BYTES for path in person.records.rglob("log*"))
    person.run("unmount", top).ok()
    before.assert_same(person, PATIENCE)
