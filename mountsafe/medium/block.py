"""Raw reads from the medium: bytes in, bytes out, nothing parsed."""

import errno
import os
import stat
import time
from typing import Protocol

from mountsafe.errors import MediumError as MediumError  # readers of disks look for it here
from mountsafe.medium.blocking import read_exactly
from mountsafe.trios import in_thread

# What is not in the page cache is waited for so long, in seconds, before a thread gets to read it: to hand a read over
# and back takes as long. A disk that did not make it is not waited for during the next reads. Even a good one is late
# once in a while, so after the first time these are few, and twice as many after each further one.
PATIENCE = 200e-6
MOST_DISTRUST = 64  # reads
SMALL = 64 << 10  # bytes; larger reads gain nothing by it
# preadv2(2), of a file system or a kernel that cannot tell what is at hand. Whatever else fails is of one place.
CANNOT = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
# Bytes. Who reads at two places so near to each other reads small files, and what lies between them is likely next.
NEAR, NEIGHBOURHOOD = 1 << 20, 256 << 10


class Disk(Protocol):
    """Where the bytes of a disk come from."""

    def read_now(self, offset: int, length: int) -> memoryview | None:
        """Return `length` bytes if they can be had at once, or None. They are valid until the next call."""

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end, in its sector, are zeros."""

    def cut_short(self) -> bool:
        """Whether the medium is seen to be shorter than it was: others then read zeros where there is nothing."""


class BlockReader:
    """Reads a medium through its read-only descriptor.

    What is in the page cache is read at once; what would block is read in a worker thread, so that other requests of
    the same mount go on.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._nowait = True
        self._file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._buffer = memoryview(bytearray())
        self._distrust = 0  # reads for which nobody waits
        self._next_distrust = 1
        self._missed = -NEAR  # where the last small read was that had to wait

    def read_now(self, offset: int, length: int) -> memoryview | None:
        """Return `length` bytes if they can be had at once, or None. They are valid until the next call.

        The same memory each time stays in the processor's cache: sequential reads from the page cache gain a third.
        """
        if not self._nowait or offset + length > self._size:
            return None
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        view = self._buffer[:length]
        try:
            if self._try(view, offset) or (length <= SMALL and self._try_for_a_moment(view, offset)):
                return view
        except OSError as error:
            if error.errno in CANNOT:
                self._nowait = False
        return None  # the slow way will tell what is wrong there

    def _try(self, view: memoryview, offset: int) -> bool:
        try:
            return os.preadv(self._fd, [view], offset, os.RWF_NOWAIT) == len(view)
        except BlockingIOError:
            return False

    def _try_for_a_moment(self, view: memoryview, offset: int) -> bool:
        near = abs(offset - self._missed) < NEAR
        self._missed = offset
        os.posix_fadvise(self._fd, offset, NEIGHBOURHOOD if near else len(view), os.POSIX_FADV_WILLNEED)
        if self._distrust:
            self._distrust -= 1
            return False
        end = time.perf_counter() + PATIENCE
        while time.perf_counter() < end:
            if self._try(view, offset):
                self._next_distrust = 1
                return True
        self._distrust = self._next_distrust
        self._next_distrust = min(2 * self._next_distrust, MOST_DISTRUST)
        return False

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Beyond the medium's end, in its last sector, there are zeros."""
        available = max(0, min(length, self._size - offset))
        found = self.read_now(offset, available)
        if found is not None:
            data = bytes(found)
        else:
            # A disk may hang, and who gives up waiting for it leaves the thread to it.
            data = await in_thread(read_exactly, self._fd, offset, available)
        return data if available == length else data + bytes(length - available)

    def cut_short(self) -> bool:
        """Whether the medium is a file that is shorter by now. QEMU pads what is gone with zeros."""
        return self._file and os.fstat(self._fd).st_size < self._size
