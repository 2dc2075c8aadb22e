"""Child processes that die with us.

bubblewrap's --die-with-parent is Linux's PR_SET_PDEATHSIG, which fires when the parent's *thread* ends. trio starts
processes from a worker thread that it lets go after ten idle seconds, so children are started here, in the main thread.
"""

import ctypes
import functools
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from mountsafe.limits import LOG_LINE, STOP_DEADLINE
from mountsafe.text import printable

SAID = "mountsafe.said."  # before the name of a log that has what a kind of child says
KEYCTL = {"x86_64": 250, "aarch64": 219}  # arch/*/entry/syscalls, asm-generic/unistd.h
JOIN_SESSION_KEYRING = 1  # include/uapi/linux/keyctl.h


@functools.cache
def leave_keyring() -> None:
    """Take an empty session keyring for this process and its children: that of a login may hold keys and tickets.

    Possession of a keyring is inherited, and no namespace ends it. Where keys are not to be had (a kernel without them,
    a container that forbids them), there is nothing to leave.
    """
    if number := KEYCTL.get(os.uname().machine):
        ctypes.CDLL(None).syscall(number, JOIN_SESSION_KEYRING, None)


def said_by(kind: str) -> Callable[[str], None]:
    """Return the log of what children of a kind say, which is untrusted and may be without end (`session.logs`)."""
    return logging.getLogger(f"{SAID}{kind}").info


class Child:
    """A started process. Its exit is awaited through a pidfd; what it writes to stderr is `words`, untrusted."""

    def __init__(self, command: list[str], fds: list[int], name: str, log: Callable[[str], None]) -> None:
        leave_keyring()
        words, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(theirs, True)
        self._name = name
        self._log = log
        self._words = words
        self.last_line = ""  # what it said last, fit to be shown
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
                pass_fds=fds,
                start_new_session=True,
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
                    self.last_line = printable(untrusted_line, LOG_LINE)
                    self._log(f"{self._name}: {self.last_line}")
                rest = rest[-LOG_LINE:]
        if rest:
            self._log(f"{self._name}: {printable(rest, LOG_LINE)}")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    async def wait(self) -> int:
        """Wait until the process has ended; return its code, negative for a signal."""
        if self._popen.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self._popen.wait()

    async def stop(self) -> None:
        """End the process, and return when it and all that lives in its box are gone.

        The kernel ends a PID namespace with its first process, and the outer bubblewrap only after that. Killing the
        outer one first would leave nobody to wait for the rest.
        """
        with trio.CancelScope(shield=True):
            for victims in (children(self.pid), [self.pid]):
                if self._popen.poll() is not None:
                    return
                for pid in victims:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                with trio.move_on_after(STOP_DEADLINE if victims else 0):
                    await self.wait()


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of a process, and theirs, parents first."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def children(pid: int) -> list[int]:
    """Return the children of a process's main thread; none if it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []
