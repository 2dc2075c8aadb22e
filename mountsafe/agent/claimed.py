"""What a file system says of itself: its size, which is more than is there where the end of an image is missing, and
the size of its blocks, of which a kernel reads some.
"""

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
_LARGEST_BLOCK = 64 << 10  # that any of them has


def claimed(fstype: bytes, read: Read, size: int) -> int:
    """Return the bytes that a file system says it has, if they are more than `size`; else 0."""
    try:
        told = _SIZES[fstype](read)
    except (KeyError, struct.error, IndexError):  # not known, or it cannot be read
        return 0
    return told if size < told <= MOST else 0


# --- blocks ----------------------------------------------------------------------------------------------------------
def _ext_block(read: Read) -> int:
    return 1024 << (int(struct.unpack("<I", read(1024 + 0x18, 4))[0]) & 15)


def _btrfs_block(read: Read) -> int:
    return int(struct.unpack("<I", read((64 << 10) + 0x90, 4))[0])


def _xfs_block(read: Read) -> int:
    return int(struct.unpack(">I", read(4, 4))[0])


def _f2fs_block(read: Read) -> int:
    return 1 << (int(struct.unpack("<I", read(1024 + 16, 4))[0]) & 31)


_BLOCKS: dict[bytes, Callable[[Read], int]] = {
    **dict.fromkeys((b"ext2", b"ext3", b"ext4", b"ext4dev"), _ext_block),
    b"btrfs": _btrfs_block,
    b"xfs": _xfs_block,
    b"f2fs": _f2fs_block,
}


def too_large_blocks(fstype: bytes, read: Read, most: int) -> str:
    """Return words if a file system's blocks are larger than `most`, which its driver can read; else ""."""
    try:
        told = _BLOCKS[fstype](read)
    except (KeyError, struct.error):  # not known, or it cannot be read
        return ""
    if most < told <= _LARGEST_BLOCK:
        return f"its blocks have {told} bytes, and this kernel reads none of more than {most}"
    return ""
