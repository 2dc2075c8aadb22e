"""Raw reads from the medium: bytes in, bytes out, nothing parsed."""

import os

import trio

from mountsafe.errors import MountsafeError


class MediumError(MountsafeError):
    """The medium did not give the bytes: a read error, or it is shorter than it said."""


class BlockReader:
    """Reads a medium through its read-only descriptor.

    What is in the page cache is read at once; what would block is read in a worker thread, so that other requests of
    the same mount go on.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._nowait = True

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Beyond the medium's end, in its last sector, there are zeros."""
        available = max(0, min(length, self._size - offset))
        data = self._read_cached(offset, available)
        if len(data) < available:
            data += await trio.to_thread.run_sync(self._read_all, offset + len(data), available - len(data))
        return data if available == length else data + bytes(length - available)

    def _read_cached(self, offset: int, length: int) -> bytes:
        if not self._nowait:
            return b""
        buffer = bytearray(length)
        try:
            count = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return b""
        except OSError:
            self._nowait = False  # a file system that does not support it, or a bad sector: the slow way will tell
            return b""
        return bytes(buffer) if count == length else bytes(memoryview(buffer)[:count])

    def _read_all(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            try:
                data = os.pread(self._fd, length, offset)
            except OSError as error:
                raise MediumError(f"reading the medium at {offset}: {error.strerror}") from error
            if not data:
                raise MediumError(f"the medium ends at {offset}: it was truncated or pulled out")
            parts.append(data)
            offset += len(data)
            length -= len(data)
        return b"".join(parts)
