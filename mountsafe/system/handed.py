"""A secret on its way to the process that needs it, in a pipe or a memfd: whoever passes it on never reads it.

A descriptor that somebody hands to us may be of a file that they serve themselves (FUSE): asking for its status,
reading it or closing it can take for ever. So what it is, is asked in ways that no file system notices, and anything
but a pipe or memory is never waited for.
"""

import ctypes
import fcntl
import os
import select
import struct
import termios
import threading
import time
from collections.abc import Iterable

from mountsafe.errors import UserError

PATIENCE = 10.0  # seconds for the writer of a pipe to finish
_SPLICE_F_NONBLOCK = 2
_REREAD = "It is a pipe whose other end is closed, or a memfd."


class NoCarrier(UserError):
    """A descriptor that brings no secret."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the key cannot be taken: {why}", _REREAD)


def is_pipe(fd: int) -> bool:
    """Whether it is one. Asks no file system."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) > 0
    except OSError:
        return False


def is_memory(fd: int) -> bool:
    """Whether it is memory: a memfd, or a file of a tmpfs. Asks no file system."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) >= 0
    except OSError:
        return False


def close(fds: Iterable[int]) -> None:
    """Close what somebody handed to us, without waiting for a server of theirs."""
    for fd in fds:
        if is_pipe(fd) or is_memory(fd):
            os.close(fd)
        else:
            threading.Thread(target=os.close, args=(fd,), daemon=True).start()


def require(fd: int) -> None:
    """Raise NoCarrier unless a secret can come out of a descriptor."""
    if not is_pipe(fd) and not is_memory(fd):
        raise NoCarrier("it is in no pipe and no memory")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        raise NoCarrier("nothing can be read there")


def wait(fd: int, patience: float = PATIENCE) -> None:
    """Wait until all of it is there. Raises NoCarrier if it does not come in time, or is none or too long. Blocks."""
    if is_memory(fd):
        return
    end = time.monotonic() + patience
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP alone: nobody can write into it any more
    while not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        if time.monotonic() >= end:
            raise NoCarrier("whoever writes it does not end, or it is longer than a pipe")


def again(fd: int) -> int:
    """Return a descriptor that all of it comes out of, from the beginning; `fd` keeps it. Raises NoCarrier, OSError."""
    if is_memory(fd):
        os.lseek(fd, 0, os.SEEK_SET)
        return os.dup(fd)
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, max(fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ), 1))
        (length,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0)))
        if length and ctypes.CDLL(None, use_errno=True).tee(fd, writer, length, _SPLICE_F_NONBLOCK) != length:
            raise NoCarrier("it changed meanwhile")
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return reader


def carried(secret: bytes | bytearray) -> int:
    """Return a descriptor that a secret comes out of: a pipe, which is never swapped out, if it is short enough."""
    reader, writer = os.pipe()
    try:
        if len(secret) <= fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) // 2:
            os.write(writer, secret)
            return reader
    finally:
        os.close(writer)
    os.close(reader)
    memory = os.memfd_create("key", os.MFD_CLOEXEC)
    view = memoryview(secret)
    while view:
        view = view[os.write(memory, view) :]
    os.lseek(memory, 0, os.SEEK_SET)
    return memory


def wipe(secret: bytearray) -> None:
    """Overwrite a secret that is not needed any more."""
    secret[:] = bytes(len(secret))
