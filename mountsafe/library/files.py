"""A file of an image that is open, as `io` has it."""

import io
import os
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mountsafe import reading, wire
from mountsafe.reading import Held, Kind, Opened

if TYPE_CHECKING:
    from mountsafe.library.filesystem import FileSystem

BUFFER = 256 << 10  # bytes that `FileSystem.open` reads ahead if nothing is said
MAX_READ = wire.MAX_READ
AHEAD = 2  # questions of one reader that goes through a whole file


class ImageFile(io.RawIOBase):
    """Its bytes, read-only and seekable. Threads that share one share its position; `pread` needs none.

    It keeps the image from being collected as garbage.
    """

    def __init__(self, owner: "FileSystem", name: str | bytes, opened: Opened) -> None:
        super().__init__()
        self.name = name
        self._owner = owner
        self._stream = owner._stream
        self._handle = opened.handle
        self._size = opened.entry.size
        self._first = opened.first
        self._at = 0

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self._size

    @property
    def mode(self) -> str:
        """How it is open."""
        return "rb"

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether its position can be set: yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position. Of holes `next_data` tells, and no `whence`."""
        self._check()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
        if whence not in base:
            raise ValueError(f"whence {whence} is not supported")
        if base[whence] + offset < 0:
            raise ValueError(f"negative seek position {base[whence] + offset}")
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        """Return the position."""
        self._check()
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read to the position's end or the buffer's, 1 MiB at most. Raises OSError."""
        self._check()
        with memoryview(buffer).cast("B") as view:
            data = self.pread(min(len(view), MAX_READ), self._at)
            view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def pread(self, length: int, offset: int) -> bytes | bytearray:
        """Return `length` bytes at `offset`, 1 MiB at most; fewer only at the end of the file. Raises OSError."""
        self._check()
        length = max(0, min(length, self._size - offset, MAX_READ))
        if not length:
            return b""
        if offset + length <= len(self._first):
            return self._first[offset : offset + length]
        data = self._stream.ask(Kind.READ, reading.pack_held(Held(self._handle, offset, length)))
        return self._whole(data, length)

    def next_data(self, offset: int) -> int:
        """Return where the next bytes are that are no hole, from `offset` on; the size if there are none.

        Where holes are not known, it is `offset`.
        """
        self._check()
        body = self._stream.ask(Kind.DATA, reading.pack_held(Held(self._handle, offset, 0)))
        untrusted_found = self._owner._told(reading.unpack_offset, bytes(body))
        if not min(offset, self._size) <= untrusted_found <= self._size:
            raise self._stream.broken("data that is elsewhere")
        return untrusted_found

    def readall(self) -> bytes:
        """Read all from the position on: what `io` makes of `readinto` asks for a few KiB at a time. Raises OSError."""
        data = b"".join(self.chunks(self._at))
        self._at += len(data)
        return data

    def chunks(self, offset: int = 0) -> Iterator[bytes | bytearray]:
        """Yield all bytes from `offset` on, up to 1 MiB at a time: the next are asked for while these are used."""
        self._check()
        ahead = deque[tuple[int, int]]()  # questions that were asked, and how many bytes each is for
        asked = offset
        if offset < len(self._first):
            asked = len(self._first)
            yield self._first[offset:]
        try:
            while ahead or asked < self._size:
                while asked < self._size and len(ahead) < AHEAD:
                    length = min(MAX_READ, self._size - asked)
                    held = reading.pack_held(Held(self._handle, asked, length))
                    ahead.append((self._stream.begin(Kind.READ, held), length))
                    asked += length
                ident, length = ahead.popleft()
                yield self._whole(self._stream.answer(ident, Kind.READ), length)
        finally:
            for ident, _ in ahead:
                self._stream.forget(ident)

    def _whole(self, data: bytearray, length: int) -> bytearray:
        if len(data) != length:
            raise self._stream.broken(f"{len(data)} bytes where there are {length}")
        return data

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def close(self) -> None:
        """Let go of it."""
        if not self.closed:
            self._owner._forget(self._handle)
        super().close()
