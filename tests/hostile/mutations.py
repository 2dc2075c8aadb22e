"""Seeded damage to valid images, made where a file system's driver looks: pure, and the same for ever.

Metadata is found in three ways: by following the format (ext, FAT, exFAT, qcow2), by the marks that structures carry
(XFS, btrfs, UDF, NTFS, VHDX and others), and otherwise by being no noise. Where a checksum would only show that
something was changed, it is set right again (`seal`), or the feature is switched off.
"""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap
from random import Random
from typing import Literal

SECTOR = 512
HEAD = 64 << 10  # where every type keeps something
NOISE = 170  # different byte values in a sector from which on it is taken for a file's content
EDITS = 6  # of one mutation, at most
ELSEWHERE = 0.15  # of the edits are anywhere

Image = bytes | mmap  # a whole image
Parts = Sequence[tuple[int, int]]  # (offset, length) of what is not a hole


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes that are put somewhere."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Spot:
    """A stretch of metadata, in bytes; `seal` returns its bytes with their checksum."""

    offset: int
    length: int
    seal: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Map:
    """What can be damaged: spots by the kind of structure, and what switches checksums off."""

    kinds: Sequence[Sequence[Spot]]
    disarm: tuple[Edit, ...] = ()


# --- checksums -----------------------------------------------------------------------------------------------------
def _table(polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (polynomial if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _table(0x82F63B78)


def crc32c(data: bytes, start: int = 0xFFFFFFFF) -> int:
    """The CRC that XFS and btrfs use (Castagnoli), inverted at the end."""
    for byte in data:
        start = start >> 8 ^ _CRC32C[(start ^ byte) & 0xFF]
    return start ^ 0xFFFFFFFF


def crc_udf(data: bytes) -> int:
    """The CRC of ECMA-167's tags: CRC-16 with polynomial 0x1021."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def _seal_at(place: int) -> Callable[[bytes], bytes]:
    """XFS and VHDX: CRC32C of the whole structure, with zero in the checksum's place, little endian."""

    def seal(data: bytes) -> bytes:
        empty = data[:place] + bytes(4) + data[place + 4 :]
        return data[:place] + struct.pack("<I", crc32c(empty)) + data[place + 4 :]

    return seal


def _seal_btrfs(data: bytes) -> bytes:
    return struct.pack("<I", crc32c(data[32:])) + data[4:]


def _seal_udf(data: bytes) -> bytes:
    (length,) = struct.unpack_from("<H", data, 10)
    sealed = bytearray(data)
    struct.pack_into("<H", sealed, 8, crc_udf(data[16 : 16 + length]))
    sealed[4] = (sum(sealed[:4]) + sum(sealed[5:16])) & 0xFF
    return bytes(sealed)


def _seal_exfat(data: bytes) -> bytes:
    """exFAT's boot region: a sum of the first eleven sectors, but for three bytes, fills the twelfth."""
    total = 0
    sector = len(data) // 12
    for at, byte in enumerate(data[: 11 * sector]):
        if at not in (106, 107, 112):
            total = ((total << 31 | total >> 1) + byte) & 0xFFFFFFFF
    return data[: 11 * sector] + struct.pack("<I", total) * (sector // 4)


def _seal_vhd(place: int) -> Callable[[bytes], bytes]:
    """VHD: the sum of all bytes, inverted, with zero in the checksum's place, big endian."""

    def seal(data: bytes) -> bytes:
        total = sum(data[:place]) + sum(data[place + 4 :])
        return data[:place] + struct.pack(">I", ~total & 0xFFFFFFFF) + data[place + 4 :]

    return seal


# --- finding metadata ----------------------------------------------------------------------------------------------
def find(data: Image, parts: Parts, fstype: str) -> Map:
    """Return what can be damaged on an image. `parts` is where it has data."""
    formats = {"ext2": _ext, "ext3": _ext, "ext4": _ext, "vfat": _fat, "exfat": _exfat, "qcow2": _qcow2}
    found: Map | None = None
    if fstype in formats:
        try:
            found = formats[fstype](data)
        except (struct.error, ZeroDivisionError, IndexError):
            found = None  # an image of this type that is not laid out as we know it
    marked = list(_marked(data, parts, fstype))
    kinds = [*(found.kinds if found else ()), *marked, *_plain(data, parts)]
    return Map([kind for kind in kinds if kind], found.disarm if found else ())


def _plain(data: Image, parts: Parts) -> Iterator[list[Spot]]:
    """What is at the beginning, and what else is neither empty nor noise."""
    head: list[Spot] = []
    rest: list[Spot] = []
    for start, length in parts:
        for at in range(start, min(start + length, len(data)) - SECTOR + 1, SECTOR):
            sector = data[at : at + SECTOR]
            if any(sector) and len(set(sector)) < NOISE:
                (head if at < HEAD else rest).append(Spot(at, SECTOR))
    yield head
    yield rest


@dataclass(frozen=True, slots=True)
class Mark:
    """How a kind of structure is known: bytes at `shift` in it; it starts at a multiple of `align`."""

    mark: bytes
    length: int
    seal: Callable[[bytes], bytes] | None = None
    align: int = SECTOR
    shift: int = 0


_BTRFS_NODE = 16384
_MARKS = {
    "xfs": [
        Mark(b"XFSB", 512, _seal_at(224)),
        Mark(b"XAGF", 512, _seal_at(216)),
        Mark(b"XAGI", 512, _seal_at(312)),
        Mark(b"IN", 512, _seal_at(100)),
        Mark(b"XDB3", 4096, _seal_at(4), 4096),
        Mark(b"XDD3", 4096, _seal_at(4), 4096),
        Mark(b"FIB3", 4096, _seal_at(52), 4096),
        Mark(b"IAB3", 4096, _seal_at(52), 4096),
    ],
    "btrfs": [Mark(b"_BHRfS_M", 4096, _seal_btrfs, 65536, 64)],
    "ntfs": [Mark(b"FILE", 500, align=1024), Mark(b"INDX", 500, align=4096)],  # not a sector's end: fix-ups are there
    "hfsplus": [Mark(b"H+", 512), Mark(b"HX", 512)],
    "hfs": [Mark(b"BD", 512)],
    "iso9660": [Mark(b"CD001", 2048, align=2048, shift=1)],
    "jfs": [Mark(b"JFS1", 512, align=4096)],
    "f2fs": [Mark(b"\x10\x20\xf5\xf2", 512, align=1024)],
    "gfs2": [Mark(b"\x01\x16\x19\x70", 512)],
    "ocfs2": [Mark(b"INODE01", 512), Mark(b"GROUP01", 512)],
    "reiserfs": [Mark(b"ReIsEr", 512, shift=52)],
    "squashfs": [Mark(b"hsqs", 512)],
    "erofs": [Mark(b"\xe2\xe1\xf5\xe0", 512, align=1024)],
    "romfs": [Mark(b"-rom1fs-", 512)],
    "vmdk": [Mark(b"KDMV", 512)],
    "vdi": [Mark(b"\x7f\x10\xda\xbe", 512, shift=64)],
    "vpc": [Mark(b"conectix", 512, _seal_vhd(64)), Mark(b"cxsparse", 1024, _seal_vhd(36))],
    "vhdx": [
        Mark(b"head", 4096, _seal_at(4), 64 << 10),
        Mark(b"regi", 64 << 10, _seal_at(4), 64 << 10),
        Mark(b"metadata", 512, align=64 << 10),
    ],
}


def _marked(data: Image, parts: Parts, fstype: str) -> Iterator[list[Spot]]:
    for mark in _MARKS.get(fstype, ()):
        yield list(_found(data, mark))
    if fstype == "btrfs":
        yield list(_btrfs_nodes(data, parts))
    if fstype == "udf":
        yield list(_udf_tags(data, parts))


def _found(data: Image, mark: Mark) -> Iterator[Spot]:
    for found in re.finditer(re.escape(mark.mark), data):
        start = found.start() - mark.shift
        if start >= 0 and start % mark.align == 0 and start + mark.length <= len(data):
            yield Spot(start, mark.length, mark.seal)


def _places(data: Image, parts: Parts, align: int) -> Iterator[int]:
    for start, length in parts:
        first = -(-start // align) * align
        yield from range(first, min(start + length, len(data)) - align + 1, align)


def _btrfs_nodes(data: Image, parts: Parts) -> Iterator[Spot]:
    """Blocks of trees carry the file system's id at the place where the superblock has it."""
    fsid = data[65536 + 32 : 65536 + 48]
    for at in _places(data, parts, _BTRFS_NODE):
        if at != 65536 and data[at + 32 : at + 48] == fsid:
            yield Spot(at, _BTRFS_NODE, _seal_btrfs)


def _udf_tags(data: Image, parts: Parts) -> Iterator[Spot]:
    """Descriptors begin with a tag whose fifth byte is the sum of the other fifteen."""
    for at in _places(data, parts, SECTOR):
        tag = data[at : at + 16]
        if tag[0] | tag[1] and tag[4] == (sum(tag[:4]) + sum(tag[5:])) & 0xFF:
            length = 16 + int.from_bytes(tag[10:12], "little")
            if at + length <= len(data):
                yield Spot(at, length, _seal_udf)


def _ext(data: Image) -> Map:
    """ext2/3/4: superblock, group descriptors, inodes in use, and what the directories among them hold."""
    first, log_block, per_group = struct.unpack_from("<II12xI", data, 1024 + 20)
    block = 1024 << log_block
    inode_size = struct.unpack_from("<H", data, 1024 + 88)[0] or 128
    incompat, compat_ro = struct.unpack_from("<II", data, 1024 + 96)
    table = (first + 1) * block
    inodes = struct.unpack_from("<I", data, table + 8)[0] * block
    used = [
        at
        for at in range(inodes, min(inodes + per_group * inode_size, len(data)), inode_size)
        if struct.unpack_from("<H", data, at)[0]
    ]
    folders = [place for at in used if data[at + 1] >> 4 == 4 for place in _ext_blocks(data, at, block)]
    # metadata_csum, gdt_csum (read-only compatible); csum_seed (incompatible) has no meaning without
    disarm = Edit(1024 + 96, struct.pack("<II", incompat & ~0x2000, compat_ro & ~0x410))
    return Map(
        (
            [Spot(1024, 256)],
            [Spot(table, 64)],
            [Spot(at, min(inode_size, 160)) for at in used],
            [Spot(at + 40, 60) for at in used],  # the extent tree or the block map
            [Spot(at, 264) for at in folders if at + block <= len(data)],
        ),
        (disarm,),
    )


def _ext_blocks(data: Image, inode: int, block: int) -> Iterator[int]:
    """Where a folder's first blocks are."""
    magic, entries, _, depth = struct.unpack_from("<4H", data, inode + 40)
    if magic != 0xF30A:
        yield from (number * block for number in struct.unpack_from("<3I", data, inode + 40) if number)
    elif depth == 0:
        for index in range(min(entries, 4)):
            yield struct.unpack_from("<I", data, inode + 40 + 12 + 12 * index + 8)[0] * block


def _fat(data: Image) -> Map:
    """FAT: BIOS parameter block, allocation tables, root folder."""
    sector, per_cluster, reserved, fats, roots = struct.unpack_from("<HBHBH", data, 11)
    fat = (struct.unpack_from("<H", data, 22)[0] or struct.unpack_from("<I", data, 36)[0]) * sector
    root = reserved * sector + fats * fat
    entries = roots * 32 or per_cluster * sector
    return Map(
        (
            [Spot(11, 79)],
            [Spot(reserved * sector + copy * fat, min(fat, 256)) for copy in range(fats)],
            [Spot(at, 32) for at in range(root, min(root + entries, len(data) - 32), 32) if data[at]],
        )
    )


def _exfat(data: Image) -> Map:
    """exFAT: boot region, allocation table, root folder."""
    fat, _, heap, _, root = struct.unpack_from("<5I", data, 80)
    sector, cluster = 1 << data[108], 1 << data[108] + data[109]
    start = heap * sector + (root - 2) * cluster
    return Map(
        (
            [Spot(0, 12 * sector, _seal_exfat)],
            [Spot(fat * sector, 256)],
            [Spot(at, 32) for at in range(start, min(start + cluster, len(data) - 32), 32) if data[at]],
        )
    )


def _qcow2(data: Image) -> Map:
    """qcow2: header and its extensions, the tables of clusters, the tables of their reference counts."""
    cluster = 1 << struct.unpack_from(">I", data, 20)[0]
    used, first, counts = struct.unpack_from(">IQQ", data, 36)
    seconds = _big_offsets(data, first, used)
    return Map(
        (
            [Spot(0, 112)],
            [Spot(104, 512)],
            [Spot(first, 8 * used)],
            [Spot(at, min(cluster, 512)) for at in seconds],
            [Spot(counts, 64)],
            [Spot(at, min(cluster, 512)) for at in _big_offsets(data, counts, 8)],
        )
    )


def _big_offsets(data: Image, table: int, entries: int) -> list[int]:
    """Return where a table's entries point to, without their flags."""
    pointers = (entry & 0x00FFFFFFFFFFFE00 for entry in struct.unpack_from(f">{entries}Q", data, table))
    return [at for at in pointers if 0 < at < len(data)]


# --- damage --------------------------------------------------------------------------------------------------------
_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63)
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


def mutate(data: Image, found: Map, rng: Random) -> tuple[Edit, ...]:
    """Return damage to an image: a few edits, mostly in few structures, before any checksum is set right."""
    spots = [rng.choice(rng.choice(found.kinds)) for _ in range(rng.randint(1, 3))] if found.kinds else []
    edits = list(found.disarm) if rng.random() < 0.9 else []
    for _ in range(rng.randint(1, EDITS)):
        if spots and rng.random() > ELSEWHERE:
            spot = rng.choice(spots)
        else:
            spot = Spot(rng.randrange(max(1, len(data) - 8)), 8)
        edits.append(_damage(data, spot, found, rng))
    return tuple(edits)


def _damage(data: Image, spot: Spot, found: Map, rng: Random) -> Edit:
    width = rng.choice((1, 1, 2, 2, 4, 4, 8))
    # Fields are aligned, and the first ones of a structure matter most.
    reach = rng.choice((64, 256, spot.length))
    offset = spot.offset + rng.randrange(max(1, min(reach, spot.length) - width + 1)) // width * width
    old = data[offset : offset + width]
    match rng.randrange(6):
        case 0:
            return Edit(offset, bytes([old[0] ^ 1 << rng.randrange(8)]) if old else b"\0")
        case 1:
            return Edit(offset, rng.randbytes(width))
        case 2 | 3:
            value = rng.choice(_VALUES) & (1 << 8 * width) - 1
            return Edit(offset, value.to_bytes(width, rng.choice(_ORDERS)))
        case 4:
            step = rng.choice((-2, -1, 1, 2, 16, 1 << rng.randrange(4 * width)))
            order = rng.choice(_ORDERS)
            value = (int.from_bytes(old, order) + step) & (1 << 8 * width) - 1
            return Edit(offset, value.to_bytes(width, order))
        case _:  # another structure's bytes, or zeros
            other = rng.choice(rng.choice(found.kinds)) if found.kinds else spot
            length = min(rng.choice((8, 16, 32, 64)), spot.length)
            copied = data[other.offset : other.offset + length]
            return Edit(spot.offset, copied if rng.random() < 0.7 else bytes(length))


def sealed(data: Image, found: Map, edits: Sequence[Edit]) -> list[Edit]:
    """Return what to write: the edits, then each structure that they touch with its checksum set right."""
    written = list(edits)
    seals = [spot for kind in found.kinds for spot in kind if spot.seal is not None]
    for spot in seals:
        touching = [edit for edit in edits if _overlap(edit, spot)]
        if touching and spot.seal is not None:
            now = bytearray(data[spot.offset : spot.offset + spot.length])
            for edit in touching:
                at = edit.offset - spot.offset
                part = edit.data[max(0, -at) : max(0, spot.length - at)]
                now[max(0, at) : max(0, at) + len(part)] = part
            written.append(Edit(spot.offset, spot.seal(bytes(now))[: spot.length]))
    return [Edit(edit.offset, edit.data[: max(0, len(data) - edit.offset)]) for edit in written]


def _overlap(edit: Edit, spot: Spot) -> bool:
    return edit.offset < spot.offset + spot.length and spot.offset < edit.offset + len(edit.data)
