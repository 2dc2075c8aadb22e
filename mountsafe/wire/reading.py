"""What is asked of a file system that is mounted, packed and unpacked: LIST, READ, EXTENTS, LAYOUT, XATTRS, STATFS."""

import struct

from mountsafe.wire.bounds import (
    MAX_BODY,
    MAX_EXTENTS,
    MAX_FILE_EXTENTS,
    MAX_LAYOUT,
    MAX_NAME,
    MAX_PAGE_ENTRIES,
    MAX_PATH,
    MAX_READ,
    MAX_TARGET,
    MAX_XATTR_VALUE,
    MAX_XATTRS,
)
from mountsafe.wire.facts import Entry, Extent, Statfs
from mountsafe.wire.frames import U16, U32, Body, WireError, pack_text, unpack_text

_LIST = struct.Struct(">QH")
_READ = struct.Struct(">QIH")
# The beginning of Linux's `struct statx` (include/uapi/linux/stat.h), which the guest passes on as its kernel fills it:
# links, owner, group, mode, inode, size, blocks, the seconds and nanoseconds of access, of a change of the inode and of
# a change of the content. Then the lengths of the name and of a link's target. All in the order of the processor, which
# is the same at both ends.
_ENTRY = struct.Struct("=16xIIIH2xQQQ8xqI20xqI4xqI4xHH")
_LENGTHS = struct.Struct("=HH")
STATX = _ENTRY.size - _LENGTHS.size  # bytes of the statx in an entry
_SECOND = 1_000_000_000  # ns
_FAR = (1 << 63) // _SECOND - 5  # seconds from the epoch whose ns fit 64 bits, whatever the nanoseconds are
_EXTENT = struct.Struct(">QQQB")
_PAGE = struct.Struct(">QH")
_EXTENTS = struct.Struct(">QI")
_FILE_LAYOUT = struct.Struct(">BH")
_STATFS = struct.Struct(">8Q")


# --- LIST ----------------------------------------------------------------------------------------------------------
def pack_list(path: bytes, cursor: int) -> bytes:
    """Ask for a page of the directory at `path` (from the root, no leading slash); cursor 0 is the first page."""
    return _LIST.pack(cursor, len(path)) + path


def unpack_list(body_bytes: bytes) -> tuple[bytes, int]:
    """Return (path, cursor)."""
    body = Body(body_bytes)
    cursor, length = body.unpack(_LIST)
    path = body.take(length, MAX_PATH)
    body.end()
    return path, cursor


def _pack_extents(extents: tuple[Extent, ...] | list[Extent]) -> bytes:
    return b"".join([_EXTENT.pack(*extent) for extent in extents])


def _unpack_extents(body: Body, count: int) -> tuple[Extent, ...]:
    return tuple(Extent._make(values) for values in _EXTENT.iter_unpack(body.take(count * _EXTENT.size, MAX_BODY)))


def pack_entry(name: bytes, numbers: tuple[int, ...], target: bytes) -> bytes:
    """Return the bytes of one `Entry`. `numbers`: its fields from mode to ctime; `struct.error` if one is too large."""
    mode, nlink, uid, gid, ino, size, blocks, accessed, modified, changed = numbers
    times = *divmod(accessed, _SECOND), *divmod(changed, _SECOND), *divmod(modified, _SECOND)
    return _ENTRY.pack(nlink, uid, gid, mode, ino, size, blocks, *times, len(name), len(target)) + name + target


def pack_told(told: memoryview, name: bytes, target: bytes) -> bytes:
    """The same of `STATX` bytes as statx(2) has filled them: the guest does so for every file, and has little time."""
    return b"".join((told, _LENGTHS.pack(len(name), len(target)), name, target))


def unpack_entries(data: bytes, at: int, count: int) -> list[Entry]:
    """Return `count` entries that fill the rest of `data` from `at` on. Spelled out: the host's time is spent here."""
    entries: list[Entry] = []
    unpack, size, end = _ENTRY.unpack_from, _ENTRY.size, len(data)
    for _ in range(count):
        if at + size > end:
            raise WireError("body too short")
        nlink, uid, gid, mode, ino, length, blocks, a, a_ns, c, c_ns, m, m_ns, name_length, target_length = unpack(
            data, at
        )
        if name_length > MAX_NAME or target_length > MAX_TARGET:
            raise WireError(f"a name of {name_length} bytes, or a target of {target_length}")
        name_at = at + size
        target_at = name_at + name_length
        at = target_at + target_length
        accessed, modified, changed = a * _SECOND + a_ns, m * _SECOND + m_ns, c * _SECOND + c_ns
        if not (-_FAR < a < _FAR and -_FAR < m < _FAR and -_FAR < c < _FAR):
            accessed, modified, changed = _near(accessed), _near(modified), _near(changed)
        numbers = mode, nlink, uid, gid, ino, length, blocks, accessed, modified, changed
        entries.append(Entry._make((data[name_at:target_at], *numbers, data[target_at:at])))
    if at != end:
        raise WireError("entries that end elsewhere than their body")
    return entries


def _near(time: int) -> int:
    """Return a time in ns, or the last one that fits 64 bits: there are media with times beyond the year 2262."""
    return max(-(1 << 63), min((1 << 63) - 1, time))


