"""Folders that are mounted on, held by descriptors from the moment they are checked.

A path may lead elsewhere a moment later, wherever somebody else may rename a part of it; a descriptor does not.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def walk(path: Path) -> int:
    """Return a descriptor of a folder whose path has no symbolic link in it. Raises OSError (ENOTDIR if it has)."""
    return walk_from(os.open("/", FOLDER), path.parts[1:], FOLDER)


def walk_from(at: int, names: Iterable[str | bytes], flags: int) -> int:
    """Return the folder that names lead to from an open one, which is closed. `flags` open each, and follow no link."""
    for name in names:
        try:
            below = os.open(name, flags, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def number_of(fd: int) -> int:
    """Return the number of the mount that a descriptor is in. Asks nobody."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    raise OSError("a descriptor without a mount")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder `fd` with the name `path.name` in the folder `parent`. `created`: it was made to be mounted on."""

    path: Path
    parent: int
    fd: int
    created: bool = False

    @classmethod
    def hold(cls, path: Path, made: bool = False) -> "Place":
        """Hold a folder; `made` makes it, and an existing one raises FileExistsError. Raises OSError."""
        return cls._held(path, walk(path.parent), made)

    @classmethod
    def of(cls, path: Path, parent: int, made: bool = False) -> "Place":
        """Hold a folder in one that is held, which is the place's from then on; otherwise as `hold`."""
        return cls._held(path, parent, made)

    def below(self, name: str, most: int = 1) -> "Place":
        """Make a folder in this one, with a number up to `most` if its name is taken. Raises OSError."""
        for number in range(1, most):
            with suppress(FileExistsError):
                return self._below(name if number == 1 else f"{name}-{number}")
        return self._below(name if most == 1 else f"{name}-{most}")

    def _below(self, name: str) -> "Place":
        return self._held(self.path / name, os.dup(self.fd), made=True)

    @classmethod
    def _held(cls, path: Path, parent: int, made: bool) -> "Place":
        try:
            if made:
                os.mkdir(path.name, 0o755, dir_fd=parent)
            return cls(path, parent, os.open(path.name or ".", FOLDER, dir_fd=parent), made)
        except BaseException:
            os.close(parent)
            raise

    @property
    def number(self) -> tuple[int, int]:
        """The device and inode number of the folder, and not of what is mounted on it."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def told(self) -> tuple[str, int, int]:
        """What a record keeps of it, for `removed`."""
        return os.fspath(self.path), *self.number

    def remove(self) -> None:
        """Remove the folder if it is in its place still, and empty."""
        _remove(self.parent, self.path.name, self.number)

    def close(self) -> None:
        """Let go."""
        os.close(self.fd)
        os.close(self.parent)


def removed(path: Path, number: tuple[int, int]) -> None:
    """Remove the folder at `path` if it is the one with these numbers, and empty; for callers without it."""
    with suppress(OSError):
        parent = walk(path.parent)
        try:
            _remove(parent, path.name, number)
        finally:
            os.close(parent)


def _remove(parent: int, name: str, number: tuple[int, int]) -> None:
    with suppress(OSError):
        fd = os.open(name, FOLDER, dir_fd=parent)
        try:
            if number_of(fd) != number_of(parent):
                return  # something is mounted on it, and a look at that may wait for its process
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if (status.st_dev, status.st_ino) == number:
            os.rmdir(name, dir_fd=parent)
