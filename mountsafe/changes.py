"""The changing half of the agent protocol: what a file system that is mounted for writing is asked.

Like `mountsafe.wire` it runs at both ends of the wall, does no I/O, and knows only the standard library.

A stream whose MOUNT asked for writing takes `AFTER_MOUNT` and the kinds of `CHANGING`. Files that are open at the host
are known by handles, numbers of its choice, never by their path: a path may lead to another file by the time it is
followed. Every change may be sent again to another virtual machine, after the one that was asked has died:
`Flag.AGAIN` says so, and then what is there already, or is gone already, is a success.

The medium may have any later state by then, up to the last change that was sent: a name may be that of another file,
which came there by a later change. The host sees to it that this is no matter (`filesystem.changelog`).
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from mountsafe import wire

MAX_WRITE = wire.MAX_READ  # bytes of a file in one WRITE: the largest that Linux's FUSE client sends
MAX_VALUE = wire.MAX_XATTR_VALUE
MAX_ENTRIES = 3  # in the answer to a change
MAX_BATCH = 128  # questions in one BATCH: the answers to so many, of links as long as can be, fit a body
NO_TIME = -(1 << 63)  # a time that is not to be set


class Act:
    """What a CHANGE does. What it uses of `Change` stands behind it; `path` is always from the root."""

    OPEN = 1  # path, handle: an existing regular file, for reading and writing
    CREATE = 2  # path, handle, mode, uid, gid: a regular file, opened for reading and writing
    CLOSE = 3  # handle: nothing if it is not known
    MKDIR = 4  # path, mode, uid, gid
    MKNOD = 5  # path, mode (its type included: a regular file or a FIFO), uid, gid
    SYMLINK = 6  # path, other (the target), uid, gid
    LINK = 7  # path (of the new name), other (of the file)
    RENAME = 8  # path (the old one), other (the new one), Flag.NOREPLACE or Flag.EXCHANGE (which the guest refuses)
    UNLINK = 9  # path
    RMDIR = 10  # path
    SETATTR = 11  # handle, or path where that is 0; what Flag.SET_* say
    SETXATTR = 12  # path, other (the name), value
    REMOVEXATTR = 13  # path, other (the name)
    ALL = frozenset(range(1, 14))


class Flag:
    """Bits of `Change.flags`."""

    AGAIN = 1
    NOREPLACE = 2
    EXCHANGE = 4
    SET_MODE = 8
    SET_UID = 16
    SET_GID = 32
    SET_SIZE = 64
    SET_ATIME = 128
    SET_MTIME = 256
    ALL = 511


class Change(NamedTuple):
    """A CHANGE. `mode` as in stat(2), `size` in bytes, times in ns since the epoch (or NO_TIME)."""

    act: int
    path: bytes = b""
    other: bytes = b""
    handle: int = 0
    flags: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime: int = NO_TIME
    mtime: int = NO_TIME
    value: bytes = b""


_CHANGE = struct.Struct(">BHHQHIIIQqqI")
_WRITE = struct.Struct(">QQ")
_READ = struct.Struct(">QQI")
_COUNT = struct.Struct(">H")
_ITEM = struct.Struct(">BI")
_RESULT = struct.Struct(">HI")


def pack_change(change: Change) -> bytes:
    """Ask for a change. The answer is that of `pack_changed`."""
    c = change
    numbers = (c.handle, c.flags, c.mode, c.uid, c.gid, c.size, c.atime, c.mtime)
    return _CHANGE.pack(c.act, len(c.path), len(c.other), *numbers, len(c.value)) + c.path + c.other + c.value


def unpack_change(body_bytes: bytes) -> Change:
    """Return the change. Raises WireError."""
    if len(body_bytes) < _CHANGE.size:
        raise wire.WireError("body too short")
    act, path, other, handle, flags, mode, uid, gid, size, atime, mtime, value = _CHANGE.unpack_from(body_bytes)
    if act not in Act.ALL or flags & ~Flag.ALL:
        raise wire.WireError(f"an unknown change {act}, {flags:#x}")
    if path > wire.MAX_PATH or other > wire.MAX_PATH or value > MAX_VALUE:
        raise wire.WireError("a change that is too long")
    at = _CHANGE.size
    if len(body_bytes) != at + path + other + value:
        raise wire.WireError("a change of another length than it says")
    texts = (body_bytes[at : at + path], body_bytes[at + path : at + path + other])
    numbers = (handle, flags, mode, uid, gid, size, atime, mtime)
    return Change(act, *texts, *numbers, body_bytes[at + path + other :])


def pack_changed(packed_entries: list[bytes]) -> bytes:
    """The answer to CHANGE and WRITE: what `wire.pack_entry` made of what there is now, `MAX_ENTRIES` at most.

    First of what was changed itself (a mode of 0: it is not there any more; of a file that has lost one of its names it
    is what the others name; CLOSE tells nothing), then of the folder that it is in, then of the folder that it was in.
    Of WRITE and of what a handle names it is the first alone. Names
    are those in their folders, and empty for the root.
    """
    return wire.pack_page(0, packed_entries)


def unpack_changed(untrusted_body: bytes) -> list[wire.Entry]:
    """Return the entries. Raises WireError."""
    _, entries = wire.unpack_page(untrusted_body)
    if len(entries) > MAX_ENTRIES:
        raise wire.WireError(f"{len(entries)} entries of one change")
    return entries


def pack_write(handle: int, offset: int, data: bytes | memoryview) -> bytes:
    """Ask to write to an open file. All of it is written, or an error is the answer. The answer is `pack_changed`'s."""
    return _WRITE.pack(handle, offset) + data


