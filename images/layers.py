"""Arrays and volume groups as bytes: what mdadm and LVM write, made without a kernel that has either.

md's superblocks: include/uapi/linux/raid/md_p.h; how parity goes round: drivers/md/raid5.c. LVM's label, metadata area
and text: lib/format_text/layout.h and lib/label/label.h of LVM2. Contents are the caller's; everything here is the same
at each run.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

MIB = 1 << 20
EXTENT = 4 * MIB  # of a volume group
SECTOR = 512
MD_DATA = MIB  # where an array's bytes begin in its members
CHUNK = 64 << 10  # of a striped array
_CREATED = 1_700_000_000
_LVM_CRC = 0xF597A6CF
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


# --- md ------------------------------------------------------------------------------------------------------------
def array_members(
    data: bytes, level: int, count: int, name: str = "nas:2", uuid: bytes = bytes(range(16)), metadata: str = "1.2"
) -> list[bytes]:
    """Return the members of an array that holds `data`: level 0, 1, 4, 5, 6 or 10 in mdadm's own layouts."""
    if level == 1:
        parts = [data] * count
    else:
        kept = {4: count - 1, 5: count - 1, 6: count - 2}.get(level, count)
        data += bytes(-len(data) % (CHUNK * kept))
        chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
        rows = [_row(level, chunks, number, count, kept) for number in range(_rows(level, len(chunks), count, kept))]
        parts = [b"".join(row[number] for row in rows) for number in range(count)]
    geometry = _Geometry(level, count, name, uuid)
    return [_member(part, number, geometry, metadata) for number, part in enumerate(parts)]


