"""The agent protocol, without I/O: the one file that runs at both ends of the wall.

Standard library only, and of that only what Debian's python3-minimal has: this file is copied into the appliance.

A stream carries frames in both directions, each a header (`HEADER`) and a body. The host sends requests with an id
of its choice; the guest answers each with exactly one frame of the same id, whose kind is the request's kind
(success) or `Kind.ERROR`. Requests may be pipelined; answers come in the order in which the guest finishes them.
Numbers are big-endian, but for those of an entry (`_ENTRY`). Names, link targets and labels are bytes: a file name need
not be text.

Decoding checks structure and the bounds below, and raises `WireError`. What the values mean (a name with a slash,
an extent beyond the device) is checked on the host, by `mountsafe.filesystem.untrusted`.
"""

import struct
from typing import NamedTuple

VERSION = 4  # of what both ends say; an appliance that was built with another one is told so

# --- bounds: all of them, and why ---------------------------------------------------------------------------------
SECTOR_SIZES = (512, 4096, 2048, 1024)  # that Linux knows, the likely ones first
MAX_READ = 1 << 20  # the largest read that Linux's FUSE client asks for
MAX_BODY = MAX_READ + (64 << 10)  # a read's answer, or a page of a directory, and its fixed fields
MAX_NAME = 255  # NAME_MAX: longer names cannot be passed on to the kernel
MAX_TARGET = 4095  # PATH_MAX less its NUL
MAX_PATH = 32 << 10  # deeper trees than PATH_MAX exist; the agent walks them step by step
MAX_PAGE_ENTRIES = 240  # entries in one page of a directory: the largest fit a body, and others wait for some ms only
MAX_FILE_EXTENTS = 16  # extents of a file told along with others; files with more are asked for one by one
MAX_EXTENTS = 8192  # extents in one answer to EXTENTS
MAX_LAYOUT = 128  # files in one question for LAYOUT: few enough to be answered in some ms
MAX_TEXT = 255  # labels, types, identifiers
MAX_MESSAGE = 2000  # an error's words
MAX_VOLUMES = 256  # disks, partitions, arrays and logical volumes of one medium
MAX_PARENTS = 32  # volumes that one is made of
MAX_PLACES = 128  # runs of one volume on the medium; where there are more, the agent reads
MAX_ALL_PLACES = 4096  # of all volumes together: what checking them costs
MAX_ZONE = 16 << 10  # a time zone's rules: four times the longest of them
MAX_OPTIONS = 16  # of one mount
MAX_XATTRS = 512  # extended attributes of one file
MAX_XATTR_VALUE = 64 << 10  # XATTR_SIZE_MAX
MAX_CHECK_WORDS = 32 << 10  # of what a checker said: its beginning and its end

HEADER = struct.Struct(">IIB")  # body length, request id, kind


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
    SYNC = 13
    UNMOUNT = 14  # all that was changed is on the disk, and the file system is left as clean; the answer is empty
    CHECK = 15  # whether a file system has errors


# What may be asked on a stream, before its file system is mounted and after: one stream serves one mount, once.
BEFORE_MOUNT = frozenset({Kind.HELLO, Kind.PROBE, Kind.MOUNT, Kind.CHECK})
AFTER_MOUNT = frozenset({Kind.LIST, Kind.READ, Kind.EXTENTS, Kind.XATTRS, Kind.STATFS, Kind.LAYOUT})
CHANGING = frozenset({Kind.CHANGE, Kind.WRITE, Kind.HANDLE_READ, Kind.SYNC, Kind.UNMOUNT})  # with AFTER_MOUNT


class ExtentKind:
    """How the bytes of an extent are to be had. What no extent covers is read through the agent."""

    DATA = 1  # at `physical` on the file system's device, byte for byte
    ZERO = 2  # a hole or unwritten space: zeros, `physical` has no meaning


