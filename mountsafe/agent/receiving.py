"""Questions as they come from the host: each read is into the place where the frame is put together.

A port gives a page at a time, so a large write comes in hundreds of pieces. Nothing is done for each but to count it,
and its bytes are copied no further.
"""

import os

from mountsafe import wire

ROOM = wire.HEADER.size + wire.MAX_BODY


class Receiver:
    """Of one stream. The body of a WRITE is valid until the next call."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(ROOM))
        self._have = 0
        self._used = 0  # of that, the frame that was returned last
        self.spoken = False  # whether anything has come yet

    def next(self) -> wire.Frame | None:
        """Return the next question, or None if the stream is closed. Raises WireError."""
        buffer, rest = self._buffer, self._have - self._used
        if self._used and rest:
            buffer[:rest] = bytes(buffer[self._used : self._have])
        self._have, self._used = rest, 0
        if not self._filled(wire.HEADER.size):
            return None
        length, ident, kind = wire.HEADER.unpack_from(buffer)
        if length > wire.MAX_BODY:
            raise wire.WireError(f"frame of {length} bytes")
        end = wire.HEADER.size + length
        if not self._filled(end):
            return None
        self._used = end
        body = buffer[wire.HEADER.size : end]
        return wire.Frame(ident, kind, body if kind == wire.Kind.WRITE else bytes(body))  # type: ignore[arg-type]

    def _filled(self, need: int) -> bool:
        have, buffer, fd = self._have, self._buffer, self._fd
        while have < need:
            count = os.readv(fd, [buffer[have:]])
            if not count:
                return False
            self.spoken = True
            have = self._have = have + count
        return True

    @property
    def waiting(self) -> bool:
        """Whether a part of another question is here already."""
        return self._have > self._used
