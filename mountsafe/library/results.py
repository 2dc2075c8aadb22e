"""What the library tells of files: as `os` does, made of entries that the other end of a stream says there are."""

import os
import stat
from collections.abc import Callable
from typing import AnyStr, Generic

from mountsafe import wire
from mountsafe.filesystem.untrusted import fault_of_attributes, fault_of_name

NANO = 1_000_000_000


def checked(untrusted: wire.Entry, named: bool) -> wire.Entry:
    """Return an entry that can be; `named`: it has a name. Raises WireError."""
    if named and (fault := fault_of_name(untrusted.name)):
        raise wire.WireError(fault)
    if fault := fault_of_attributes(untrusted):
        raise wire.WireError(fault)
    return untrusted


def status(entry: wire.Entry, device: int) -> os.stat_result:
    """Return an entry's attributes. What the guest could not look at is a file of mode 0, which cannot be opened."""
    mode = entry.mode or stat.S_IFREG
    times = (entry.atime, entry.mtime, entry.ctime)
    whole = (each // NANO for each in times)
    more = {
        "st_atime": entry.atime / NANO,
        "st_mtime": entry.mtime / NANO,
        "st_ctime": entry.ctime / NANO,
        "st_atime_ns": entry.atime,
        "st_mtime_ns": entry.mtime,
        "st_ctime_ns": entry.ctime,
        "st_blksize": 4096,
        "st_blocks": entry.blocks,
        "st_rdev": 0,
    }
    numbers = (mode, entry.ino, device, max(1, entry.nlink), entry.uid, entry.gid, entry.size)
    return os.stat_result((*numbers, *whole), more)


class DirEntry(Generic[AnyStr]):
    """An entry of a folder, as `os.DirEntry`. What it tells came with the listing, but for where a link leads."""

    __slots__ = ("_entry", "_followed", "_status", "name", "path")
    name: AnyStr
    path: AnyStr
    _followed: Callable[[AnyStr], os.stat_result]

    def __init__(
        self, name: AnyStr, path: AnyStr, entry: wire.Entry, device: int, followed: Callable[[AnyStr], os.stat_result]
    ) -> None:
        self.name = name
        self.path = path
        self._entry = entry
        self._status = status(entry, device)
        self._followed = followed

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"

    def __fspath__(self) -> AnyStr:
        return self.path

    @property
    def target(self) -> bytes:
        """Where a link leads, as the medium has it; empty for what is no link."""
        return self._entry.target

    def inode(self) -> int:
        """Return its number."""
        return self._status.st_ino

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self._status.st_mode)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a folder. Raises OSError, but not if a link leads nowhere."""
        return self._is(stat.S_ISDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file. Raises OSError, but not if a link leads nowhere."""
        return self._is(stat.S_ISREG, follow_symlinks)

    def _is(self, kind: Callable[[int], bool], follow: bool) -> bool:
        try:
            return kind(self.stat(follow_symlinks=follow).st_mode)
        except FileNotFoundError:
            return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return its attributes. Raises OSError."""
        return self._followed(self.path) if follow_symlinks and self.is_symlink() else self._status