class MountState:
    """What had to be done about a journal to mount."""

    CLEAN = 0
    RECOVERED = 1  # replayed into a copy-on-write layer in the guest's memory
    SKIPPED = 2  # mounted without replay: the newest changes are missing
    REPAIRED = 3  # for writing: its type's checker has put it in order first, on the medium


class CheckOutcome:
    """What came of checking a file system."""

    CLEAN = 0
    ERRORS = 1  # as it is now, after a repair as well
    REPAIRED = 2  # it had errors, and has none now
    FAILED = 3  # its checker could not look at it, or ended in an unknown way
    MISSING = 4  # its checker is not in the appliance
    NONE = 5  # its type has no checker
    TIME = 6  # it was not done in time

    ALL = frozenset({CLEAN, ERRORS, REPAIRED, FAILED, MISSING, NONE, TIME})


class VolumeKind:
    """What a volume is."""

    DISK = 1
    PARTITION = 2  # of the disk, or of an array or a logical volume
    LOGICAL = 3  # a logical volume of LVM
    ARRAY = 4  # md


class Trouble:
    """Why a volume that the medium tells of is not there to be mounted."""

    NONE = 0
    INCOMPLETE = 1  # too many of its members are missing
    DUPLICATE = 2  # others have the same name or identity
    REFUSED = 3  # the guest's tools or its kernel cannot start it
    CUT_OFF = 4  # it begins after the end of the medium


class Resort:
    """What it took to open something whose usual structures are damaged or missing: bits, of a volume or a mount."""

    BACKUP_TABLE = 1  # its partitions are those of the GPT's copy at the end of the disk
    BACKUP_SUPERBLOCK = 2  # the copy of an ext or HFS+ superblock
    BACKUP_BOOT = 4  # the copy of a boot sector: FAT32, exFAT, NTFS
    SECOND_FAT = 8
    MFT_MIRROR = 16  # NTFS's copy of the first records of its file table
    DEGRADED = 32  # btrfs: of its devices some are missing
    OLDER_ROOT = 64  # btrfs: an older root of its trees
    UNVERIFIED = 128  # btrfs: damaged trees are passed over, and no checksum of a file's bytes is looked at
    JOURNAL_ELSEWHERE = 256  # its journal is on another device
    JOURNAL_UNREADABLE = 512  # its journal is damaged or not there, and nothing in it was missing
    AMBIGUOUS = 1024  # there are signatures of other types on it
    UNFINISHED = 2048  # of the disk: there was more on it than could be looked at
    LAST_SESSION = 4096  # of several on a disc
    PART_OF_DISC = 8192  # a session whose disc is not there before it
    ALL = 16383


class Extent(NamedTuple):
    """A run of a file: offsets and length in bytes; physical is relative to the file system's device."""

    logical: int
    physical: int
    length: int
    kind: int


class Entry(NamedTuple):
    """One directory entry with the attributes of its inode. Sizes in bytes, blocks of 512 bytes, times in ns."""

    name: bytes
    mode: int
    nlink: int
    uid: int
    gid: int
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    target: bytes


class Place(NamedTuple):
    """A run of a volume that lies on the medium as it is: where in the volume, where on the medium, and its length."""

    offset: int
    physical: int
    length: int


class Volume(NamedTuple):
    """One thing on the medium that may hold a file system, in bytes. Volumes are a graph: parents come first.

    `start` is where it begins in its parent, for partitions. `parents` are positions in the answer's list; a partition
    without any is the disk's. `name` is the array's, or VG/LV. `present` of `wanted` members are there (0 of 0: it has
    no members that could be missing). `places`: those of its bytes that can be read from the medium, for what is
    neither the disk nor one of its partitions. `resorts`: bits of `Resort`. `claimed`: the bytes that its file system,
    or the table that has it, says it has, if those are more than there are. `sector`: the size of the sectors that the
    table counts which a partition is in, if they are not the disk's own. `inside`: its bytes are those of the file
    system that the disk has as a whole.
    """

    device: bytes
    kind: int
    number: int
    start: int
    size: int
    fstype: bytes
    usage: bytes
    label: bytes
    uuid: bytes
    table: bytes
    part_name: bytes
    name: bytes = b""
    parents: tuple[int, ...] = ()
    present: int = 0
    wanted: int = 0
    trouble: int = Trouble.NONE
    places: tuple[Place, ...] = ()
    resorts: int = 0
    claimed: int = 0
    sector: int = 0
    inside: bool = False


