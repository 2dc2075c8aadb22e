"""A file system of an image, as `os` has them: names in text or bytes, attributes, files; nothing can be changed."""

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, AnyStr, TypeVar, overload

from mountsafe import reading, wire
from mountsafe.library.files import BUFFER, ImageFile
from mountsafe.library.results import DirEntry, checked, status
from mountsafe.library.stream import Stream
from mountsafe.limits import MAX_DIRECTORY_ENTRIES
from mountsafe.reading import Asked, Flag, Held, Kind
from mountsafe.session.record import Mount

FIRST = 64 << 10  # bytes of a file that come with opening it
T = TypeVar("T")
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Walked = tuple[AnyStr, list[AnyStr], list[AnyStr]]


class FileSystem:
    """One file system. Paths are from its root, with or without a slash before; of bytes, bytes are told.

    Symbolic links lead where they would if its root were "/": never out of it. All of it may be called by any thread.
    It raises OSError, with the errno that a mount would have: EIO too where the virtual machine or what reads for it is
    lost; ValueError once the image is closed, or in a process that was forked since.
    """

    def __init__(self, owner: object, stream: Stream, mount: Mount, number: int) -> None:
        self._owner = owner  # who ends all of it when nobody has it any more
        self._stream = stream
        self._number = number
        self.name = mount.name
        self.folder = mount.target  # the name that `mount` would give its folder, beside others
        self.partition = mount.partition
        self.fstype = mount.fstype
        self.label = mount.label
        self.note = mount.note
        self.encryption = mount.encryption

    def __repr__(self) -> str:
        label = f" {self.label!r}" if self.label else ""
        return f"<mountsafe.FileSystem {self.name} {self.fstype}{label}>"

    # --- what is there ---------------------------------------------------------------------------------------------
    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return what `os.stat` would. `st_dev` tells the file systems of one image apart."""
        return status(self._look(path, follow_symlinks), self._number)

    def lstat(self, path: Path) -> os.stat_result:
        """Return what `os.lstat` would."""
        return self.stat(path, follow_symlinks=False)

    def _look(self, path: Path, follow: bool) -> wire.Entry:
        return self._told(_entry, self._asked(Kind.LOOK, path, follow))

    def exists(self, path: Path) -> bool:
        """Whether there is something, at the end of links. Raises OSError if that cannot be told."""
        try:
            self._look(path, follow=True)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    @overload
    def readlink(self, path: str | os.PathLike[str]) -> str: ...
    @overload
    def readlink(self, path: bytes | os.PathLike[bytes]) -> bytes: ...
    def readlink(self, path: Path) -> str | bytes:
        """Return where a link leads, as the medium has it."""
        entry = self._look(path, follow=False)
        if not stat.S_ISLNK(entry.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(path))
        return entry.target if isinstance(os.fspath(path), bytes) else os.fsdecode(entry.target)

    @overload
    def scandir(self, path: str | os.PathLike[str] = ...) -> Iterator[DirEntry[str]]: ...
    @overload
    def scandir(self, path: bytes | os.PathLike[bytes]) -> Iterator[DirEntry[bytes]]: ...
    def scandir(self, path: Path = "") -> Iterator[DirEntry[Any]]:
        """Yield what is in a folder, in the medium's order, without "." and ".."; a huge one comes in pages."""
        folder = os.fspath(path)
        text = isinstance(folder, str)
        for entry in self._entries(folder):
            name: Any = os.fsdecode(entry.name) if text else entry.name
            yield DirEntry(name, os.path.join(folder, name), entry, self._number, self.stat)

    def _entries(self, path: str | bytes) -> Iterator[wire.Entry]:
        cursor, names = 0, set[bytes]()
        while True:
            body = self._asked(Kind.LIST, path, True, cursor)
            cursor, entries = self._told(_page, body, cursor, names)
            yield from entries
            if not cursor:
                return

    def listdir(self, path: Path = "") -> list[Any]:
        """Return the names in a folder, of the type of the path."""
        return [entry.name for entry in self.scandir(path)]

    def walk(
        self,
        top: AnyStr,
        topdown: bool = True,
        onerror: Callable[[OSError], object] | None = None,
    ) -> Iterator[Walked[AnyStr]]:
        """Yield (path, names of folders, names of the rest) of each folder, as `os.walk` does; no link is followed.

        Folders that are in each other without end are cut by the bounds of paths (OSError, ELOOP).
        """
        todo: list[AnyStr | Walked[AnyStr]] = [top]
        while todo:
            folder = todo.pop()
            if isinstance(folder, tuple):
                yield folder
                continue
            try:
                entries = list(self.scandir(folder))
            except OSError as error:
                if onerror is not None:
                    onerror(error)
                continue
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            walked = (folder, folders, [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)])
            if topdown:
                yield walked
            else:
                todo.append(walked)
            todo += [os.path.join(folder, name) for name in reversed(folders)]  # as whoever asks may have cut them

    # --- files -----------------------------------------------------------------------------------------------------
    def open_raw(self, path: Path, *, follow_symlinks: bool = True) -> ImageFile:
        """Return a file without a buffer; `pread` and `next_data` are its own."""
        body = self._asked(Kind.OPEN, path, follow_symlinks, length=FIRST)
        opened = self._told(_opened, body)
        return ImageFile(self, os.fspath(path), opened)

    def open(
        self,
        path: Path,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Open a file as `open` does, to read it: "rb" (an `io.BufferedReader`) or "r", "rt" (`io.TextIOWrapper`).

        `buffering`: how many bytes are read ahead; 0 returns an `io.RawIOBase`.
        """
        if mode not in ("r", "rb", "rt"):
            raise ValueError(f"mode {mode!r}: an image is only read")
        raw = self.open_raw(path)
        if buffering == 0 and mode == "rb":
            return raw
        buffered = io.BufferedReader(raw, buffering if buffering > 1 else BUFFER)
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, encoding, errors, newline)

    def read_bytes(self, path: Path) -> bytes:
        """Return all bytes of a file."""
        with self.open_raw(path) as file:
            return file.readall()

    def _forget(self, handle: int) -> None:
        with suppress(OSError, ValueError):  # the stream has ended, or it is another process's
            self._stream.forget(self._stream.begin(Kind.CLOSE, reading.pack_held(Held(handle))))

    # --- the rest --------------------------------------------------------------------------------------------------
    def xattrs(self, path: Path, *, follow_symlinks: bool = True) -> dict[str, bytes]:
        """Return the extended attributes that are no business of a kernel's: user.* and osx.*."""
        body = self._asked(Kind.XATTRS, path, follow_symlinks)
        return {os.fsdecode(name): value for name, value in self._told(_xattrs, body)}

    def statvfs(self) -> os.statvfs_result:
        """Return what `os.statvfs` would."""
        body = bytes(self._stream.ask(Kind.STATFS))
        told = self._told(wire.unpack_statfs, body)
        sizes = (told.bsize, told.frsize, told.blocks, told.bfree, told.bavail)
        flags, name_max = os.ST_RDONLY | os.ST_NOSUID, min(told.namemax, wire.MAX_NAME) or wire.MAX_NAME
        return os.statvfs_result((*sizes, told.files, told.ffree, told.ffree, flags, name_max))

    def _asked(self, kind: int, path: Path, follow: bool, number: int = 0, length: int = 0) -> bytes:
        shown = os.fspath(path)
        asked = os.fsencode(shown)
        if b"\0" in asked:
            raise ValueError("embedded null byte")
        if len(asked) > wire.MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), shown)
        body = reading.pack_asked(Asked(asked, Flag.FOLLOW if follow else 0, number, length))
        try:
            return bytes(self._stream.ask(kind, body))
        except OSError as error:
            raise OSError(error.errno, error.strerror, shown) from None

    def _told(self, decode: Callable[..., T], untrusted_body: bytes, *arguments: Any) -> T:
        """Return what an answer says; one that is not of its form ends the stream. Raises OSError."""
        try:
            return decode(untrusted_body, *arguments)
        except wire.WireError as error:
            raise self._stream.broken(str(error)) from error


