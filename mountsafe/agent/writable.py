"""Mount a file system for writing: as it is, or not at all.

The disk is made by the host: the bytes of the file system, and nothing else. What mounts only by a last resort, or only
partly, stays read-only: writing to it would make it worse.
"""

import errno
import os
import re
from contextlib import suppress

from mountsafe import fsoptions, wire
from mountsafe.agent import copies
from mountsafe.agent.checking import put_in_order
from mountsafe.agent.claimed import claimed
from mountsafe.agent.mounting import READ_ONLY, Mount, Target, attempt
from mountsafe.agent.programs import Refused, run

# blkid's name -> (kernel type, options): those of `mounting.MOUNT_AS`, so that the same is shown of each file.
WRITTEN_AS: dict[bytes, tuple[str, str]] = {
    b"ext2": ("ext2", "errors=remount-ro"),
    b"ext3": ("ext3", "errors=remount-ro"),
    b"ext4": ("ext4", "errors=remount-ro"),
    b"vfat": ("vfat", "utf8,umask=022,tz=UTC,errors=remount-ro"),
    b"msdos": ("msdos", "umask=022,tz=UTC,errors=remount-ro"),
    b"exfat": ("exfat", "iocharset=utf8,umask=022,errors=remount-ro"),
    # norecover: without it the journal of a volume that Windows has not closed is thrown away.
    b"ntfs": ("ntfs-3g", "streams_interface=xattr,locale=C.UTF-8,norecover,windows_names"),
    b"ntfs3": ("ntfs-3g", "streams_interface=xattr,locale=C.UTF-8,norecover,windows_names"),
    b"xfs": ("xfs", "nouuid"),
    b"btrfs": ("btrfs", ""),
    b"f2fs": ("f2fs", "background_gc=off"),
    b"hfsplus": ("hfsplus", "nls=utf8"),
    b"hfsx": ("hfsplus", "nls=utf8"),
    b"udf": ("udf", "iocharset=utf8"),
}
# Options of a person's by which something else than the file system as it is would be mounted.
ONLY_TO_READ = fsoptions.WITHOUT_REPLAY | {"sb", "sbsector", "session", "anchor", "lastblock", "part"}
_FOUND = re.compile("FSCK[0-9]{4}[.]REC", re.IGNORECASE)
_REPLAYED = re.compile("recover(?!y is not)|replay", re.IGNORECASE)
BEGIN_TO_WRITE, MOST_UNWRITTEN = 4 << 20, 32 << 20  # bytes in the guest's page cache
READ_WRITE = "rw,nosuid,nodev,noexec,noatime"
INSTEAD = "it can only be read: copy from it what is to be changed"


def _bound_what_is_not_written_yet() -> None:
    """Have the kernel write soon, so that neither a SYNC nor the unmounting of a slow medium takes long."""
    for name, size in (("dirty_background_bytes", BEGIN_TO_WRITE), ("dirty_bytes", MOST_UNWRITTEN)):
        with suppress(OSError), open(f"/proc/sys/vm/{name}", "w", encoding="ascii") as file:
            file.write(str(size))


def mount_writable(target: Target, again: bool = False) -> Mount:
    """Mount to be changed. Raises Refused with EROFS, and words, if it can only be read, or first has to be mended.

    `again`: a virtual machine has died that wrote to it, and what that left unfinished is nobody's.
    """
    name = os.fsdecode(target.fstype)
    if target.fstype not in WRITTEN_AS:
        raise Refused(errno.EROFS, f"nothing here writes {name}: {INSTEAD}")
    kernel_type, plain = WRITTEN_AS[target.fstype]
    try:
        fsoptions.check(target.options, [name])
    except fsoptions.NotTaken as wrong:
        raise Refused(errno.EINVAL, wrong.message) from wrong
    if left := ONLY_TO_READ.intersection(option.partition("=")[0] for option in target.options):
        raise Refused(errno.EROFS, f"with the mount option {min(left)} it can only be read")
    os.makedirs(target.where, exist_ok=True)
    _bound_what_is_not_written_yet()
    found_before = _found_by_checks(target) if again and target.fstype in copies.FAT else None
    state = _looked_at(target)
    options = fsoptions.merged(kernel_type, plain, target.options)
    said = attempt(target.device, target.where, kernel_type, READ_WRITE, options)
    if said.complaint:
        raise Refused(errno.EROFS, f"it cannot be mounted to be changed: {said.complaint}")
    if os.statvfs(target.where).f_flag & os.ST_RDONLY:
        run("umount", "-n", target.where)
        words = f": {said.kernel[-1]}" if said.kernel else ""
        raise Refused(errno.EROFS, f"the driver mounts this {name} read-only{words}")
    if found_before is not None:
        for found in _names_of_found(target.where) - found_before:
            os.unlink(os.path.join(target.where, found))
    if state == wire.MountState.CLEAN and any(map(_REPLAYED.search, said.kernel)):
        state = wire.MountState.RECOVERED
    return Mount(kernel_type, state, 0, [])


def _found_by_checks(target: Target) -> set[str] | None:
    """Return which files there are already that fsck.fat has made of what belonged to no file; None if unknown."""
    if attempt(target.device, target.where, "vfat", READ_ONLY, "").complaint:
        return None
    try:
        return _names_of_found(target.where)
    finally:
        run("umount", "-n", target.where)


def _names_of_found(where: str) -> set[str]:
    return {name for name in os.listdir(where) if _FOUND.fullmatch(name)}


def _looked_at(target: Target) -> int:
    """Have it put in order, if that is needed; return its MountState. Raises Refused."""
    with open(target.device, "rb") as file:
        read, size = copies.reader(file.fileno()), file.seek(0, os.SEEK_END)
        if claimed(target.fstype, read, size):
            raise Refused(errno.EROFS, f"its end is missing: {INSTEAD}")
        if copies.before(target.fstype, read, size) is not None:
            raise Refused(errno.EROFS, f"it is damaged, or its journal is elsewhere: {INSTEAD}")
        return put_in_order(target.fstype, read, target.device)