class Mounted(NamedTuple):
    """The answer to MOUNT: the type that the kernel took, MountState, whether DATA extents can be told, the root, and
    bits of `Resort`.
    """

    fstype: bytes
    state: int
    direct: bool
    root: Entry
    resorts: int = 0


class Checked(NamedTuple):
    """The answer to CHECK: a `CheckOutcome`, what was done about a journal (CLEAN, RECOVERED or SKIPPED of
    `MountState`), the checker's exit code (negative: the signal that ended it), and what it said.
    """

    outcome: int
    journal: int
    code: int
    words: bytes


class Statfs(NamedTuple):
    """statvfs(3) of the mounted file system; counts in blocks of frsize bytes."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namemax: int


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


class _Body:
    """A cursor over a body that never reads past its end."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        end = self._at + layout.size
        if end > len(self._body):
            raise WireError("body too short")
        values = layout.unpack_from(self._body, self._at)
        self._at = end
        return values

    def take(self, length: int, limit: int) -> bytes:
        if length > limit:
            raise WireError(f"field of {length} bytes where {limit} are allowed")
        end = self._at + length
        if end > len(self._body):
            raise WireError("body too short")
        data = self._body[self._at : end]
        self._at = end
        return data

    def rest(self, limit: int) -> bytes:
        return self.take(len(self._body) - self._at, limit)

    def end(self) -> None:
        if self._at != len(self._body):
            raise WireError("bytes after the end of the body")


_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
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
_VOLUME = struct.Struct(">BIQQHHBBHHQH?")
_PLACE = struct.Struct(">QQQ")
_PAGE = struct.Struct(">QH")
_EXTENTS = struct.Struct(">QI")
_FILE_LAYOUT = struct.Struct(">BH")
_MOUNTED = struct.Struct(">BBH")
_STATFS = struct.Struct(">8Q")
_CHECK = struct.Struct(">I?")
_CHECKED = struct.Struct(">BBiI")


def _pack_text(*texts: bytes) -> bytes:
    return b"".join(_U16.pack(len(text)) + text for text in texts)


def _unpack_text(body: _Body, limit: int = MAX_TEXT) -> bytes:
    return body.take(body.unpack(_U16)[0], limit)


# --- HELLO, ERROR --------------------------------------------------------------------------------------------------
_TIME = struct.Struct(">Q")


def pack_hello_request(now: int) -> bytes:
    """The host's first word: the time, in ns since the epoch."""
    return _TIME.pack(now)


def unpack_hello_request(body_bytes: bytes) -> int:
    """Return the time."""
    body = _Body(body_bytes)
    (now,) = body.unpack(_TIME)
    body.end()
    return now


def pack_hello(version: int, release: bytes) -> bytes:
    """The guest's answer to HELLO: protocol version and kernel release."""
    return _U16.pack(version) + release


def unpack_hello(untrusted_body: bytes) -> tuple[int, bytes]:
    """Return (version, kernel release)."""
    body = _Body(untrusted_body)
    return body.unpack(_U16)[0], body.rest(MAX_TEXT)


def pack_error(errno: int, message: bytes) -> bytes:
    """An answer that says why not: errno and words, cut to `MAX_MESSAGE`."""
    return _U16.pack(errno & 0xFFFF) + message[:MAX_MESSAGE]


