"""All file systems of an image as one tree, as `mount` shows them: the only one, or each in a folder of its own.

Paths are bytes here, from the tree's root.
"""

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mountsafe.library.files import ImageFile
from mountsafe.library.filesystem import FileSystem
from mountsafe.library.results import DirEntry, status
from mountsafe.wire import Entry

_TOP = Entry(b"", stat.S_IFDIR | 0o555, 2, 0, 0, 1, 0, 0, 0, 0, 0, b"")  # the folder of all file systems
Failed = Callable[[bytes, OSError], None]


class Found(NamedTuple):
    """Something in the tree: its path, its attributes (of a link its own), and where it leads if it is one."""

    path: bytes
    status: os.stat_result
    target: bytes

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)

    @property
    def identity(self) -> tuple[int, int]:
        """By what hard links of one file are known."""
        return self.status.st_dev, self.status.st_ino


class Whole:
    """What `mount` would show of these file systems; "2" is partition 2's folder as well. Raises what they raise."""

    def __init__(self, filesystems: Sequence[FileSystem]) -> None:
        self._one = filesystems[0] if len(filesystems) == 1 else None
        self._by_folder = {os.fsencode(each.folder): each for each in filesystems}
        self._by_name = {os.fsencode(each.name): each for each in filesystems}

    def _at(self, path: bytes) -> tuple[FileSystem | None, bytes]:
        """Return the file system that a path is in, None for the folder of all of them, and the path in it."""
        if self._one is not None:
            return self._one, path
        first, _, rest = posixpath.normpath(b"/" + path).lstrip(b"/").partition(b"/")
        if not first:
            return None, b""
        found = self._by_folder.get(first) or self._by_name.get(first)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found, rest + b"/" if rest and path.endswith(b"/") else rest

    def find(self, path: bytes, follow: bool = True) -> Found:
        """Return what is at a path; `follow`: at the end of links. A slash at its end follows them as well."""
        fs, inside = self._at(path)
        if fs is None:
            return Found(path, status(_TOP, 0), b"")
        st = fs.stat(inside, follow_symlinks=follow)
        return Found(path, st, fs.readlink(inside) if stat.S_ISLNK(st.st_mode) else b"")

    def inside(self, folder: bytes) -> list[Found]:
        """Return what is in a folder, by name."""
        fs, path = self._at(folder)
        if fs is None:
            return [self.find(name, follow=False) for name in sorted(self._by_folder)]
        return sorted(_found(folder, entry) for entry in fs.scandir(path))

    def open(self, path: bytes) -> ImageFile:
        """Open a file; a link is followed."""
        fs, inside = self._at(path)
        if fs is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return fs.open_raw(inside)

    def below(self, found: Found, failed: Failed) -> Iterator[Found]:
        """Yield something and all that is below it, folders before what is in them; what cannot be read goes to
        `failed`.
        """
        todo = [found]
        while todo:
            one = todo.pop()
            yield one
            if one.is_folder:
                try:
                    todo += reversed(self.inside(one.path))
                except OSError as error:
                    failed(one.path, error)


def _found(folder: bytes, entry: DirEntry[bytes]) -> Found:
    path = entry.name if folder in (b"", b"/") else posixpath.join(folder, entry.name)
    return Found(path, entry.stat(follow_symlinks=False), entry.target)
