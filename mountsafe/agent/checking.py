"""What is checked and repaired before a file system is written to: whether it was left in the middle of work.

Journals are replayed by the driver. FAT, exFAT and ext2 have checkers of their own for that, which the appliance may or
may not have; NTFS and HFS+ are left to the systems that made them.
"""

import errno
import os
import struct
import time

from mountsafe.agent import copies
from mountsafe.agent.copies import Read
from mountsafe.agent.fsck import is_there, said_by
from mountsafe.agent.programs import Refused
from mountsafe.checkers import CHECKERS
from mountsafe.wire import MountState

PATIENCE = 90.0  # seconds of a check; the host waits for a mount for two minutes
IN_ORDER = (0, 1)  # exit codes: there was nothing to mend, and all of it is mended
_EXT_VALID, _EXT_ERRORS, _EXT_HAS_JOURNAL = 0x1, 0x2, 0x4
_FAT_DIRTY, _EXFAT_DIRTY, _NTFS_DIRTY = 0x1, 0x2, 0x1
_NTFS_VOLUME, _NTFS_INFORMATION, _NTFS_END = 3, 0x70, 0xFFFFFFFF  # the record of $Volume, and types of attributes
_HFS_UNMOUNTED, _HFS_INCONSISTENT, _HFS_JOURNALED, _HFS_LOCKED = 1 << 8, 1 << 11, 1 << 13, 1 << 15


def put_in_order(fstype: bytes, read: Read, device: str) -> int:
    """Have what was left in the middle of work checked and mended on the medium; return the MountState that it has.

    Raises Refused with EROFS and words if that cannot be done here.
    """
    if fstype in copies.EXT:
        wanted, state = _ext(read(1024, 1024))
    elif fstype in copies.FAT:
        wanted, state = _fat_is_dirty(read(0, 512)), MountState.CLEAN
    elif fstype == b"exfat":
        boot = read(0, 512)
        wanted, state = bool(boot and boot[106] & _EXFAT_DIRTY), MountState.CLEAN
    else:
        _refuse_what_others_mend(fstype, read)
        return MountState.CLEAN
    if not wanted:
        return state
    _check(fstype, device)
    return MountState.REPAIRED


def _check(fstype: bytes, device: str) -> None:
    unclean = f"this {os.fsdecode(fstype)} was not left clean"
    checker = CHECKERS[os.fsdecode(fstype)]
    if not is_there(checker.program):
        raise Refused(errno.EROFS, f"{unclean}, and the appliance has no {checker.program} to check it")
    said = said_by([*checker.preen, device], time.monotonic() + PATIENCE)
    if said.code is None:
        raise Refused(errno.EROFS, f"{unclean}, and checking it was not done in {PATIENCE:.0f} s")
    if said.code not in IN_ORDER:
        words = " ".join(said.words.split())[-300:]
        raise Refused(errno.EROFS, f"{unclean}, and needs to be checked by hand first: {words}")


def _ext(superblock: bytes) -> tuple[bool, int]:
    """Return whether it needs its checker, and its state if it does not."""
    if len(superblock) < 1024:
        return False, MountState.CLEAN
    (state,) = struct.unpack_from("<H", superblock, 0x3A)
    (compatible,) = struct.unpack_from("<I", superblock, 0x5C)
    unfinished = not compatible & _EXT_HAS_JOURNAL and not state & _EXT_VALID
    replay = copies.needs_recovery(superblock)
    return bool(state & _EXT_ERRORS or unfinished), MountState.RECOVERED if replay else MountState.CLEAN


def _fat_is_dirty(boot: bytes) -> bool:
    """Whether its boot sector says so, in the byte that Windows and Linux use for that."""
    if len(boot) < 512:
        return False
    is_fat32 = not struct.unpack_from("<H", boot, 0x16)[0]
    return bool(boot[0x41 if is_fat32 else 0x25] & _FAT_DIRTY)


def _refuse_what_others_mend(fstype: bytes, read: Read) -> None:
    """Raise Refused for an NTFS or HFS+ that was not left clean, and for a journal that no driver here keeps."""
    if fstype in (b"ntfs", b"ntfs3") and ntfs_is_dirty(read):
        raise Refused(errno.EROFS, "it was not left clean: mend it in Windows (chkdsk /f; shut down, not hibernate)")
    if fstype in (b"hfsplus", b"hfsx"):
        header = read(1024, 512)
        attributes = struct.unpack_from(">I", header, 4)[0] if header[:2] in (b"H+", b"HX") else 0
        if attributes & _HFS_JOURNALED:
            words = (
                "it has a journal, which Linux does not keep: turn that off on a Mac first (diskutil disableJournal)"
            )
            raise Refused(errno.EROFS, words)
        if attributes & _HFS_LOCKED or attributes & _HFS_INCONSISTENT or not attributes & _HFS_UNMOUNTED:
            raise Refused(
                errno.EROFS, "it was not left clean, or is locked: mend it on a Mac (Disk Utility, First Aid)"
            )


def ntfs_is_dirty(read: Read) -> bool:
    """Whether $Volume says that Windows has to check it; also if that cannot be read (MS-FSCC, NTFS documentation)."""
    boot = read(0, 512)
    if len(boot) < 512:
        return True
    sector, clusters, size = struct.unpack_from("<H", boot, 0x0B)[0], boot[0x0D], boot[0x40]
    cluster = sector * (clusters if clusters < 0x80 else 1 << (256 - clusters & 31))
    length = size * cluster if size < 0x80 else 1 << (256 - size & 31)
    (table,) = struct.unpack_from("<Q", boot, 0x30)
    if not 512 <= length <= 1 << 16 or table * cluster >= 1 << 62:
        return True
    record = read(table * cluster + _NTFS_VOLUME * length, length)
    flags = _volume_flags(record)
    return flags is None or bool(flags & _NTFS_DIRTY)


def _volume_flags(record: bytes) -> int | None:
    """Return the flags in the record of $Volume."""
    if record[:4] != b"FILE":
        return None
    record = _fixed_up(record)
    (at,) = struct.unpack_from("<H", record, 0x14)
    while at + 16 <= len(record):
        kind, length = struct.unpack_from("<II", record, at)
        if kind == _NTFS_INFORMATION:
            value = at + struct.unpack_from("<H", record, at + 0x14)[0]
            if value + 12 <= len(record):
                return int(struct.unpack_from("<H", record, value + 10)[0])
        if kind == _NTFS_END or length < 16:
            return None
        at += length
    return None


def _fixed_up(record: bytes) -> bytes:
    """Return a record of NTFS's file table with the last two bytes of each sector in their places."""
    fixed = bytearray(record)
    at, count = struct.unpack_from("<HH", record, 4)
    for number in range(1, min(count, len(record) // 512 + 1)):
        fixed[number * 512 - 2 : number * 512] = record[at + 2 * number : at + 2 * number + 2].ljust(2, b"\0")
    return bytes(fixed)
