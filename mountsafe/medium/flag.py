"""The read-only flag of a block device, which the daemon sets: cleared only while somebody writes.

A file, or a device that nobody has made read-only, has none to clear.
"""

import fcntl
import logging
import os
import stat
import struct

from mountsafe.errors import MountsafeError

log = logging.getLogger(__name__)
BLKROSET, BLKROGET = 0x125D, 0x125E  # include/uapi/linux/fs.h


def is_read_only(fd: int) -> bool:
    """Whether a device is read-only. Raises OSError."""
    return bool(struct.unpack("i", fcntl.ioctl(fd, BLKROGET, bytes(4)))[0])


def set_read_only(fd: int, value: bool) -> None:
    """Make a device read-only or not, for everybody. Raises OSError."""
    fcntl.ioctl(fd, BLKROSET, struct.pack("i", int(value)))


class ReadOnlyFlag:
    """That of one medium, by a descriptor that stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self._writers: set[object] = set()
        self._lifted = False  # it was set before

    def lift(self, writer: object) -> None:
        """Let the device be written to. Raises MountsafeError."""
        try:
            if self._device and not self._writers and is_read_only(self._fd):
                set_read_only(self._fd, False)
                self._lifted = True
        except OSError as error:
            raise MountsafeError(f"the device stays read-only: {error.strerror}") from error
        self._writers.add(writer)

    def lower(self, writer: object) -> None:
        """One writes no more: after the last one it is as it was before the first."""
        self._writers.discard(writer)
        if self._writers or not self._lifted:
            return
        self._lifted = False
        try:
            set_read_only(self._fd, True)
        except OSError as error:  # it was pulled out
            log.info("the device is not made read-only again: %s", error)
