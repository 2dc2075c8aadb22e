"""Attributes of files and folders, set: size, owner, mode, times, and extended ones."""

import errno
import os
import stat

from mountsafe.agent.places import Places
from mountsafe.agent.programs import Refused
from mountsafe.changes import NO_TIME, Change, Flag


class Attributes:
    """In one mounted file system. What is asked by path returns the entries that answer; OSError, Refused."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def by_path(self, change: Change) -> list[bytes]:
        """Set what the flags say."""
        self._places.settle(change.path)
        folder, name = self._places.of(change.path)
        if change.flags & Flag.SET_SIZE:
            fd = self._places.regular(folder, name)
            try:
                os.ftruncate(fd, change.size)
            finally:
                os.close(fd)
        self._set(change, name, folder)
        return self._places.changed(change.path)

    def by_descriptor(self, change: Change, fd: int) -> None:
        """The same, of an open file."""
        if change.flags & Flag.SET_SIZE:
            os.ftruncate(fd, change.size)
        self._set(change, fd, None)

    def _set(self, change: Change, at: int | bytes, folder: int | None) -> None:
        """All but the size, by a descriptor, or by a name in an open folder. The times come last."""
        flags, follow = change.flags, folder is None
        st = os.stat(at, dir_fd=folder, follow_symlinks=follow)
        if flags & (Flag.SET_UID | Flag.SET_GID):
            uid, gid = change.uid if flags & Flag.SET_UID else -1, change.gid if flags & Flag.SET_GID else -1
            os.chown(at, uid, gid, dir_fd=folder, follow_symlinks=follow)
        if flags & Flag.SET_MODE:
            if stat.S_ISLNK(st.st_mode):
                raise Refused(errno.EOPNOTSUPP, "a symbolic link has no mode")
            os.chmod(at, stat.S_IMODE(change.mode), dir_fd=folder)
        if flags & (Flag.SET_ATIME | Flag.SET_MTIME):
            accessed = self._time(change.atime if flags & Flag.SET_ATIME else NO_TIME, st.st_atime_ns)
            st = os.stat(at, dir_fd=folder, follow_symlinks=follow)  # a new size is a change
            changed = self._time(change.mtime if flags & Flag.SET_MTIME else NO_TIME, st.st_mtime_ns)
            os.utime(at, ns=(accessed, changed), dir_fd=folder, follow_symlinks=follow)

    def _time(self, wanted: int, there: int) -> int:
        """Return a time as the driver is to be told it. Its clock, and what it has already, are in its own terms."""
        if wanted == NO_TIME:
            return there
        return self._places.amended.local(wanted)

    # --- extended ----------------------------------------------------------------------------------------------------
    def _place(self, change: Change) -> bytes:
        folder, name = self._places.of(change.path)
        return b"/proc/self/fd/%d/%s" % (folder, name)

    def set_extended(self, change: Change) -> list[bytes]:
        """Set an extended attribute."""
        os.setxattr(self._place(change), change.other, change.value, follow_symlinks=False)
        return self._places.changed(change.path)

    def remove_extended(self, change: Change) -> list[bytes]:
        """Remove an extended attribute."""
        place = self._place(change)
        try:
            os.removexattr(place, change.other, follow_symlinks=False)
        except FileNotFoundError as error:  # by which hfsplus means the attribute as well
            os.lstat(place)
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from error
        return self._places.changed(change.path)
