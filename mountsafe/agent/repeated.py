"""Changes that are sent again, to another virtual machine: which of them are done already."""

import errno
import os
import stat

from mountsafe.changes import Act, Change, Flag

# Types whose drivers make inode numbers up at each mount: nothing can be told by them.
UNNUMBERED = frozenset({"vfat", "msdos", "exfat"})
_MADE = {Act.CREATE: stat.S_IFREG, Act.MKDIR: stat.S_IFDIR, Act.SYMLINK: stat.S_IFLNK}


def is_done(
    change: Change, kernel_type: str, number: int, there: os.stat_result | None, other: os.stat_result | None
) -> bool:
    """Whether a change that failed with this errno is done already. `there`, `other`: what its paths lead to."""
    act = change.act
    if not change.flags & Flag.AGAIN:
        return False
    if number == errno.ENOENT:
        return act in (Act.UNLINK, Act.RMDIR) or (act == Act.RENAME and other is not None)
    if number == errno.EEXIST and there is not None:
        if act == Act.LINK:
            return other is not None and (there.st_ino == other.st_ino or kernel_type in UNNUMBERED)
        return stat.S_IFMT(there.st_mode) == (stat.S_IFMT(change.mode) if act == Act.MKNOD else _MADE.get(act))
    return number == errno.ENODATA and act == Act.REMOVEXATTR
