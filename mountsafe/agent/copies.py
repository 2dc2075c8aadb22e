"""Last resorts: the copies that a file system keeps of its vital structures, and the options that do without them.

What a type has is tried in the order of `ways`. Nothing is written: a copy replaces what is damaged in a device-mapper
table above the medium (`mountsafe.agent.patched`).
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from mountsafe.agent import sessions
from mountsafe.agent.patched import ABSENT, SECTOR, Patch
from mountsafe.wire import SECTOR_SIZES, Resort

EXT = (b"ext2", b"ext3", b"ext4", b"ext4dev")
FAT = (b"vfat", b"msdos")
_EXT_MAGIC, _EXT_NEEDS_RECOVERY, _EXT_HAS_JOURNAL = 0xEF53, 0x4, 0x4
_BOOT_END = b"\x55\xaa"
_FAT_LOOK = 1 << 20  # bytes of the first FAT that must be readable
_LATE_GROUPS = (1, 3, 5, 7)  # where ext puts its first copies, sparse_super or not
_EXT_LAYOUTS = ((1024, 8192), (2048, 16384), (4096, 32768))  # block size, blocks of a group: mke2fs's own choice

Read = Callable[[int, int], bytes]


class Way(NamedTuple):
    """One way to mount: bits of `Resort`, options beside the type's own, and what takes the place of what is there.

    `unreplayed`: its journal holds changes that are then missing.
    """

    resorts: int
    options: str = ""
    patches: tuple[Patch, ...] = ()
    unreplayed: bool = False


class Guess(NamedTuple):
    """What something is by a copy that it keeps: blkid(8) looks at the first places alone."""

    fstype: bytes
    resorts: int
    label: bytes = b""
    uuid: bytes = b""


def reader(fd: int) -> Read:
    """Return how a device is read: what cannot be read, or is beyond the end, is no bytes."""

    def read(at: int, length: int) -> bytes:
        with suppress(OSError):
            data = os.pread(fd, length, at)
            return data if len(data) == length else b""
        return b""

    return read


def guess(read: Read, size: int) -> Guess | None:
    """Return what something is in which nothing was recognised."""
    for at in _ext_copies(read):
        block = read(at, 1024)
        incompatible, read_only = struct.unpack_from("<II", block, 0x60)
        (compatible,) = struct.unpack_from("<I", block, 0x5C)
        later = incompatible & ~0x16 or read_only & ~0x7
        kind = b"ext4" if later else b"ext3" if compatible & _EXT_HAS_JOURNAL else b"ext2"
        return Guess(kind, Resort.BACKUP_SUPERBLOCK, block[0x78:0x88].partition(b"\0")[0], _uuid(block[0x68:0x78]))
    if patch := _fat_boot(read):
        block = read(patch.source, 512)
        label = block[0x47:0x52].rstrip()
        return Guess(b"vfat", Resort.BACKUP_BOOT, b"" if label == b"NO NAME" else label)
    if _exfat_boot(read):
        return Guess(b"exfat", Resort.BACKUP_BOOT)
    if _ntfs_boot(read, size) or _ntfs_tables(read, read(0, 512)):
        return Guess(b"ntfs", Resort.BACKUP_BOOT if _ntfs_boot(read, size) else Resort.MFT_MIRROR)
    if _is_hfsplus(read(max(0, size - 1024), 512)):
        return Guess(b"hfsplus", Resort.BACKUP_SUPERBLOCK)
    return Guess(b"f2fs", Resort.BACKUP_SUPERBLOCK) if read(4096 + 1024, 4) == b"\x10\x20\xf5\xf2" else None


def before(fstype: bytes, read: Read, size: int) -> Way | None:
    """Return how to mount something of which it can be seen that the plain way fails, or would show what is damaged."""
    if fstype in EXT and journal_elsewhere(read(1024, 1024)):
        return Way(Resort.JOURNAL_ELSEWHERE, "noload", unreplayed=needs_recovery(read(1024, 1024)))
    if fstype == b"iso9660" and (session := sessions.last(read, size)) and session.start:
        return Way(Resort.LAST_SESSION if session.earlier else 0, f"sbsector={session.start}")
    if fstype in FAT:
        boot = _fat_boot(read)
        if patch := _second_fat(read, read(boot.source if boot else 0, 512)):
            resorts = Resort.SECOND_FAT | (Resort.BACKUP_BOOT if boot else 0)
            return Way(resorts, "", (boot, patch) if boot else (patch,))
    return None


def ways(fstype: bytes, read: Read, size: int, first: Way) -> Iterator[Way]:
    """Yield the ways to mount something that does not mount as it is, nor in the `first` way."""
    if fstype in EXT:
        yield from _ext_ways(read)
    elif fstype in _BOOTS:
        if not first.resorts & Resort.BACKUP_BOOT and (patch := _BOOTS[fstype](read)):
            yield Way(Resort.BACKUP_BOOT, "", (patch,))
    elif fstype in (b"ntfs", b"ntfs3"):
        yield from _ntfs_ways(read, size)
    elif fstype in (b"hfsplus", b"hfsx"):
        first_header, last_header = Patch(1024, 512, size - 1024), Patch(size - 1024, 512, 1024)
        good = _is_hfsplus(read(1024, 512))
        yield Way(Resort.BACKUP_SUPERBLOCK, "", (last_header if good else first_header,))
    elif fstype == b"iso9660":
        if missing := sessions.missing_before(read, size):
            there = missing * sessions.SECTOR
            patches = (Patch(0, there, ABSENT), Patch(there, size, 0))
            yield Way(Resort.PART_OF_DISC, f"sbsector={missing}", patches)
    elif fstype == b"btrfs":
        yield Way(Resort.DEGRADED, "degraded")
        for resort, options in ((Resort.OLDER_ROOT, "rescue=usebackuproot"), (Resort.UNVERIFIED, "rescue=all")):
            yield Way(resort, options)
            yield Way(Resort.DEGRADED | resort, f"degraded,{options}")


def reach(size: int, whole: int, patches: tuple[Patch, ...]) -> int:
    """Return how large a device is with patches in place."""
    return max(size, whole, *(patch.start + patch.length for patch in patches))


def missing_end(fstype: bytes, size: int, whole: int) -> tuple[Patch, ...]:
    """Return what stands for the end of something of which `size` bytes of `whole` are there."""
    start, end = size // SECTOR * SECTOR, whole // SECTOR * SECTOR
    absent = (Patch(start, end - start, ABSENT),)
    return (*absent, Patch(end - 1024, 512, 1024)) if fstype in (b"hfsplus", b"hfsx") else absent


# --- ext -----------------------------------------------------------------------------------------------------------
def _ext_copies(read: Read) -> Iterator[int]:
    """Yield where copies of the superblock are, in bytes."""
    for block_size, per_group in _EXT_LAYOUTS:
        first = 1 if block_size == 1024 else 0
        for group in _LATE_GROUPS:
            at = (first + group * per_group) * block_size
            block = read(at, 1024)
            if block and _is_ext_copy(block, block_size, per_group, group):
                yield at


def _is_ext_copy(block: bytes, block_size: int, per_group: int, group: int) -> bool:
    (log_size,) = struct.unpack_from("<I", block, 0x18)
    (blocks,) = struct.unpack_from("<I", block, 0x20)
    (magic,) = struct.unpack_from("<H", block, 0x38)
    (number,) = struct.unpack_from("<H", block, 0x5A)
    return (magic, number, blocks) == (_EXT_MAGIC, group, per_group) and log_size < 7 and 1024 << log_size == block_size


def _ext_ways(read: Read) -> Iterator[Way]:
    for at in _ext_copies(read):
        block, option = read(at, 1024), f"sb={at // 1024}"
        if not journal_elsewhere(block):
            yield Way(Resort.BACKUP_SUPERBLOCK, option)
        else:
            bits = Resort.BACKUP_SUPERBLOCK | Resort.JOURNAL_ELSEWHERE
            yield Way(bits, f"{option},noload", unreplayed=needs_recovery(block))


def journal_elsewhere(block: bytes) -> bool:
    """Whether an ext superblock says that its journal is on another device."""
    if not block or struct.unpack_from("<H", block, 0x38)[0] != _EXT_MAGIC:
        return False
    (compatible,) = struct.unpack_from("<I", block, 0x5C)
    inode, device = struct.unpack_from("<II", block, 0xE0)
    return bool(compatible & _EXT_HAS_JOURNAL and not inode and (device or any(block[0xD0:0xE0])))


def is_clean(device: str) -> bool:
    """Whether the superblock of an ext file system says that its journal holds nothing that is not done."""
    with open(device, "rb") as file:
        block = reader(file.fileno())(1024, 1024)
    return block[0x38:0x3A] == b"\x53\xef" and not needs_recovery(block)


def needs_recovery(block: bytes) -> bool:
    """Whether an ext superblock says that its journal holds what is not done."""
    return bool(struct.unpack_from("<I", block, 0x60)[0] & _EXT_NEEDS_RECOVERY)


def _uuid(raw: bytes) -> bytes:
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])).encode()


# --- FAT, exFAT ------------------------------------------------------------------------------------------------------
def _fat_boot(read: Read) -> Patch | None:
    """Return FAT32's second boot sector in the place of the first, unless that is good."""
    if _is_fat32(read(0, 512)):
        return None
    for sector in SECTOR_SIZES:
        block = read(6 * sector, 512)
        if _is_fat32(block) and struct.unpack_from("<H", block, 0x0B)[0] == sector:
            return Patch(0, sector, 6 * sector)
    return None


