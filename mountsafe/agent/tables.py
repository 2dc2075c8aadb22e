"""Partition tables where the kernel finds none, or leaves some out: the GPT's copy, and disks whose end is missing.

The GPT follows UEFI 2.10, section 5.3; the kernel looks at the copy only if the first one is good.
"""

import array
import fcntl
import struct
import zlib
from typing import NamedTuple

from mountsafe.agent.copies import Read
from mountsafe.wire import Resort

# include/uapi/linux/fs.h, blkpg.h. The programs for it, addpart and delpart, are in another package since Debian 13.
BLKPG, BLKPG_ADD_PARTITION, BLKPG_DEL_PARTITION = 0x1269, 1, 2
MAX_PARTITIONS = 128
_HEADER = struct.Struct("<8s4sII4xQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQ8x72s")
_PROTECTIVE = 0xEE


class Part(NamedTuple):
    """A partition, in bytes."""

    number: int
    start: int
    length: int
    name: bytes


class Table(NamedTuple):
    """Partitions, bits of `Resort`, and the size that the disk should have."""

    parts: tuple[Part, ...]
    resorts: int
    size: int


def gpt(read: Read, size: int, sector: int) -> Table | None:
    """Return what a GPT says that the kernel does not take: the copy, or the first where the disk's end is missing."""
    last = size // sector - 1
    for lba, resorts in ((1, 0), (last, Resort.BACKUP_TABLE)):
        block = read(lba * sector, sector)
        if len(block) < _HEADER.size:
            continue
        signature, _, length, checksum, own, other, _, _, _, entries, count, entry, sums = _HEADER.unpack_from(block)
        if signature != b"EFI PART" or own != lba or not _HEADER.size <= length <= sector or entry % 8 or entry < 128:
            continue
        header = block[:16] + bytes(4) + block[20:length]
        array_ = read(entries * sector, count * entry) if count * entry <= 1 << 20 and entries < 1 << 50 else b""
        if zlib.crc32(header) != checksum or not array_ or zlib.crc32(array_) != sums:
            continue
        whole = (max(own, other) + 1) * sector
        return Table(_parts(array_, entry, sector), resorts, whole if size < whole < 1 << 60 else 0)
    return None


def _parts(entries: bytes, each: int, sector: int) -> tuple[Part, ...]:
    found: list[Part] = []
    for number in range(len(entries) // each):
        kind, _, first, last, name = _ENTRY.unpack_from(entries, number * each)
        if any(kind) and first <= last < 1 << 50 and len(found) < MAX_PARTITIONS:
            title = name.decode("utf-16-le", "replace").partition("\0")[0].encode()
            found.append(Part(number + 1, first * sector, (last - first + 1) * sector, title))
    return tuple(found)


def is_protective(read: Read) -> bool:
    """Whether an MBR only says that there is a GPT; none says that as well."""
    block = read(0, 512)
    return block[510:512] != b"\x55\xaa" or _PROTECTIVE in [block[at + 4] for at in range(446, 510, 16)]


def beyond(read: Read, size: int, sector: int) -> list[int]:
    """Return the numbers of an MBR's partitions that begin after the end of the disk: the kernel drops them."""
    block = read(0, 512)
    if block[510:512] != b"\x55\xaa" or is_protective(read):
        return []
    entries = [struct.unpack_from("<4xB3xII", block, at) for at in range(446, 510, 16)]
    return [
        number for number, (kind, start, count) in enumerate(entries, 1) if kind and count and start * sector >= size
    ]


def add(fd: int, number: int, start: int, length: int) -> None:
    """Have the kernel take a partition of a disk, in bytes. Raises OSError: it overlaps another one, for example."""
    _tell(fd, BLKPG_ADD_PARTITION, number, start, length)


def remove(fd: int, number: int) -> None:
    """Have the kernel forget a partition of a disk. Raises OSError."""
    _tell(fd, BLKPG_DEL_PARTITION, number, 0, 0)


def _tell(fd: int, what: int, number: int, start: int, length: int) -> None:
    told = array.array("B", struct.pack("<qqi64s64s4x", start, length, number, b"", b""))
    address, count = told.buffer_info()
    fcntl.ioctl(fd, BLKPG, struct.pack("<iii4xQ", what, 0, count, address))
