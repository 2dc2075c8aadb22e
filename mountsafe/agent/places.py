"""Where paths lead in a tree that is changed, and what is told of what is there: the same as a listing would tell."""

import errno
import os
import stat

from mountsafe import wire
from mountsafe.agent.amended import Amended
from mountsafe.agent.entries import UNSEEN, fitting, numbers, packed, packed_of_ntfs
from mountsafe.agent.folders import Folders, split
from mountsafe.agent.programs import Refused
from mountsafe.agent.tree import NTFS, Tree

LARGEST_BLOCK = 4096
OPEN_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Places:
    """Of one mounted file system."""

    def __init__(self, tree: Tree, amended: Amended, kernel_type: str, where: str) -> None:
        self.root = tree.fd
        self.amended = amended
        self._tree = tree
        self._type = kernel_type
        self._where = os.fsencode(where)
        self._folders = Folders(tree.fd)

    def of(self, path: bytes) -> tuple[int, bytes]:
        """Return (open folder, name in it): the descriptor is good until the next call. "." is the root's name."""
        if not path:
            return self.root, b"."
        folder, name = split(path)
        return self._folders.at(folder), name

    def found(self, path: bytes) -> os.stat_result | None:
        """Return what is there, if anything is."""
        try:
            folder, name = self.of(path)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (OSError, Refused):
            return None

    def forget(self) -> None:
        """Folders have been moved or removed; also lets go of all that is open."""
        self._folders.forget()

    def moved(self) -> None:
        """A folder has another path, and so has all that is in it."""
        self.forget()
        if self.amended.rests_on_paths:
            os.sync()
            self.amended.synchronised()
            self.amended.moved()

    @staticmethod
    def regular(folder: int, name: bytes) -> int:
        """Return a regular file, opened for reading and writing. Raises OSError, Refused."""
        fd = os.open(name, OPEN_FILE | os.O_RDWR, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(errno.EINVAL, "not a regular file")
        return fd

    # --- what is told ------------------------------------------------------------------------------------------------
    def now(self, path: bytes) -> list[bytes]:
        """Return the entries of what is at a path, and of the folder that it is in; of the root there is none."""
        if not path:
            return [self._folder(b"")]
        folder, name = split(path)
        try:
            fd = self._folders.at(folder)
        except OSError:
            return [wire.pack_entry(name, UNSEEN, b""), wire.pack_entry(folder.rpartition(b"/")[2], UNSEEN, b"")]
        if self._type == NTFS:
            told = packed_of_ntfs(name, fd, self._where, path.count(b"/"))
        else:
            told = packed(name, fd, lambda _, found: self.amended.one(path, found))
        return [told, self._folder(folder)]

    def _folder(self, path: bytes) -> bytes:
        told = numbers(os.fstat(self._folders.at(path)))
        told = self.amended.one(path, told) if path else self.amended.root(told)
        return wire.pack_entry(path.rpartition(b"/")[2], fitting(told), b"")

    def opened(self, fd: int, path: bytes) -> bytes:
        """Return the entry of an open file."""
        return wire.pack_entry(path.rpartition(b"/")[2], fitting(self.amended.settled(numbers(os.fstat(fd)))), b"")

    # --- what is changed ---------------------------------------------------------------------------------------------
    def changed(self, path: bytes) -> list[bytes]:
        """What is at a path was changed: return the entries of it and of its folder."""
        self.amended.changed(path)
        return self.now(path)

    def changed_in(self, path: bytes) -> list[bytes]:
        """The folder was changed that a path's last name is in, by that name: return both entries."""
        folder, _ = split(path)
        self._tree.forget(self._folders.at(folder))
        if folder:
            self.amended.changed(folder)
        return self.changed(path)

    def settle(self, path: bytes) -> None:
        """Have the driver know of a file or folder what `Amended` knows, before it is changed."""
        record = self.amended.unsettled(path)
        if record is None:
            return
        folder, name = self.of(path)
        fd = os.open(name, OPEN_FILE | (os.O_RDONLY if record.folder else os.O_RDWR), dir_fd=folder)
        try:
            st = os.fstat(fd)
            if not record.folder and record.valid < record.size and st.st_size < record.size:
                os.ftruncate(fd, record.size)
                # The rest of the last block that was written is not zeros, as the driver takes for granted.
                os.pwrite(fd, bytes(min(record.size - record.valid, LARGEST_BLOCK)), record.valid)
            os.utime(fd, ns=self.amended.times(record, st.st_atime_ns, st.st_mtime_ns))
            os.fsync(fd)
        finally:
            os.close(fd)
        self.amended.changed(path)

    def settle_folder(self, path: bytes) -> None:
        """The same for the folder that a path's last name is in."""
        self.settle(split(path)[0])
