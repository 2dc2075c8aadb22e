"""What a server wrote to a medium, as it tells its parent."""

import fcntl
import os
import struct
from threading import Lock
from typing import NamedTuple

_COUNTS = struct.Struct("=QQi")
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Counts(NamedTuple):
    """Bytes that were written, or were about to be; requests to write or flush that failed, and the last one's errno.

    Who writes them down may be taken over: they are words for a person.
    """

    written: int = 0
    failures: int = 0
    error: int = 0


class Tally:
    """What was written to a medium, in memory that a server and its parent share: it outlives the server.

    It has one size for good: who writes it down can fill no memory.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._counts = self.read()
        self._counting = Lock()

    @classmethod
    def made(cls) -> "Tally":
        """Return a new one."""
        fd = os.memfd_create("tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.pwrite(fd, _COUNTS.pack(*Counts()), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return cls(fd)

    def close(self) -> None:
        """Let go of the memory; what was written down last is still told."""
        if self.fd >= 0:
            self._counts = self.read()
            os.close(self.fd)
            self.fd = -1

    def read(self) -> Counts:
        """Return what is written down."""
        if self.fd < 0:
            return self._counts
        return Counts._make(_COUNTS.unpack(os.pread(self.fd, _COUNTS.size, 0)))

    def wrote(self, count: int) -> None:
        """Count bytes, before they are written. Any thread may."""
        with self._counting:
            self._note(self._counts._replace(written=self._counts.written + count))

    def failed(self, error: int) -> None:
        """Count a request that failed. Any thread may."""
        with self._counting:
            self._note(self._counts._replace(failures=self._counts.failures + 1, error=error))

    def _note(self, counts: Counts) -> None:
        self._counts = counts
        os.pwrite(self.fd, _COUNTS.pack(*counts), 0)