def _rows(level: int, chunks: int, count: int, kept: int) -> int:
    return -(-2 * chunks // count) if level == 10 else chunks // kept


def _row(level: int, chunks: list[bytes], row: int, count: int, kept: int) -> list[bytes]:
    """Return the chunk that each member has in a row. Parity goes round, leftwards, and data follows it."""
    if level == 10:  # two copies of each, beside each other
        return [(chunks + chunks)[(row * count + number) // 2] for number in range(count)]
    mine = chunks[row * kept : (row + 1) * kept]
    if level == 0:
        return mine
    if level == 4:
        return [*mine, _parity(mine)]
    parities = [_parity(mine)] if level == 5 else [_parity(mine), _syndrome(mine)]
    first = count - 1 - row % count
    found = [b""] * count
    for number, chunk in enumerate(parities + mine):
        found[(first + number) % count] = chunk
    return found


def _parity(chunks: Sequence[bytes]) -> bytes:
    total = 0
    for chunk in chunks:
        total ^= int.from_bytes(chunk, "little")
    return total.to_bytes(CHUNK, "little")


def _syndrome(chunks: Sequence[bytes]) -> bytes:
    """Return RAID 6's second parity: the sum of 2**n times chunk n in GF(2**8), by Horner's rule."""
    total = bytes(CHUNK)
    for chunk in reversed(chunks):
        total = _parity([total.translate(_DOUBLED), chunk])
    return total


_DOUBLED = bytes((value << 1 ^ (0x1D if value & 0x80 else 0)) & 0xFF for value in range(256))
_LAYOUTS = {5: 2, 6: 2, 10: 0x102}  # left-symmetric; two copies, near each other


@dataclass(frozen=True)
class _Geometry:
    """What all members of an array say alike."""

    level: int
    count: int
    name: str
    uuid: bytes

    @property
    def chunk(self) -> int:
        """In bytes; 0 where there are none."""
        return 0 if self.level == 1 else CHUNK


def _member(part: bytes, number: int, geometry: _Geometry, metadata: str) -> bytes:
    """Return a member with its superblock where its version has it: at the end, or before the data."""
    if metadata == "0.90":
        size = -(-len(part) // CHUNK) * CHUNK
        return part + bytes(size - len(part)) + _old_superblock(number, geometry, len(part)) + bytes(CHUNK - 4096)
    if metadata == "1.0":
        part += bytes(-len(part) % 4096)
        return part + _superblock(number, geometry, 0, len(part), len(part)).ljust(8192, b"\0")
    at = {"1.1": 0, "1.2": 4096}[metadata]
    head = bytes(at) + _superblock(number, geometry, MD_DATA, at, len(part))
    return head.ljust(MD_DATA, b"\0") + part


def _superblock(number: int, geometry: _Geometry, start: int, at: int, length: int) -> bytes:
    sectors = length // SECTOR
    head = struct.pack(
        "<IIII16s32sQiIQII", 0xA92B4EFC, 1, 0, 0, geometry.uuid, geometry.name.encode(), _CREATED, geometry.level,
        _LAYOUTS.get(geometry.level, 0), sectors if geometry.level else 0, geometry.chunk // SECTOR, geometry.count,
    )  # fmt: skip
    head += bytes(32)  # no bitmap, no reshape
    device = struct.pack("<QQQQII", start // SECTOR, sectors, at // SECTOR, 0, number, 0)
    device += bytes([number + 1]) * 16 + struct.pack("<BBHI", 0, 0, 0, 0)
    tail = struct.pack("<QQQII32x", _CREATED, 100, (1 << 64) - 1, 0, 128)
    roles = struct.pack("<128H", *range(geometry.count), *[0xFFFF] * (128 - geometry.count))
    return _summed(bytearray(head + device + tail + roles), 216)


def _old_superblock(number: int, geometry: _Geometry, length: int) -> bytes:
    """Return the superblock of version 0.90, which knows no name: md_p.h's mdp_super_t, in words of 4 bytes."""
    uuid = struct.unpack("<4I", geometry.uuid)
    count = geometry.count
    words = [0] * 1024
    words[:16] = [
        0xA92B4EFC, 0, 90, 0, 0, uuid[0], _CREATED, geometry.level, length // 1024, count, count, 2, 0, *uuid[1:],
    ]  # fmt: skip
    words[32:40] = [_CREATED, 1, count, count, 0, 0, 0, 100]
    words[64:66] = [_LAYOUTS.get(geometry.level, 0), geometry.chunk]
    for disk, at in [(disk, 128 + 32 * disk) for disk in range(count)] + [(number, 992)]:
        words[at : at + 5] = [disk, 8, disk, disk, 0x6]  # active, in step
    return _summed(bytearray(struct.pack("<1024I", *words)), 38 * 4)


def _summed(block: bytearray, at: int) -> bytes:
    total = sum(struct.unpack(f"<{len(block) // 4}I", block))
    struct.pack_into("<I", block, at, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return bytes(block)


# --- LVM -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """Extents of a logical volume, one after the other on a physical volume: its number, the first one there."""

    volume: int
    first: int
    count: int


@dataclass(frozen=True)
class Striped:
    """Extents of a logical volume that alternate between physical volumes, by chunks of 64 KiB."""

    parts: tuple[Run, ...]


@dataclass(frozen=True)
class Group:
    """A volume group: how many extents each of its physical volumes has, and its logical volumes."""

    name: str
    extents: tuple[int, ...]
    volumes: dict[str, Sequence[Run | Striped]] = field(default_factory=dict)


def _uuid(*words: object) -> str:
    digest = hashlib.sha256(repr(words).encode()).digest()
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest)


def _dashed(uuid: str) -> str:
    parts, at = [], 0
    for length in (6, 4, 4, 4, 4, 4, 6):
        parts.append(uuid[at : at + length])
        at += length
    return "-".join(parts)


def _segment(number: int, start: int, run: Run | Striped) -> tuple[str, int]:
    parts = (run,) if isinstance(run, Run) else run.parts
    count = sum(part.count for part in parts)
    size = f"stripe_size = {CHUNK // SECTOR}\n" if len(parts) > 1 else ""
    stripes = ", ".join(f'"pv{part.volume}", {part.first}' for part in parts)
    return (
        f'segment{number} {{\nstart_extent = {start}\nextent_count = {count}\ntype = "striped"\n'
        f"stripe_count = {len(parts)}\n{size}stripes = [ {stripes} ]\n}}\n"
    ), count


def _text(group: Group, salt: str) -> str:
    physical = "".join(
        f'pv{number} {{\nid = "{_dashed(_uuid(group.name, salt, number))}"\ndevice = "/dev/x{number}"\n'
        f'status = ["ALLOCATABLE"]\nflags = []\ndev_size = {(MIB + count * EXTENT) // SECTOR}\n'
        f"pe_start = {MIB // SECTOR}\npe_count = {count}\n}}\n"
        for number, count in enumerate(group.extents)
    )
    logical = ""
    for name, runs in group.volumes.items():
        segments, at = "", 0
        for number, run in enumerate(runs, 1):
            words, count = _segment(number, at, run)
            segments, at = segments + words, at + count
        logical += (
            f'{name} {{\nid = "{_dashed(_uuid(group.name, salt, name))}"\nstatus = ["READ", "WRITE", "VISIBLE"]\n'
            f"flags = []\nsegment_count = {len(runs)}\n{segments}}}\n"
        )
    return (
        f'{group.name} {{\nid = "{_dashed(_uuid(group.name, salt))}"\nseqno = 1\nformat = "lvm2"\n'
        f'status = ["RESIZEABLE", "READ", "WRITE"]\nflags = []\nextent_size = {EXTENT // SECTOR}\n'
        f"max_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n"
        f"physical_volumes {{\n{physical}}}\nlogical_volumes {{\n{logical}}}\n}}\n"
        'contents = "Text Format Volume Group"\nversion = 1\n'
    )


def _crc(data: bytes) -> int:
    return zlib.crc32(data, _LVM_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def physical_volumes(group: Group, contents: dict[str, bytes], salt: str = "") -> list[bytes]:
    """Return the physical volumes of a group, with the bytes of its logical volumes in place.

    `salt` makes other identities of the same names.
    """
    found = [bytearray(_empty(group, number, salt)) for number in range(len(group.extents))]
    for name, runs in group.volumes.items():
        data, at = contents.get(name, b""), 0
        for run in runs:
            parts = (run,) if isinstance(run, Run) else run.parts
            length = sum(part.count for part in parts) * EXTENT
            unit = EXTENT * parts[0].count if len(parts) == 1 else CHUNK
            for chunk in range(length // unit):
                part = parts[chunk % len(parts)]
                piece = data[at + chunk * unit :][:unit]
                place = MIB + part.first * EXTENT + chunk // len(parts) * unit
                found[part.volume][place : place + len(piece)] = piece
            at += length
    return [bytes(volume) for volume in found]


def _empty(group: Group, number: int, salt: str) -> bytes:
    size = MIB + group.extents[number] * EXTENT
    areas = struct.pack("<4Q", MIB, 0, 0, 0) + struct.pack("<4Q", 4096, MIB - 4096, 0, 0)
    header = _uuid(group.name, salt, number).encode() + struct.pack("<Q", size) + areas
    label = struct.pack("<I8s", 32, b"LVM2 001") + header
    label += bytes(SECTOR - 20 - len(label))
    sector = b"LABELONE" + struct.pack("<QI", 1, _crc(label)) + label
    text = _text(group, salt).encode() + b"\0"
    location = struct.pack("<QQII", SECTOR, len(text), _crc(text), 0) + bytes(24)
    area = b" LVM2 x[5A%r0N*>" + struct.pack("<IQQ", 1, 4096, MIB - 4096) + location
    area += bytes(SECTOR - 4 - len(area))
    whole = bytes(SECTOR) + sector + bytes(4096 - 2 * SECTOR) + struct.pack("<I", _crc(area)) + area + text
    return whole + bytes(size - len(whole))
