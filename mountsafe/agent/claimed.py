"""How many bytes a file system says that it has: more than there are where the end of an image is missing."""

import struct
from collections.abc import Callable

from mountsafe.agent.copies import Read


def _ext(read: Read) -> int:
    block = read(1024, 1024)
    low, log_size = struct.unpack_from("<I16xI", block, 4)
    (incompatible,) = struct.unpack_from("<I", block, 0x60)
    high = struct.unpack_from("<I", block, 0x150)[0] if incompatible & 0x80 else 0
    return int((high << 32 | low) * (1024 << (log_size & 15)))


def _fat(read: Read) -> int:
    boot = read(0, 512)
    (sector,) = struct.unpack_from("<H", boot, 0x0B)
    return int(sector * (struct.unpack_from("<H", boot, 0x13)[0] or struct.unpack_from("<I", boot, 0x20)[0]))


def _exfat(read: Read) -> int:
    boot = read(0, 512)
    return int(struct.unpack_from("<Q", boot, 72)[0]) << (boot[108] & 15)


def _ntfs(read: Read) -> int:
    boot = read(0, 512)
    return int(struct.unpack_from("<Q", boot, 0x28)[0] * struct.unpack_from("<H", boot, 0x0B)[0])


def _iso9660(read: Read) -> int:
    block = read(16 * 2048, 2048)
    return int(struct.unpack_from("<I", block, 80)[0] * struct.unpack_from("<H", block, 128)[0])


def _xfs(read: Read) -> int:
    size, blocks = struct.unpack(">IQ", read(4, 12))
    return int(size * blocks)


def _btrfs(read: Read) -> int:
    return int(struct.unpack("<Q", read((64 << 10) + 0xC9 + 8, 8))[0])


def _f2fs(read: Read) -> int:
    block = read(1024, 44)
    return int(struct.unpack_from("<Q", block, 36)[0] << (struct.unpack_from("<I", block, 16)[0] & 31))


def _hfsplus(read: Read) -> int:
    size, blocks = struct.unpack(">II", read(1024 + 40, 8))
    return int(size * blocks)


def _squashfs(read: Read) -> int:
    return int(struct.unpack("<Q", read(40, 8))[0])


def _reiserfs(read: Read) -> int:
    block = read(64 << 10, 64)
    return int(struct.unpack_from("<I", block, 0)[0] * struct.unpack_from("<H", block, 44)[0])


_SIZES: dict[bytes, Callable[[Read], int]] = {
    **dict.fromkeys((b"ext2", b"ext3", b"ext4", b"ext4dev"), _ext),
    **dict.fromkeys((b"vfat", b"msdos"), _fat),
    **dict.fromkeys((b"hfsplus", b"hfsx"), _hfsplus),
    b"exfat": _exfat,
    b"ntfs": _ntfs,
    b"iso9660": _iso9660,
    b"xfs": _xfs,
    b"btrfs": _btrfs,
    b"f2fs": _f2fs,
    b"squashfs": _squashfs,
    b"reiserfs": _reiserfs,
}
MOST = 1 << 60  # of what can be believed: 1 EiB


def claimed(fstype: bytes, read: Read, size: int) -> int:
    """Return the bytes that a file system says it has, if they are more than `size`; else 0."""
    try:
        told = _SIZES[fstype](read)
    except (KeyError, struct.error, IndexError):  # not known, or it cannot be read
        return 0
    return told if size < told <= MOST else 0