def unpack_error(untrusted_body: bytes) -> tuple[int, bytes]:
    """Return (errno, message)."""
    body = _Body(untrusted_body)
    return body.unpack(_U16)[0], body.rest(MAX_MESSAGE)


# --- PROBE ---------------------------------------------------------------------------------------------------------
def pack_volumes(volumes: list[Volume]) -> bytes:
    """The answer to PROBE."""
    parts = [_U16.pack(len(volumes))]
    for v in volumes:
        counts = (v.present, v.wanted, v.trouble, len(v.parents), len(v.places), v.resorts, v.claimed, v.sector)
        parts.append(_VOLUME.pack(v.kind, v.number, v.start, v.size, *counts, v.inside))
        parts.append(_pack_text(v.device, v.fstype, v.usage, v.label, v.uuid, v.table, v.part_name, v.name))
        parts += [_U16.pack(parent) for parent in v.parents]
        parts += [_PLACE.pack(*place) for place in v.places]
    return b"".join(parts)


def unpack_volumes(untrusted_body: bytes) -> list[Volume]:
    """Return the volumes of an answer to PROBE."""
    body = _Body(untrusted_body)
    (count,) = body.unpack(_U16)
    if count > MAX_VOLUMES:
        raise WireError(f"{count} volumes")
    volumes = []
    all_places = 0
    for _ in range(count):
        kind, number, start, size, present, wanted, trouble, *counts = body.unpack(_VOLUME)
        parent_count, place_count, resorts, claimed, sector, inside = counts
        all_places += place_count
        if parent_count > MAX_PARENTS or place_count > MAX_PLACES or all_places > MAX_ALL_PLACES:
            raise WireError(f"a volume of {parent_count} others in {place_count} places")
        *texts, name = (_unpack_text(body) for _ in range(8))
        device, fstype, usage, label, uuid, table, part_name = texts
        parents = tuple(body.unpack(_U16)[0] for _ in range(parent_count))
        places = tuple(Place._make(body.unpack(_PLACE)) for _ in range(place_count))
        told = (device, kind, number, start, size, fstype, usage, label, uuid, table, part_name)
        layers = (name, parents, present, wanted, trouble, places, resorts, claimed)
        volumes.append(Volume(*told, *layers, sector, bool(inside)))
    body.end()
    return volumes


# --- MOUNT ---------------------------------------------------------------------------------------------------------
_WRITABLE, _AGAIN = 1, 2  # bits of the last byte of a MOUNT


def pack_mount(
    device: bytes, fstype: bytes, zone: bytes, options: tuple[bytes, ...] = (), writable: bool = False
) -> bytes:
    """Ask to mount `device` (a name as PROBE gave it), read-only or `writable`, with options of `mountsafe.fsoptions`.

    `zone`: by which local times are told, a TZif file's bytes or a rule as POSIX's TZ has it.
    """
    texts = _pack_text(device, fstype, zone)
    return texts + _U16.pack(len(options)) + _pack_text(*options) + bytes([writable])


def unpack_mount(body_bytes: bytes) -> tuple[bytes, bytes, bytes, tuple[bytes, ...], bool]:
    """Return (device, fstype, zone, options, writable)."""
    body = _Body(body_bytes)
    device, fstype, zone = _unpack_text(body), _unpack_text(body), _unpack_text(body, MAX_ZONE)
    (count,) = body.unpack(_U16)
    if count > MAX_OPTIONS:
        raise WireError(f"{count} options")
    options = tuple(_unpack_text(body) for _ in range(count))
    (flags,) = body.take(1, 1)
    body.end()
    return device, fstype, zone, options, bool(flags & _WRITABLE)


def mounted_again(mount: bytes) -> bytes:
    """Return a question of `pack_mount` for the next virtual machine, where the last one died while it wrote."""
    return mount[:-1] + bytes([mount[-1] | _AGAIN])