def _is_fat32(block: bytes) -> bool:
    return block[0x1FE:] == _BOOT_END and block[0x52:0x57] == b"FAT32" and block[0x10] in (1, 2) and block[0x0D] > 0


def _tables_of_fat(boot: bytes) -> tuple[int, int] | None:
    """Return where the first FAT begins, and its length; None if that cannot be."""
    if boot[0x1FE:] != _BOOT_END:
        return None
    sector, reserved = struct.unpack_from("<H", boot, 0x0B)[0], struct.unpack_from("<H", boot, 0x0E)[0]
    length = (struct.unpack_from("<H", boot, 0x16)[0] or struct.unpack_from("<I", boot, 0x24)[0]) * sector
    return (reserved * sector, length) if sector in SECTOR_SIZES and reserved and length else None


def _begins_as_fat(read: Read, at: int, length: int) -> bool:
    head = read(at, min(length, _FAT_LOOK))
    return len(head) > 3 and head[0] >= 0xF0 and head[1:3] == b"\xff\xff"


def _second_fat(read: Read, boot: bytes) -> Patch | None:
    """Return the second FAT in the place of the first, where that begins with what no FAT begins with."""
    tables = _tables_of_fat(boot)
    if tables is None or boot[0x10] != 2:
        return None
    start, length = tables
    if _begins_as_fat(read, start, length) or not _begins_as_fat(read, start + length, length):
        return None
    return Patch(start, length, start + length)


