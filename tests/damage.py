"""Images with errors that a type's own checker finds: a copy of a clean one, with bytes changed at known places."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[bytearray], None]


def _number(data: bytearray, layout: str, at: int) -> int:
    return int(struct.unpack_from(layout, data, at)[0])


def _put(data: bytearray, at: int, new: bytes) -> None:
    data[at : at + len(new)] = new


def _ext(data: bytearray) -> None:
    """Free all inodes of the first group in its bitmap (ext4, "Block group descriptors": bg_inode_bitmap_lo)."""
    block = 1024 << _number(data, "<I", 1024 + 24)
    descriptors = block * (_number(data, "<I", 1024 + 20) + 1)
    _put(data, _number(data, "<I", descriptors + 4) * block, bytes(16))


def _fat(data: bytearray) -> None:
    """Have clusters of the first FAT lead to cluster 5."""
    reserved = _number(data, "<H", 14) * _number(data, "<H", 11)
    _put(data, reserved + 40, b"\x05\x00" * 8)


def _exfat(data: bytearray) -> None:
    """Free clusters in the allocation bitmap, which lies in the first one."""
    _put(data, _number(data, "<I", 88) << data[108], bytes(64))


def _xfs(data: bytearray) -> None:
    """Change the mode of the root's inode (its number is at 56 of the superblock): its checksum is wrong then."""
    block, inode = _number(data, ">I", 4), _number(data, ">H", 104)
    root, per_block_log = _number(data, ">Q", 56), data[123]
    _put(data, (root >> per_block_log) * block + (root & ((1 << per_block_log) - 1)) * inode + 2, b"\0\0")


def _btrfs(data: bytearray) -> None:
    """Change leaves of the tree of files: those blocks that have the file system's UUID and the tree's number."""
    superblock = data[0x10000:0x11000]
    for at in range(1 << 20, len(data), _number(superblock, "<I", 0x94)):
        if data[at + 32 : at + 48] == superblock[32:48] and _number(data, "<Q", at + 88) == 5 and not data[at + 100]:
            _put(data, at + 2000, b"\xff" * 64)


def _f2fs(data: bytearray) -> None:
    """Change the segment information table (sit_blkaddr)."""
    _put(data, _number(data, "<I", 1024 + 80) * 4096 + 50, b"\xff" * 40)


def _ntfs(data: bytearray) -> None:
    """Change the copy of the first record of the file table."""
    cluster = data[13] * _number(data, "<H", 11)
    _put(data, _number(data, "<Q", 56) * cluster + 100, b"\xff" * 16)


def ntfs_dirty(data: bytearray) -> None:
    """Mark a volume to be checked by Windows: the flag of $VOLUME_INFORMATION, in record 3 and in its copy."""
    cluster = data[13] * _number(data, "<H", 11)
    for table in (_number(data, "<Q", 48), _number(data, "<Q", 56)):
        record = table * cluster + 3 * 1024
        at = record + _number(data, "<H", record + 20)
        while _number(data, "<I", at) != 0x70:
            at += _number(data, "<I", at + 4)
        data[at + _number(data, "<H", at + 20) + 10] |= 1


def _jfs(data: bytearray) -> None:
    """Put a slash into a name of the root folder."""
    data[data.index("letter".encode("utf-16le"))] = ord("/")


def _minix(data: bytearray) -> None:
    """Free all inodes in their bitmap, the third block."""
    _put(data, 2048, b"\1" + bytes(15))


def _erofs(data: bytearray) -> None:
    """Overwrite the root's inode."""
    _put(data, (_number(data, "<I", 1024 + 40) << data[1024 + 12]) + _number(data, "<H", 1024 + 14) * 32, b"\xff" * 32)


DAMAGES: dict[str, Damage] = {
    "ext2": _ext,
    "ext4": _ext,
    "vfat": _fat,
    "exfat": _exfat,
    "xfs": _xfs,
    "btrfs": _btrfs,
    "f2fs": _f2fs,
    "ntfs": _ntfs,
    "jfs": _jfs,
    "minix": _minix,
    "erofs": _erofs,
}


def damaged(clean: Path, target: Path, damage: Damage) -> Path:
    """Make `target` a copy of an image with that damage."""
    data = bytearray(clean.read_bytes())
    damage(data)
    shutil.copyfile(clean, target)
    with target.open("r+b") as file:  # only what has changed is written: the copy's holes stay
        for at in range(0, len(data), 1 << 16):
            new = bytes(data[at : at + (1 << 16)])
            file.seek(at)
            if file.read(len(new)) != new:
                file.seek(at)
                file.write(new)
    return target
