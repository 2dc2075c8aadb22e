"""Arrays and volume groups as bytes: what mdadm and LVM write, made without a kernel that has either.

md's superblock 1.2: include/uapi/linux/raid/md_p.h. LVM's label, metadata area and text: lib/format_text/layout.h and
lib/label/label.h of LVM2. Contents are the caller's; everything here is the same at each run.
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
MISSING = 0xFFFE
_CREATED = 1_700_000_000
_LVM_CRC = 0xF597A6CF
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


# --- md ------------------------------------------------------------------------------------------------------------
def array_members(
    data: bytes, level: int, count: int, name: str = "nas:2", uuid: bytes = bytes(range(16))
) -> list[bytes]:
    """Return the members of an array of level 1 or 0 that holds `data`."""
    if level == 1:
        parts = [data] * count
    else:
        row = CHUNK * count
        data += bytes(-len(data) % row)
        parts = [
            b"".join(data[at + number * CHUNK :][:CHUNK] for at in range(0, len(data), row)) for number in range(count)
        ]
    return [_member(part, level, number, count, name, uuid) for number, part in enumerate(parts)]


def _member(part: bytes, level: int, number: int, count: int, name: str, uuid: bytes) -> bytes:
    sectors = len(part) // SECTOR
    head = struct.pack(
        "<IIII16s32sQiIQII", 0xA92B4EFC, 1, 0, 0, uuid, name.encode(), _CREATED, level, 0, sectors if level else 0,
        0 if level else CHUNK // SECTOR, count,
    )  # fmt: skip
    head += bytes(32)  # no bitmap, no reshape
    device = struct.pack("<QQQQII", MD_DATA // SECTOR, sectors, 8, 0, number, 0)
    device += bytes([number + 1]) * 16 + struct.pack("<BBHI", 0, 0, 0, 0)
    tail = struct.pack("<QQQII32x", _CREATED, 100, (1 << 64) - 1, 0, 128)
    block = bytearray(head + device + tail + struct.pack("<128H", *range(count), *[0xFFFF] * (128 - count)))
    assert len(block) == 512
    total = sum(struct.unpack("<128I", block))
    struct.pack_into("<I", block, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return bytes(4096) + bytes(block) + bytes(MD_DATA - 4096 - len(block)) + part


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