def is_leftover(fstype: bytes, read: Read) -> bool:
    """Whether a boot sector of FAT is all that is left of it: whoever made another file system need not clear that."""
    boot = read(0, 512)
    if fstype not in FAT:
        return False
    tables = _tables_of_fat(boot)
    return tables is None or not any(_begins_as_fat(read, tables[0] + n * tables[1], tables[1]) for n in (0, 1))


def _exfat_boot(read: Read) -> Patch | None:
    """Return exFAT's second boot region in the place of the first."""
    for sector in SECTOR_SIZES:
        block = read(12 * sector, 512)
        if block[3:11] == b"EXFAT   " and block[0x1FE:] == _BOOT_END and 1 << (block[108] & 31) == sector:
            return Patch(0, 12 * sector, 12 * sector)
    return None


_BOOTS = {**dict.fromkeys(FAT, _fat_boot), b"exfat": _exfat_boot}


# --- NTFS, HFS+ ------------------------------------------------------------------------------------------------------
def _is_ntfs(block: bytes) -> bool:
    return block[3:11] == b"NTFS    " and block[0x1FE:] == _BOOT_END


def _ntfs_boot(read: Read, size: int) -> Patch | None:
    """Return NTFS's boot sector at the end in the place of the first, unless that is good."""
    if not _is_ntfs(read(0, 512)) and _is_ntfs(read(max(0, size - 512), 512)):
        return Patch(0, 512, size - 512)
    return None


def _ntfs_tables(read: Read, boot: bytes) -> tuple[Patch, Patch] | None:
    """Return the first records of the file table from their copy, and the copy from them, if the two differ."""
    if not _is_ntfs(boot):
        return None
    sector, clusters, record = struct.unpack_from("<H", boot, 0x0B)[0], boot[0x0D], boot[0x40]
    table, mirror = struct.unpack_from("<QQ", boot, 0x30)
    cluster = sector * (clusters if clusters < 0x80 else 1 << (256 - clusters & 31))
    length = 4 * (record * cluster if record < 0x80 else 1 << (256 - record & 31))
    if not 0 < length <= 1 << 20 or max(table, mirror) * cluster >= 1 << 62:
        return None
    table, mirror = table * cluster, mirror * cluster
    records, copies = read(table, length), read(mirror, length)
    if records == copies or not (records[:4] == b"FILE" or copies[:4] == b"FILE"):
        return None
    return Patch(table, length, mirror), Patch(mirror, length, table)


def _ntfs_ways(read: Read, size: int) -> Iterator[Way]:
    boot = _ntfs_boot(read, size)
    bits, patches = (Resort.BACKUP_BOOT, (boot,)) if boot else (0, ())
    if boot:
        yield Way(bits, "", patches)
    if tables := _ntfs_tables(read, read(boot.source if boot else 0, 512)):
        for patch in tables:
            yield Way(bits | Resort.MFT_MIRROR, "", (*patches, patch))


def _is_hfsplus(block: bytes) -> bool:
    return block[:4] in (b"H+\0\x04", b"HX\0\x05")


# --- btrfs -----------------------------------------------------------------------------------------------------------
def other_devices(device: str, devices: str = "/sys/class/block") -> Iterator[str]:
    """Yield the block devices that belong to the same btrfs as `device`."""
    wanted = _btrfs_identity(device)
    for name in sorted(os.listdir(devices)) if wanted else ():
        path = f"/dev/{name}"
        if os.path.realpath(path) != os.path.realpath(device) and _btrfs_identity(path) == wanted:
            yield path


def _btrfs_identity(path: str) -> bytes:
    with suppress(OSError), open(path, "rb") as file:
        block = os.pread(file.fileno(), 0x48, 64 << 10)
        return block[0x20:0x30] if block[0x40:] == b"_BHRfS_M" else b""
    return b""