def pack_page(cursor: int, packed_entries: list[bytes]) -> bytes:
    """The answer to LIST; `cursor` asks for the next page, 0 says that this is the last."""
    return _PAGE.pack(cursor, len(packed_entries)) + b"".join(packed_entries)


def unpack_page(untrusted_body: bytes) -> tuple[int, list[Entry]]:
    """Return (next cursor or 0, entries)."""
    cursor, count = Body(untrusted_body).unpack(_PAGE)
    if count > MAX_PAGE_ENTRIES:
        raise WireError(f"{count} entries in a page")
    return cursor, unpack_entries(untrusted_body, _PAGE.size, count)


# --- READ, EXTENTS, XATTRS, STATFS ---------------------------------------------------------------------------------
def pack_read(path: bytes, offset: int, length: int) -> bytes:
    """Ask for `length` bytes of a file at `offset`. The answer's body is the bytes, fewer only at the file's end."""
    return _READ.pack(offset, length, len(path)) + path


def unpack_read(body_bytes: bytes) -> tuple[bytes, int, int]:
    """Return (path, offset, length)."""
    body = Body(body_bytes)
    offset, length, path_length = body.unpack(_READ)
    if length > MAX_READ:
        raise WireError(f"read of {length} bytes")
    path = body.take(path_length, MAX_PATH)
    body.end()
    return path, offset, length


def pack_extents_request(path: bytes, offset: int) -> bytes:
    """Ask for the extents of a file from `offset` on."""
    return pack_list(path, offset)


def unpack_extents_request(body_bytes: bytes) -> tuple[bytes, int]:
    """Return (path, offset)."""
    return unpack_list(body_bytes)


def pack_extents(extents: list[Extent], following: int) -> bytes:
    """The answer to EXTENTS; `following` is the offset to ask from next, 0 when these reach the file's end."""
    return _EXTENTS.pack(following, len(extents)) + _pack_extents(extents)


def unpack_extents(untrusted_body: bytes) -> tuple[tuple[Extent, ...], int]:
    """Return (extents, next offset or 0)."""
    body = Body(untrusted_body)
    following, count = body.unpack(_EXTENTS)
    if count > MAX_EXTENTS:
        raise WireError(f"{count} extents")
    extents = _unpack_extents(body, count)
    body.end()
    return extents, following


def pack_layout_request(folder: bytes, names: list[bytes]) -> bytes:
    """Ask for the extents of several files of the folder at path `folder`."""
    return U16.pack(len(folder)) + folder + U16.pack(len(names)) + pack_text(*names)


def unpack_layout_request(body_bytes: bytes) -> tuple[bytes, list[bytes]]:
    """Return (folder, names)."""
    body = Body(body_bytes)
    folder = body.take(body.unpack(U16)[0], MAX_PATH)
    (count,) = body.unpack(U16)
    if count > MAX_LAYOUT:
        raise WireError(f"{count} names")
    names = [unpack_text(body) for _ in range(count)]
    body.end()
    return folder, names


def pack_file_layout(extents: list[Extent], more: bool) -> bytes:
    """The extents of one file, and whether more must be asked for by EXTENTS."""
    return _FILE_LAYOUT.pack(more, len(extents)) + _pack_extents(extents)


def pack_layout(packed_files: list[bytes]) -> bytes:
    """The answer to LAYOUT: for each name what `pack_file_layout` made."""
    return U16.pack(len(packed_files)) + b"".join(packed_files)


def unpack_layout(untrusted_body: bytes) -> list[tuple[tuple[Extent, ...], bool]]:
    """Return (extents, more) of each file."""
    body = Body(untrusted_body)
    (count,) = body.unpack(U16)
    if count > MAX_LAYOUT:
        raise WireError(f"the layout of {count} files")
    files = []
    for _ in range(count):
        more, extent_count = body.unpack(_FILE_LAYOUT)
        if extent_count > MAX_FILE_EXTENTS:
            raise WireError(f"{extent_count} extents in a layout")
        files.append((_unpack_extents(body, extent_count), bool(more)))
    body.end()
    return files


def pack_xattrs(xattrs: list[tuple[bytes, bytes]]) -> bytes:
    """The answer to XATTRS: as many pairs as fit a frame."""
    parts: list[bytes] = []
    size = U16.size
    for name, value in xattrs[:MAX_XATTRS]:
        part = U16.pack(len(name)) + name + U32.pack(len(value)) + value
        size += len(part)
        if size > MAX_BODY:
            break
        parts.append(part)
    return U16.pack(len(parts)) + b"".join(parts)


def unpack_xattrs(untrusted_body: bytes) -> list[tuple[bytes, bytes]]:
    """Return (name, value) pairs."""
    body = Body(untrusted_body)
    (count,) = body.unpack(U16)
    if count > MAX_XATTRS:
        raise WireError(f"{count} extended attributes")
    pairs = []
    for _ in range(count):
        name = unpack_text(body)
        pairs.append((name, body.take(body.unpack(U32)[0], MAX_XATTR_VALUE)))
    body.end()
    return pairs


def pack_statfs(statfs: Statfs) -> bytes:
    """The answer to STATFS."""
    return _STATFS.pack(*statfs)


def unpack_statfs(untrusted_body: bytes) -> Statfs:
    """Return the figures of an answer to STATFS."""
    body = Body(untrusted_body)
    statfs = Statfs(*body.unpack(_STATFS))
    body.end()
    return statfs
