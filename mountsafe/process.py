"""Child processes that die with us, and with everything that they have started.

bubblewrap's --die-with-parent is Linux's PR_SET_PDEATHSIG, which fires when the parent's *thread* ends. trio starts
processes from a worker thread that it lets go after ten idle seconds, so children are started here, in the main thread.

A box has two processes of bubblewrap's: the launcher, and the first one of its PID namespace. Until the second has set
its own signal it outlives the first, and may wait for the first one's message for ever. So whoever starts boxes adopts
those whose launcher ended, and ends them; and they are all in one process group with a guard, which ends the group when
we are gone.
"""

import ctypes
import functools
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from mountsafe.limits import LOG_LINE, STOP_DEADLINE
from mountsafe.text import printable

SAID = "mountsafe.said."  # before the name of a log that has what a kind of child says
KEYCTL = {"x86_64": 250, "aarch64": 219}  # arch/*/entry/syscalls, asm-generic/unistd.h
JOIN_SESSION_KEYRING = 1  # include/uapi/linux/keyctl.h
PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h

_making = threading.Lock()  # children may be started by several threads

# Reads until every copy of the other end is closed, then ends its process group, itself included. What a service
# manager or a terminal sends at the end is not for it: it may come before our own end.
_GUARD = ["/bin/sh", "-c", "trap '' HUP INT TERM; read -r _; kill -s KILL 0"]


@functools.cache
def leave_keyring() -> None:
    """Take an empty session keyring for this process and its children: that of a login may hold keys and tickets.

    Possession of a keyring is inherited, and no namespace ends it. Where keys are not to be had (a kernel without them,
    a container that forbids them), there is nothing to leave.
    """
    if number := KEYCTL.get(os.uname().machine):
        ctypes.CDLL(None).syscall(number, JOIN_SESSION_KEYRING, None)


def said_by(kind: str) -> Callable[[str], None]:
    """Return the log of what children of a kind say, which is untrusted and may be endless (`session.logs`)."""
    return logging.getLogger(f"{SAID}{kind}").info


@functools.cache
def adopt() -> None:
    """Become the parent of processes below us whose own parent ends: so they can be found, and waited for."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def surroundings() -> dict[str, str]:
    """Return the environment of what we start: nothing of the caller's but where programs are."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


class Guard:
    """A process that ends its process group when this process is gone, however it ended.

    A child of ours joins the group before it lets go of its copy of the pipe's end, by exec. So whenever the guard
    notices, all are in there. One that is killed itself is replaced when the next child is started.
    """

    _now: "Guard | None" = None

    def __init__(self) -> None:
        self._ward = os.getpid()
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._popen = subprocess.Popen(
                _GUARD,
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=surroundings(),
                cwd="/",
                process_group=0,
            )
        except BaseException:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)

    @classmethod
    def group(cls) -> int:
        """Return the process group that ends with us."""
        with _making:
            if cls._now is not None and not cls._now._watches():
                os.close(cls._now._writing)
                cls._now = None
            if cls._now is None:
                cls._now = cls()
            return cls._now._popen.pid

    def _watches(self) -> bool:
        """Whether it lives, and does so for this process, not for one that we were forked from."""
        return self._ward == os.getpid() and self._popen.poll() is None


class Child:
    """A started process. Its exit is awaited through a pidfd; what it writes to stderr is `words`, untrusted."""

    def __init__(self, command: list[str], fds: list[int], name: str, log: Callable[[str], None]) -> None:
        leave_keyring()
        adopt()
        words, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(theirs, True)
        self._name = name
        self._log = log
        self._words = words
        self._hushed = False
        self.last_line = ""  # what it said last, fit to be shown
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
                pass_fds=fds,
                env=surroundings(),
                process_group=Guard.group(),
            )
        except BaseException:
            os.close(words)
            raise
        finally:
            os.close(theirs)

    async def log_words(self) -> None:
        """Log what the process says, line by line, until it ends. Lines may come from the guest's console."""
        rest = b""
        async with trio.lowlevel.FdStream(self._words) as stream:
            while data := await stream.receive_some(LOG_LINE):
                *lines, rest = (rest + data).replace(b"\r", b"").split(b"\n")
                for untrusted_line in lines:
                    self._heard(untrusted_line)
                rest = rest[-LOG_LINE:]
        if rest:
            self._heard(rest)

    def _heard(self, untrusted_line: bytes) -> None:
        if not self._hushed:
            self.last_line = printable(untrusted_line, LOG_LINE)
            self._log(f"{self._name}: {self.last_line}")

    def hush(self) -> None:
        """Believe and log nothing more of what it says there: it is given a secret, and could say that."""
        self._hushed = True

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    async def wait(self) -> int:
        """Wait until the process, and all that lives in its box, has ended; return its code, negative for a signal."""
        if self._popen.poll() is None:
            await ended(self.pid)
        code = self._popen.wait()
        await end_orphans()
        return code

    async def stop(self) -> None:
        """End the process, and return when it and all that lives in its box are gone.

        The kernel ends a PID namespace with its first process, and tells that one's parent only after that: this is us
        once the launcher is gone.
        """
        with trio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                self._popen.kill()
            with trio.move_on_after(STOP_DEADLINE):
                await self.wait()


async def ended(pid: int) -> None:
    """Return when a process has ended; at once if there is none of that number."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


async def end_orphans() -> None:
    """End the boxes whose launcher is gone, and wait for that. Nobody has any use for them."""
    for pid in orphans():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with trio.move_on_after(STOP_DEADLINE):
            await ended(pid)
        _reap(pid)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # another task that waits for it was first
        os.waitpid(pid, os.WNOHANG)


def orphans() -> list[int]:
    """Return our children that are the first process of a PID namespace: none that we started ourselves is."""
    return [pid for pid in children(os.getpid()) if _is_first(pid)]


def _is_first(pid: int) -> bool:
    """Whether a process is number 1 in a PID namespace below ours (NSpid of proc(5), the outermost first)."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            numbers = next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
    except OSError:
        return False
    return len(numbers) > 1 and numbers[-1] == "1"


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of a process, and theirs, parents first."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def children(pid: int) -> list[int]:
    """Return the children of a process, of all its threads; none if it is gone."""
    found = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
    return found