def is_mounted_again(body_bytes: bytes) -> bool:
    """Whether it is one of those; to be asked of what `unpack_mount` takes."""
    return bool(body_bytes[-1] & _AGAIN)


def pack_mounted(mounted: Mounted) -> bytes:
    """The answer to MOUNT."""
    root = pack_entry(mounted.root.name, mounted.root[1:-1], mounted.root.target)
    return _MOUNTED.pack(mounted.state, mounted.direct, mounted.resorts) + _pack_text(mounted.fstype) + root


def unpack_mounted(untrusted_body: bytes) -> Mounted:
    """Return what was mounted, and the attributes of its root (whose name is empty)."""
    body = _Body(untrusted_body)
    state, direct, resorts = body.unpack(_MOUNTED)
    fstype = _unpack_text(body)
    (root,) = _unpack_entries(body.rest(MAX_BODY), 0, 1)
    return Mounted(fstype, state, bool(direct), root, resorts)


# --- CHECK ---------------------------------------------------------------------------------------------------------
def pack_check(device: bytes, fstype: bytes, seconds: int, repair: bool = False) -> bytes:
    """Ask for a check of `device` (a name as PROBE gave it) by its type's checker, in so many seconds at the most."""
    return _pack_text(device, fstype) + _CHECK.pack(seconds, repair)


def unpack_check(body_bytes: bytes) -> tuple[bytes, bytes, int, bool]:
    """Return (device, fstype, seconds, repair)."""
    body = _Body(body_bytes)
    device, fstype = _unpack_text(body), _unpack_text(body)
    seconds, repair = body.unpack(_CHECK)
    body.end()
    return device, fstype, seconds, bool(repair)


def pack_checked(checked: Checked) -> bytes:
    """The answer to CHECK."""
    return _CHECKED.pack(checked.outcome, checked.journal, checked.code, len(checked.words)) + checked.words


def unpack_checked(untrusted_body: bytes) -> Checked:
    """Return what came of a check."""
    body = _Body(untrusted_body)
    outcome, journal, code, length = body.unpack(_CHECKED)
    words = body.take(length, MAX_CHECK_WORDS)
    body.end()
    if outcome not in CheckOutcome.ALL or journal > MountState.SKIPPED:
        raise WireError(f"a check of outcome {outcome}, with a journal of state {journal}")
    return Checked(outcome, journal, code, words)


# --- LIST ----------------------------------------------------------------------------------------------------------
def pack_list(path: bytes, cursor: int) -> bytes:
    """Ask for a page of the directory at `path` (from the root, no leading slash); cursor 0 is the first page."""
    return _LIST.pack(cursor, len(path)) + path


def unpack_list(body_bytes: bytes) -> tuple[bytes, int]:
    """Return (path, cursor)."""
    body = _Body(body_bytes)
    cursor, length = body.unpack(_LIST)
    path = body.take(length, MAX_PATH)
    body.end()
    return path, cursor


def _pack_extents(extents: tuple[Extent, ...] | list[Extent]) -> bytes:
    return b"".join([_EXTENT.pack(*extent) for extent in extents])


def _unpack_extents(body: _Body, count: int) -> tuple[Extent, ...]:
    return tuple(Extent._make(values) for values in _EXTENT.iter_unpack(body.take(count * _EXTENT.size, MAX_BODY)))


def pack_entry(name: bytes, numbers: tuple[int, ...], target: bytes) -> bytes:
    """Return the bytes of one `Entry`. `numbers`: its fields from mode to ctime; `struct.error` if one is too large."""
    mode, nlink, uid, gid, ino, size, blocks, accessed, modified, changed = numbers
    times = *divmod(accessed, _SECOND), *divmod(changed, _SECOND), *divmod(modified, _SECOND)
    return _ENTRY.pack(nlink, uid, gid, mode, ino, size, blocks, *times, len(name), len(target)) + name + target