def _entry(untrusted_body: bytes) -> wire.Entry:
    return checked(reading.unpack_entry(untrusted_body), named=False)


def _opened(untrusted_body: bytes) -> reading.Opened:
    opened = reading.unpack_opened(untrusted_body)
    checked(opened.entry, named=False)
    if not stat.S_ISREG(opened.entry.mode) or len(opened.first) != min(FIRST, opened.entry.size):
        raise wire.WireError("what is open is no file, or begins with other bytes than it has")
    return opened


def _xattrs(untrusted_body: bytes) -> list[tuple[bytes, bytes]]:
    pairs = wire.unpack_xattrs(untrusted_body)
    if any(not name or b"\0" in name or b"/" in name for name, _ in pairs):
        raise wire.WireError("an attribute of an impossible name")
    return pairs


def _page(untrusted_body: bytes, cursor: int, names: set[bytes]) -> tuple[int, list[wire.Entry]]:
    """Return the next cursor and the entries of a page, whose names none before had; `names` grows by them."""
    untrusted_following, untrusted_entries = wire.unpack_page(untrusted_body)
    entries = [checked(untrusted, named=True) for untrusted in untrusted_entries]
    if untrusted_following and (untrusted_following <= cursor or not entries):
        raise wire.WireError("a folder that does not go on")
    before = len(names)
    names.update(entry.name for entry in entries)
    if len(names) != before + len(entries):
        raise wire.WireError("a name that comes twice")
    if len(names) > MAX_DIRECTORY_ENTRIES + wire.MAX_PAGE_ENTRIES:
        raise wire.WireError("a folder without end")
    return untrusted_following, entries
