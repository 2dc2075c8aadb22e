"""What a stream consists of: frames, of which kinds, and how their bodies are taken apart."""

import struct
from typing import NamedTuple

from mountsafe.wire.bounds import MAX_BODY, MAX_TEXT

VERSION = 5  # of what both ends say; an appliance that was built with another one is told so

HEADER = struct.Struct(">IIB")  # body length, request id, kind
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")


class WireError(Exception):
    """The bytes are not a frame of this protocol."""


class Kind:
    """What a frame is. Requests and their answers share the number."""

    ERROR = 0
    HELLO = 1
    PROBE = 2
    MOUNT = 3
    LIST = 4
    READ = 5
    EXTENTS = 6
    XATTRS = 7
    STATFS = 8
    LAYOUT = 9
    # Of `mountsafe.changes`: where it is mounted for writing.
    CHANGE = 10
    WRITE = 11
    HANDLE_READ = 12
    SYNC = 13  # all that was changed is on the disk; question and answer are empty
    UNMOUNT = 14  # all that was changed is on the disk, and the file system is left as clean; the answer is empty
    CHECK = 15  # whether a file system has errors
    BATCH = 16  # of `mountsafe.changes`: several CHANGE and WRITE


# What may be asked on a stream, before its file system is mounted and after: one stream serves one mount, once.
BEFORE_MOUNT = frozenset({Kind.HELLO, Kind.PROBE, Kind.MOUNT, Kind.CHECK})
AFTER_MOUNT = frozenset({Kind.LIST, Kind.READ, Kind.EXTENTS, Kind.XATTRS, Kind.STATFS, Kind.LAYOUT})
CHANGING = frozenset(
    {Kind.CHANGE, Kind.WRITE, Kind.HANDLE_READ, Kind.SYNC, Kind.UNMOUNT, Kind.BATCH}
)  # with AFTER_MOUNT


class Frame(NamedTuple):
    """One frame as it came."""

    ident: int
    kind: int
    body: bytes


def frame(ident: int, kind: int, body: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    if len(body) > MAX_BODY:
        raise ValueError(f"body of {len(body)} bytes")
    return HEADER.pack(len(body), ident, kind) + body


class Decoder:
    """Bytes in, frames out. Holds at most one incomplete frame: `MAX_BODY` and a header."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes from the stream and return the frames that they complete; `WireError` if one is too long."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            length, ident, kind = HEADER.unpack_from(buffer, start)
            if length > MAX_BODY:
                raise WireError(f"frame of {length} bytes")
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append(Frame(ident, kind, bytes(memoryview(buffer)[start + HEADER.size : end])))
            start = end
        if start:
            del buffer[:start]
        return frames


class Body:
    """A cursor over a body that never reads past its end."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """Return the numbers that come next."""
        end = self._at + layout.size
        if end > len(self._body):
            raise WireError("body too short")
        values = layout.unpack_from(self._body, self._at)
        self._at = end
        return values

    def take(self, length: int, limit: int) -> bytes:
        """Return the bytes that come next. Raises WireError if they are more than `limit`, or not there."""
        if length > limit:
            raise WireError(f"field of {length} bytes where {limit} are allowed")
        end = self._at + length
        if end > len(self._body):
            raise WireError("body too short")
        data = self._body[self._at : end]
        self._at = end
        return data

    def rest(self, limit: int) -> bytes:
        """Return all bytes that are left."""
        return self.take(len(self._body) - self._at, limit)

    def end(self) -> None:
        """Raise WireError if any are left."""
        if self._at != len(self._body):
            raise WireError("bytes after the end of the body")


def pack_text(*texts: bytes) -> bytes:
    """Return texts, each behind its length."""
    return b"".join(U16.pack(len(text)) + text for text in texts)


def unpack_text(body: Body, limit: int = MAX_TEXT) -> bytes:
    """Return the text that comes next."""
    return body.take(body.unpack(U16)[0], limit)