def pack_told(told: memoryview, name: bytes, target: bytes) -> bytes:
    """The same of `STATX` bytes as statx(2) has filled them: the guest does so for every file, and has little time."""
    return b"".join((told, _LENGTHS.pack(len(name), len(target)), name, target))


def _unpack_entries(data: bytes, at: int, count: int) -> list[Entry]:
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
    cursor, count = _Body(untrusted_body).unpack(_PAGE)
    if count > MAX_PAGE_ENTRIES:
        raise WireError(f"{count} entries in a page")
    return cursor, _unpack_entries(untrusted_body, _PAGE.size, count)


# --- READ, EXTENTS, XATTRS, STATFS ---------------------------------------------------------------------------------
def pack_read(path: bytes, offset: int, length: int) -> bytes:
    """Ask for `length` bytes of a file at `offset`. The answer's body is the bytes, fewer only at the file's end."""
    return _READ.pack(offset, length, len(path)) + path


def unpack_read(body_bytes: bytes) -> tuple[bytes, int, int]:
    """Return (path, offset, length)."""
    body = _Body(body_bytes)
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
    body = _Body(untrusted_body)
    following, count = body.unpack(_EXTENTS)
    if count > MAX_EXTENTS:
        raise WireError(f"{count} extents")
    extents = _unpack_extents(body, count)
    body.end()
    return extents, following


def pack_layout_request(folder: bytes, names: list[bytes]) -> bytes:
    """Ask for the extents of several files of the folder at path `folder`."""
    return _U16.pack(len(folder)) + folder + _U16.pack(len(names)) + _pack_text(*names)


def unpack_layout_request(body_bytes: bytes) -> tuple[bytes, list[bytes]]:
    """Return (folder, names)."""
    body = _Body(body_bytes)
    folder = body.take(body.unpack(_U16)[0], MAX_PATH)
    (count,) = body.unpack(_U16)
    if count > MAX_LAYOUT:
        raise WireError(f"{count} names")
    names = [_unpack_text(body) for _ in range(count)]
    body.end()
    return folder, names


def pack_file_layout(extents: list[Extent], more: bool) -> bytes:
    """The extents of one file, and whether more must be asked for by EXTENTS."""
    return _FILE_LAYOUT.pack(more, len(extents)) + _pack_extents(extents)


def pack_layout(packed_files: list[bytes]) -> bytes:
    """The answer to LAYOUT: for each name what `pack_file_layout` made."""
    return _U16.pack(len(packed_files)) + b"".join(packed_files)


def unpack_layout(untrusted_body: bytes) -> list[tuple[tuple[Extent, ...], bool]]:
    """Return (extents, more) of each file."""
    body = _Body(untrusted_body)
    (count,) = body.unpack(_U16)
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
    size = _U16.size
    for name, value in xattrs[:MAX_XATTRS]:
        part = _U16.pack(len(name)) + name + _U32.pack(len(value)) + value
        size += len(part)
        if size > MAX_BODY:
            break
        parts.append(part)
    return _U16.pack(len(parts)) + b"".join(parts)


def unpack_xattrs(untrusted_body: bytes) -> list[tuple[bytes, bytes]]:
    """Return (name, value) pairs."""
    body = _Body(untrusted_body)
    (count,) = body.unpack(_U16)
    if count > MAX_XATTRS:
        raise WireError(f"{count} extended attributes")
    pairs = []
    for _ in range(count):
        name = _unpack_text(body)
        pairs.append((name, body.take(body.unpack(_U32)[0], MAX_XATTR_VALUE)))
    body.end()
    return pairs


def pack_statfs(statfs: Statfs) -> bytes:
    """The answer to STATFS."""
    return _STATFS.pack(*statfs)


def unpack_statfs(untrusted_body: bytes) -> Statfs:
    """Return the figures of an answer to STATFS."""
    body = _Body(untrusted_body)
    statfs = Statfs(*body.unpack(_STATFS))
    body.end()
    return statfs
