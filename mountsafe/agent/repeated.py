"""Changes that are sent again, to another virtual machine: which of them, or of those after them, are done already."""

import errno
import os
import stat

from mountsafe.changes import Act, Change, Flag

# Types whose drivers make inode numbers up at each mount: nothing can be told by them.
UNNUMBERED = frozenset({"vfat", "msdos", "exfat"})
# What a change fails with if a later one has been done as well.
_LATER = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ENODATA}
)
_MADE = {Act.CREATE: stat.S_IFREG, Act.MKDIR: stat.S_IFDIR, Act.SYMLINK: stat.S_IFLNK}


class Done(Exception):
    """It is done already, and so is a later one."""


class Repeated:
    """What is known of one series of changes that are sent again."""

    def __init__(self, kernel_type: str) -> None:
        self._numbered = kernel_type not in UNNUMBERED
        self._now: dict[int, int] = {}  # inode numbers that files had, and those that they got when made again

    def _wanted(self, change: Change) -> int:
        """Return the inode number that is looked for; 0 if it is not known."""
        if not self._numbered or not change.ino or not change.flags & Flag.AGAIN:
            return 0
        return self._now.get(change.ino, change.ino)

    def require_same(self, change: Change, name: bytes, folder: int) -> None:
        """Raise Done if a name leads to another file than it did when the change was sent first, or nowhere."""
        wanted = self._wanted(change)
        if not wanted:
            return
        try:
            st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            raise Done from None
        if st.st_ino != wanted:
            raise Done

    def made(self, change: Change, st: os.stat_result) -> None:
        """A file was made again: it may have another number."""
        if self._wanted(change) and st.st_ino != change.ino:
            self._now[change.ino] = st.st_ino

    def is_done(self, change: Change, number: int, there: os.stat_result | None, other: os.stat_result | None) -> bool:
        """Whether a change that failed with this errno is done already. `there`, `other`: what its paths lead to."""
        if not change.flags & Flag.AGAIN:
            return False
        if self._wanted(change):
            return number in _LATER
        act = change.act
        if number == errno.ENOENT:
            return act in (Act.UNLINK, Act.RMDIR) or (act == Act.RENAME and other is not None)
        if number == errno.EEXIST and there is not None:
            kind = stat.S_IFMT(there.st_mode)
            if act == Act.LINK:
                return other is not None and (there.st_ino == other.st_ino or not self._numbered)
            return kind == (stat.S_IFMT(change.mode) if act == Act.MKNOD else _MADE.get(act))
        return number == errno.ENODATA and act == Act.REMOVEXATTR