def unpack_write(body_bytes: bytes) -> tuple[int, int, memoryview]:
    """Return (handle, offset, data)."""
    if not _WRITE.size <= len(body_bytes) <= _WRITE.size + MAX_WRITE:
        raise wire.WireError(f"a write of {len(body_bytes)} bytes")
    handle, offset = _WRITE.unpack_from(body_bytes)
    return handle, offset, memoryview(body_bytes)[_WRITE.size :]


def pack_read(handle: int, offset: int, length: int) -> bytes:
    """Ask for bytes of an open file (HANDLE_READ). The answer's body is the bytes, fewer only at the file's end."""
    return _READ.pack(handle, offset, length)


def unpack_read(body_bytes: bytes) -> tuple[int, int, int]:
    """Return (handle, offset, length)."""
    if len(body_bytes) != _READ.size:
        raise wire.WireError("a read of another length")
    handle, offset, length = _READ.unpack(body_bytes)
    if length > wire.MAX_READ:
        raise wire.WireError(f"read of {length} bytes")
    return handle, offset, length


class Result(NamedTuple):
    """What one question of a BATCH came to: the errno of a refusal, or 0; the body of the answer, or words."""

    errno: int
    body: bytes


def item_size(body: bytes) -> int:
    """Return how many bytes a question takes in a BATCH."""
    return _ITEM.size + len(body)


def _pack_items(head: struct.Struct, items: Sequence[tuple[int, bytes]]) -> bytes:
    parts = [part for number, body in items for part in (head.pack(number, len(body)), body)]
    return b"".join([_COUNT.pack(len(items)), *parts])


def _unpack_items(head: struct.Struct, untrusted_body: bytes) -> list[tuple[int, bytes]]:
    if len(untrusted_body) < _COUNT.size:
        raise wire.WireError("body too short")
    (count,), at = _COUNT.unpack_from(untrusted_body), _COUNT.size
    if count > MAX_BATCH:
        raise wire.WireError(f"a batch of {count}")
    items: list[tuple[int, bytes]] = []
    for _ in range(count):
        if at + head.size > len(untrusted_body):
            raise wire.WireError("a batch that is cut off")
        number, length = head.unpack_from(untrusted_body, at)
        at += head.size + length
        if at > len(untrusted_body):
            raise wire.WireError("a batch that is cut off")
        items.append((number, untrusted_body[at - length : at]))
    if at != len(untrusted_body):
        raise wire.WireError("bytes after the end of a batch")
    return items


def pack_batch(questions: Sequence[tuple[int, bytes]]) -> bytes:
    """Ask several (kind, body), of CHANGE and WRITE, one after the other: whether one is refused is no matter to the
    others. The answer is `pack_results`'s.
    """
    return _pack_items(_ITEM, questions)


def unpack_batch(body_bytes: bytes) -> list[tuple[int, bytes]]:
    """Return the questions. Raises WireError."""
    items = _unpack_items(_ITEM, body_bytes)
    if any(kind not in (wire.Kind.CHANGE, wire.Kind.WRITE) for kind, _ in items):
        raise wire.WireError("another question than of a change in a batch")
    return items


def pack_results(results: Sequence[Result]) -> bytes:
    """The answer to BATCH: what each of its questions came to, in their order."""
    return _pack_items(_RESULT, [(each.errno & 0xFFFF, each.body) for each in results])


def unpack_results(untrusted_body: bytes) -> list[Result]:
    """Return what each came to. Raises WireError."""
    return [Result(*item) for item in _unpack_items(_RESULT, untrusted_body)]
