"""Make, link, rename and remove names in folders."""

import errno
import os
import stat
from contextlib import suppress

from mountsafe import wire
from mountsafe.agent.entries import fitting, numbers
from mountsafe.agent.folders import split
from mountsafe.agent.places import OPEN_FILE, Places
from mountsafe.agent.programs import Refused
from mountsafe.changes import Act, Change, Flag

SPECIAL_BITS = 0o7000
# Where the owner of a file is not kept, that is no failure of making one.
_NOT_KEPT = (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL)


class Naming:
    """In one mounted file system. Each method returns the entries that answer; raises OSError, Refused."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def create(self, change: Change) -> tuple[int, list[bytes]]:
        """Make a regular file; return its descriptor too. One that is there from before is opened as it is."""
        self._places.settle_folder(change.path)
        folder, name = self._places.of(change.path)
        try:
            fd = os.open(name, OPEN_FILE | os.O_RDWR | os.O_CREAT | os.O_EXCL, change.mode & 0o7777, dir_fd=folder)
        except FileExistsError:
            if not change.flags & Flag.AGAIN:
                raise
            self._places.settle(change.path)
            fd = self._places.regular(*self._places.of(change.path))
        try:
            self._own(fd, change)
            return fd, self._places.changed_in(change.path)
        except BaseException:
            os.close(fd)
            raise

    def make(self, change: Change) -> list[bytes]:
        """Make a folder, an empty file, a FIFO or a symbolic link."""
        self._places.settle_folder(change.path)
        folder, name = self._places.of(change.path)
        if change.act == Act.MKDIR:
            os.mkdir(name, change.mode & 0o7777, dir_fd=folder)
        elif change.act == Act.SYMLINK:
            os.symlink(change.other, name, dir_fd=folder)
        elif stat.S_IFMT(change.mode) in (stat.S_IFREG, stat.S_IFIFO):
            os.mknod(name, change.mode, dir_fd=folder)
        else:
            raise Refused(errno.EPERM, "nothing but files, folders, FIFOs and symbolic links is made")
        self._own(name, change, folder)
        return self._places.changed_in(change.path)

    def _own(self, at: int | bytes, change: Change, folder: int | None = None) -> None:
        """Give what was made its owner and its whole mode, by its descriptor or its name in an open folder.

        A folder may say that what is made in it has the folder's group.
        """
        above = os.fstat(self._places.of(change.path)[0])
        follow = folder is None
        mode, gid = change.mode, change.gid
        if above.st_mode & stat.S_ISGID:
            mode, gid = mode | (stat.S_ISGID if change.act == Act.MKDIR else 0), -1
        try:
            os.chown(at, change.uid, gid, dir_fd=folder, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NOT_KEPT:
                raise
        if change.act == Act.SYMLINK:
            return
        if (os.stat(at, dir_fd=folder, follow_symlinks=follow).st_mode ^ mode) & SPECIAL_BITS:
            with suppress(PermissionError):
                os.chmod(at, stat.S_IMODE(mode), dir_fd=folder)

    def link(self, change: Change) -> list[bytes]:
        """Give a file another name."""
        folder, name = self._places.of(change.other)
        source = os.dup(folder)
        try:
            target, new = self._places.of(change.path)
            os.link(name, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(source)
        return self._places.changed_in(change.path)

    def rename(self, change: Change) -> list[bytes]:
        """Rename, over what is there if need be."""
        if change.flags & Flag.EXCHANGE:
            raise Refused(errno.EINVAL, "two names cannot be exchanged")
        for path in (change.path, change.other):
            split(path)  # neither is the root
            self._places.settle_folder(path)
        self._places.settle(change.path)
        folder, name = self._places.of(change.path)
        is_folder = stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        source = os.dup(folder)
        try:
            target, new = self._places.of(change.other)
            if change.flags & Flag.NOREPLACE and self._places.found(change.other) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
        finally:
            os.close(source)
        if is_folder:
            self._places.moved()
        _, left = self._places.changed_in(change.path)
        return [*self._places.changed_in(change.other), left]

    def unlink(self, change: Change) -> list[bytes]:
        """Remove a name of what is no folder."""
        self._places.settle_folder(change.path)
        folder, name = self._places.of(change.path)
        kept = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            before = os.fstat(kept)
            os.unlink(name, dir_fd=folder)
            gone, above = self._places.changed_in(change.path)
            if before.st_nlink > 1 and not stat.S_ISDIR(before.st_mode):
                target = os.readlink(b"", dir_fd=kept) if stat.S_ISLNK(before.st_mode) else b""
                left = fitting(self._places.amended.settled(numbers(_still(kept, before))))
                gone = wire.pack_entry(name, left, target[: wire.MAX_TARGET])
        finally:
            os.close(kept)
        return [gone, above]

    def rmdir(self, change: Change) -> list[bytes]:
        """Remove an empty folder."""
        self._places.settle_folder(change.path)
        folder, name = self._places.of(change.path)
        os.rmdir(name, dir_fd=folder)
        self._places.forget()
        self._places.amended.removed(change.path)
        return self._places.changed_in(change.path)


def _still(fd: int, before: os.stat_result) -> os.stat_result:
    """Return what an open file is now, that had another name; a driver that is a program may not know any more."""
    try:
        return os.fstat(fd)
    except OSError:
        mode, ino, device, links, *rest = before[:10]
        names = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blocks")
        return os.stat_result((mode, ino, device, links - 1, *rest), {name: getattr(before, name) for name in names})
