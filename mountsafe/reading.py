"""What is asked of a session process that shows a file system without FUSE, without I/O: the module of both ends.

A stream carries frames as those of `mountsafe.wire`, and what is told of files is packed as it is there. Each question
is answered by one frame of its number, of its kind or of `Kind.ERROR`; questions may be pipelined. The one who asks
believes nothing of an answer: what a name or an attribute must be is for `mountsafe.filesystem.untrusted` to say.

Paths are from the root of the file system, bytes. A link in one is followed as if that root were the root of all there
is; the last part only with `Flag.FOLLOW`.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from mountsafe import wire

MAX_HANDLES = 1024  # files that are open on one stream
MAX_INFLIGHT = 32  # questions that are being answered; more wait in the socket


class Kind:
    """What a frame is."""

    ERROR = 0
    LOOK = 1  # Asked: one entry
    LIST = 2  # Asked, `number` from where: a page of entries, as of `wire.pack_page`
    OPEN = 3  # Asked, `length`: so many of its first bytes come along
    XATTRS = 4  # Asked
    STATFS = 5
    READ = 6  # Held: bytes; fewer than were asked for only where the file ends
    DATA = 7  # Held: where the next bytes are that are no hole, from `offset` on; the file's size if there are none
    CLOSE = 8  # Held; the answer is empty
    ALL = frozenset(range(1, 9))


class Flag:
    """Bits of `Asked.flags`."""

    FOLLOW = 1
    ALL = 1


class Asked(NamedTuple):
    """A question with a path. `number` and `length`: as its kind says, else 0."""

    path: bytes
    flags: int = 0
    number: int = 0
    length: int = 0


class Held(NamedTuple):
    """A question about an open file."""

    handle: int
    offset: int = 0
    length: int = 0


class Opened(NamedTuple):
    """The answer to OPEN."""

    handle: int
    entry: wire.Entry
    first: bytes


class Answer(NamedTuple):
    """A frame as it came, with a body that is nobody else's."""

    ident: int
    kind: int
    body: bytearray


_ASKED = struct.Struct(">BQI")
_HELD = struct.Struct(">IQI")
_OPENED = struct.Struct(">IH")
_OFFSET = struct.Struct(">Q")


def pack_asked(asked: Asked) -> bytes:
    """Return the body of a question with a path."""
    return _ASKED.pack(asked.flags, asked.number, asked.length) + asked.path


def unpack_asked(untrusted_body: bytes) -> Asked:
    """Return a question with a path, which has no NUL. Raises WireError."""
    if len(untrusted_body) < _ASKED.size:
        raise wire.WireError("body too short")
    flags, number, length = _ASKED.unpack_from(untrusted_body)
    path = untrusted_body[_ASKED.size :]
    if flags & ~Flag.ALL or length > wire.MAX_READ or len(path) > wire.MAX_PATH or b"\0" in path:
        raise wire.WireError("a question that cannot be asked")
    return Asked(path, flags, number, length)


def pack_held(held: Held) -> bytes:
    """Return the body of a question about an open file."""
    return _HELD.pack(*held)


def unpack_held(untrusted_body: bytes) -> Held:
    """Return a question about an open file. Raises WireError."""
    if len(untrusted_body) != _HELD.size:
        raise wire.WireError("a question of another length")
    held = Held._make(_HELD.unpack(untrusted_body))
    if held.length > wire.MAX_READ:
        raise wire.WireError(f"read of {held.length} bytes")
    return held


def pack_entries(cursor: int, entries: Sequence[wire.Entry]) -> bytes:
    """Return the body of an answer with entries. The next page begins at `cursor`; 0: this is the last."""
    return wire.pack_page(cursor, [wire.pack_entry(each.name, each[1:-1], each.target) for each in entries])


def unpack_entry(untrusted_body: bytes) -> wire.Entry:
    """Return the one entry of an answer, which has no name. Raises WireError."""
    cursor, untrusted_entries = wire.unpack_page(untrusted_body)
    if cursor or len(untrusted_entries) != 1 or untrusted_entries[0].name:
        raise wire.WireError("another answer than one entry without a name")
    return untrusted_entries[0]


def pack_opened(opened: Opened) -> bytes:
    """Return the body of an answer to OPEN."""
    entry = pack_entries(0, [opened.entry])
    return _OPENED.pack(opened.handle, len(entry)) + entry + opened.first


def unpack_opened(untrusted_body: bytes) -> Opened:
    """Return what was opened. Raises WireError."""
    if len(untrusted_body) < _OPENED.size:
        raise wire.WireError("body too short")
    handle, length = _OPENED.unpack_from(untrusted_body)
    end = _OPENED.size + length
    return Opened(handle, unpack_entry(untrusted_body[_OPENED.size : end]), untrusted_body[end:])


def pack_offset(offset: int) -> bytes:
    """Return the body of an answer to DATA."""
    return _OFFSET.pack(offset)


def unpack_offset(untrusted_body: bytes) -> int:
    """Return where data is. Raises WireError."""
    if len(untrusted_body) != _OFFSET.size:
        raise wire.WireError("an answer of another length")
    offset: int = _OFFSET.unpack(untrusted_body)[0]
    return offset


class Incoming:
    """Frames out of a stream that is read straight into their bodies: `room` says where to, `took` how much came."""

    def __init__(self) -> None:
        self._head = bytearray(wire.HEADER.size)
        self._body: bytearray | None = None
        self._have = 0  # of the head, or else of the body

    def room(self) -> memoryview:
        """Return where the next bytes are to be put; never empty."""
        return memoryview(self._head if self._body is None else self._body)[self._have :]

    def took(self, count: int) -> Answer | None:
        """Return the frame that is complete with so many more bytes, if one is. Raises WireError for one too long."""
        self._have += count
        if self._body is None:
            if self._have < len(self._head):
                return None
            length, _, _ = wire.HEADER.unpack(self._head)
            if length > wire.MAX_BODY:
                raise wire.WireError(f"frame of {length} bytes")
            self._body, self._have = bytearray(length), 0
        if self._have < len(self._body):
            return None
        _, ident, kind = wire.HEADER.unpack(self._head)
        answer = Answer(ident, kind, self._body)
        self._body, self._have = None, 0
        return answer
