"""Files of an image are copied out of it, and nothing is made outside of the folder that they go to.

Everything is made by descriptors of folders that were made or opened here, never through a link, and new: so neither
names nor links of a medium lead anywhere. What is copied has no rights: no owner of the medium's, no set-user-ID, and
no device node.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from mountsafe.filesystem.links import contained
from mountsafe.library.naming import Namer, Names
from mountsafe.library.whole import Found, Whole
from mountsafe.session.places import walk_from

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# The copy cannot go on: there is no room, or nobody may write there.
_HOPELESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
PERMISSIONS = 0o777
BLOCK = 4096  # of a file system, which has holes of whole ones


class Links(StrEnum):
    """Which symbolic links are made."""

    CONTAINED = "contained"  # those that cannot lead out of what is copied
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Wish:
    """How it is copied. `preserve`: modes and times as well. `resume`: what is there and complete is left as it is."""

    preserve: bool = False
    resume: bool = False
    names: Names = Names.KEEP
    links: Links = Links.CONTAINED


class Hears:
    """Who hears how a copy goes."""

    def failed(self, path: bytes, error: OSError) -> None:
        """Something could not be read, or made."""

    def left_out(self, path: bytes, why: str) -> None:
        """Something is not copied, on purpose."""

    def copied(self, count: int) -> None:
        """So many bytes more are there."""


class Copy:
    """Copies into folders. Hard links of the medium are hard links of the copy."""

    def __init__(self, whole: Whole, wish: Wish, hears: Hears) -> None:
        self._whole = whole
        self._wish = wish
        self._hears = hears
        self._made: dict[tuple[int, int], tuple[int, list[bytes]]] = {}  # of hard links: the folder, and names to it

    def into(self, folder: int, found: Found, name: bytes) -> None:
        """Copy something, and all that is below it, as `name` into an open folder.

        Folders are not kept open while what is in them is copied: there may be more of them in each other than a
        process may have open. Raises OSError if it cannot go on at all.
        """
        top = folder
        todo: list[tuple[list[bytes], Found, bytes, bool]] = [([], found, name, False)]
        while todo:
            names, found, name, done = todo.pop()
            try:
                parent = _walk(top, names)
            except OSError as error:
                self._failed(found, error)
                continue
            try:
                if done:
                    self._preserve(parent, name, found)
                elif self._make(top, parent, names, found, name) and found.is_folder:
                    todo.append((names, found, name, True))
                    namer = Namer(self._wish.names)
                    below = [(each, namer.name(os.path.basename(each.path))) for each in self._whole.inside(found.path)]
                    todo += [([*names, name], each, called, False) for each, called in reversed(below)]
            except OSError as error:
                self._failed(found, error)
            finally:
                os.close(parent)

    def _failed(self, found: Found, error: OSError) -> None:
        if error.errno in _HOPELESS:
            raise error
        self._hears.failed(found.path, error)

    def _make(self, top: int, parent: int, names: Sequence[bytes], found: Found, name: bytes) -> bool:
        """Make the copy of one thing; whether it is there."""
        if found.is_folder:
            with suppress(FileExistsError):
                os.mkdir(name, PERMISSIONS, dir_fd=parent)
            os.close(os.open(name, FOLDER, dir_fd=parent))  # or it is a link that was there, or a file
            return True
        if found.is_link:
            return self._link(parent, max(1, len(names)), found, name)
        if not found.is_file:
            self._hears.left_out(found.path, "it is neither a file, a folder nor a link")
            return False
        if self._wish.resume and self._is_there(parent, found, name):
            return True
        first = self._made.get(found.identity) if found.status.st_nlink > 1 else None
        if first is None or not self._hard(top, parent, first, name):
            self._file(parent, found, name)
        if found.status.st_nlink > 1:
            self._made.setdefault(found.identity, (top, [*names, name]))
        return True

    def _is_there(self, parent: int, found: Found, name: bytes) -> bool:
        """Whether a copy is complete: it has its size and its time, which is set last. One that is not is removed."""
        try:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISREG(st.st_mode):
            if (st.st_size, st.st_mtime_ns) == (found.status.st_size, found.status.st_mtime_ns):
                return True
            os.unlink(name, dir_fd=parent)
        return False

    def _link(self, parent: int, depth: int, found: Found, name: bytes) -> bool:
        out = contained(found.target, depth) != found.target
        if self._wish.links is Links.NONE or (out and self._wish.links is Links.CONTAINED):
            self._hears.left_out(found.path, "it is a link that leads out" if out else "it is a link")
            return False
        if self._wish.resume:
            with suppress(OSError):
                if os.readlink(name, dir_fd=parent) == found.target:
                    return True
        os.symlink(found.target, name, dir_fd=parent)
        if self._wish.preserve:
            _set_times(parent, name, found)
        return True

    def _hard(self, top: int, parent: int, first: tuple[int, list[bytes]], name: bytes) -> bool:
        """Make a hard link to the copy that is there; whether that can be."""
        start, (*names, last) = first
        try:
            folder = _walk(start, names)
        except OSError:
            return False
        try:
            os.link(last, name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links, or too many of them
            return False
        finally:
            os.close(folder)
        return True

    def _file(self, parent: int, found: Found, name: bytes) -> None:
        fd = os.open(name, NEW, 0o666, dir_fd=parent)
        try:
            try:
                self._content(fd, found)
                if self._wish.preserve:
                    os.fchmod(fd, stat.S_IMODE(found.status.st_mode) & PERMISSIONS)
                if self._wish.preserve or self._wish.resume:
                    os.utime(fd, ns=(found.status.st_atime_ns, found.status.st_mtime_ns))
            finally:
                os.close(fd)
        except BaseException:  # half a file is none
            with suppress(OSError):
                os.unlink(name, dir_fd=parent)
            raise

    def _content(self, fd: int, found: Found) -> None:
        """Write what a file has; what is known to be a hole, or is zeros all over, becomes one."""
        with self._whole.open(found.path) as file:
            at, size = file.next_data(0), file.size
            os.ftruncate(fd, size)
            while at < size:
                data = file.pread(1 << 20, at)
                for start, end in _runs(data):
                    _write(fd, data[start:end], at + start)
                at += len(data)
                self._hears.copied(len(data))
                if at < size:
                    at = file.next_data(at)

    def _preserve(self, parent: int, name: bytes, found: Found) -> None:
        """Set a folder's mode and times, when all that is in it is made."""
        if not self._wish.preserve:
            return
        fd = os.open(name, FOLDER, dir_fd=parent)
        try:
            os.utime(fd, ns=(found.status.st_atime_ns, found.status.st_mtime_ns))
            os.fchmod(fd, stat.S_IMODE(found.status.st_mode) & PERMISSIONS | stat.S_IRWXU)
        finally:
            os.close(fd)


def _walk(top: int, names: Sequence[bytes]) -> int:
    """Open the folder that names lead to, none of which may be a link."""
    return walk_from(os.dup(top), names, FOLDER)


def _runs(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield the begins and ends of what is to be written: blocks of zeros are holes already."""
    start = None
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        if block.count(0) != len(block):
            start = at if start is None else start
        elif start is not None:
            yield start, at
            start = None
    if start is not None:
        yield start, len(data)


def _write(fd: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _set_times(parent: int, name: bytes, found: Found) -> None:
    with suppress(OSError):  # a file system that keeps none of links
        times = (found.status.st_atime_ns, found.status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
