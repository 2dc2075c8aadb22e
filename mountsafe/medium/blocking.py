"""A disk for readers that may block: a boxed process with nothing else to do. No trio."""

import os
from typing import Protocol

from mountsafe.errors import MediumError


class BlockingDisk(Protocol):
    """Where the bytes of a disk of `size` bytes come from. Any thread may call it."""

    @property
    def size(self) -> int:
        """Bytes of the disk."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end are zeros."""


class RawDisk:
    """A disk that is the medium itself, behind its descriptor."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end are zeros."""
        available = max(0, min(length, self.size - offset))
        return read_exactly(self._fd, offset, available).ljust(length, b"\0")


class BlockingPart:
    """A disk of which only `size` bytes from `offset` on are there."""

    def __init__(self, disk: BlockingDisk, offset: int, size: int) -> None:
        self._disk = disk
        self._offset = offset
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end are zeros."""
        available = max(0, min(length, self.size - offset))
        return self._disk.read(self._offset + offset, available).ljust(length, b"\0")


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Return `length` bytes of a medium. Raises MediumError where they cannot be read, or it ends."""
    parts: list[bytes] = []
    while length:
        try:
            data = os.pread(fd, length, offset)
        except OSError as error:
            raise MediumError(f"reading the medium at {offset}: {error.strerror}") from error
        if not data:
            raise MediumError(f"the medium ends at {offset}: it was truncated or pulled out")
        parts.append(data)
        offset += len(data)
        length -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
