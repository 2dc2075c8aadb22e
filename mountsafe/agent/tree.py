"""A mounted file system as the host asks for it."""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

from mountsafe import wire
from mountsafe.agent.extents import ExtentMap
from mountsafe.agent.programs import Refused


class Tree:
    """A mounted file system as the host asks for it: by path, in bytes, from its root."""

    OPEN_FILES = 64
    OPEN_LISTINGS = 16

    def __init__(
        self, where: str, kernel_type: str, mapped: bool, changed: list[tuple[int, int]], device: str = ""
    ) -> None:
        self._root = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        self._where = os.fsencode(where)
        self._map = ExtentMap(kernel_type, mapped, changed, self._root, device)
        self._files: OrderedDict[bytes, int] = OrderedDict()
        self._listings: OrderedDict[int, tuple[int, Iterator[os.DirEntry[str]]]] = OrderedDict()
        self._next_cursor = 1

    @property
    def direct(self) -> bool:
        """Whether the host may read from the medium by extents."""
        return self._map.direct

    def close(self) -> None:
        """Close every descriptor."""
        self._map.close()
        for fd in (self._root, *self._files.values()):
            os.close(fd)
        for folder, listing in self._listings.values():
            self._close_listing(folder, listing)

    def root(self) -> wire.Entry:
        """The root's attributes, under an empty name."""
        return self._entry("", os.fstat(self._root), self._root)

    def _parent(self, path: bytes) -> tuple[int, bytes, bool]:
        """Return (descriptor of the folder, last name, whether to close it). Deep paths are walked in steps."""
        if len(path) < 3000:
            return self._root, path or b".", False
        at = os.dup(self._root)
        *folders, name = path.split(b"/")
        for index in range(0, len(folders), 8):
            step = b"/".join(folders[index : index + 8])
            following = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = following
        return at, name, True

    def _open(self, path: bytes, flags: int) -> int:
        folder, name, close = self._parent(path)
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            if close:
                os.close(folder)

    def _file(self, path: bytes) -> int:
        fd = self._files.pop(path, -1)
        if fd < 0:
            fd = self._open(path, os.O_RDONLY)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise Refused(errno.EINVAL, "not a regular file")
        self._files[path] = fd
        if len(self._files) > self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return fd

    def _entry(self, name: str, st: os.stat_result, folder: int) -> wire.Entry:
        target = b""
        flags = 0
        if stat.S_ISLNK(st.st_mode):
            target = os.readlink(os.fsencode(name), dir_fd=folder)[: wire.MAX_TARGET]
        elif stat.S_ISREG(st.st_mode) and st.st_size and self._map.direct:
            flags = wire.EntryFlag.EXTENTS_MORE
        return wire.Entry(
            os.fsencode(name), flags, st.st_mode, st.st_nlink & 0xFFFFFFFF, st.st_uid, st.st_gid, st.st_ino,
            st.st_size, st.st_blocks, _time(st.st_atime_ns), _time(st.st_mtime_ns), _time(st.st_ctime_ns),
            target, (),
        )  # fmt: skip

    def layout(self, path: bytes, names: list[bytes]) -> bytes:
        """Return the extents of files of the folder at `path`; of one with many of them, that there are more."""
        folder = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return wire.pack_layout([self._layout_of(folder, name) for name in names])
        finally:
            os.close(folder)

    def _layout_of(self, folder: int, name: bytes) -> tuple[list[wire.Extent], bool]:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            return [], False
        try:
            extents, following = self._map.of(fd, os.fstat(fd), 0, wire.MAX_ENTRY_EXTENTS)
        finally:
            os.close(fd)
        if following or len(extents) > wire.MAX_ENTRY_EXTENTS:
            return [], True
        return extents, False

    def list_page(self, path: bytes, cursor: int) -> bytes:
        """Return a page of the folder at `path`. What cannot be looked at is sent with mode 0: its name is known."""
        folder, listing = self._listing(path, cursor)
        page = wire.PageBuilder()
        for found in listing:
            try:
                entry = self._entry(found.name, found.stat(follow_symlinks=False), folder)
            except OSError:
                entry = wire.Entry(os.fsencode(found.name), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b"", ())
            if len(entry.name) > wire.MAX_NAME:
                continue
            if not page.add(entry):
                return page.pack(self._keep(cursor, folder, listing))
        self._listings.pop(cursor, None)
        self._close_listing(folder, listing)
        return page.pack(0)

    @staticmethod
    def _close_listing(folder: int, listing: Iterator[os.DirEntry[str]]) -> None:
        listing.close()  # type: ignore[attr-defined]  # os.scandir's iterator has it
        os.close(folder)

    def _listing(self, path: bytes, cursor: int) -> tuple[int, Iterator[os.DirEntry[str]]]:
        if cursor:
            if cursor not in self._listings:
                raise Refused(errno.ESTALE, "unknown cursor")
            return self._listings[cursor]
        folder = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        return folder, os.scandir(folder)

    def _keep(self, cursor: int, folder: int, listing: Iterator[os.DirEntry[str]]) -> int:
        if cursor:
            self._listings.move_to_end(cursor)
            return cursor
        cursor, self._next_cursor = self._next_cursor, self._next_cursor + 1
        self._listings[cursor] = (folder, listing)
        if len(self._listings) > self.OPEN_LISTINGS:
            self._close_listing(*self._listings.popitem(last=False)[1])
        return cursor

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        """Return bytes of a file."""
        fd = self._file(path)
        data = os.pread(fd, length, offset)
        while data and len(data) < length:
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def extents(self, path: bytes, offset: int) -> bytes:
        """Return extents of a file from `offset` on."""
        fd = self._file(path)
        extents, following = self._map.of(fd, os.fstat(fd), offset, wire.MAX_EXTENTS)
        if len(extents) > wire.MAX_EXTENTS:
            last = extents[wire.MAX_EXTENTS - 1]
            extents, following = extents[: wire.MAX_EXTENTS], last.logical + last.length
        return wire.pack_extents(extents, following)

    def xattrs(self, path: bytes) -> bytes:
        """Return the extended attributes of anything but a symbolic link, which Linux gives none."""
        fd = self._open(path, os.O_RDONLY)
        try:
            pairs = [(os.fsencode(name), os.getxattr(fd, name)) for name in os.listxattr(fd)]
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # ntfs-3g comes to that opinion at the first reparse point
                raise
            pairs = []
        finally:
            os.close(fd)
        return wire.pack_xattrs([pair for pair in pairs if len(pair[0]) <= wire.MAX_TEXT])

    def statfs(self) -> bytes:
        """Return the file system's figures."""
        v = os.fstatvfs(self._root)
        told = (v.f_bsize, v.f_frsize, v.f_blocks, v.f_bfree, v.f_bavail, v.f_files, v.f_ffree, v.f_namemax)
        # Python takes these unsigned numbers for signed; erofs says ULLONG_MAX files.
        return wire.pack_statfs(wire.Statfs(*(number & 0xFFFFFFFFFFFFFFFF for number in told)))


def _time(nanoseconds: int) -> int:
    return max(-(1 << 63), min((1 << 63) - 1, nanoseconds))
