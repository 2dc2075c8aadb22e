"""A mounted file system, for the requests of the host."""

import errno
import marshal
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from mountsafe import wire
from mountsafe.agent import twin
from mountsafe.agent.amended import Amended, padded
from mountsafe.agent.entries import all_packed, fitting, held, numbers, packed, packed_of_ntfs
from mountsafe.agent.extents import ExtentMap
from mountsafe.agent.names import Names, finds_by_index, names_in
from mountsafe.agent.programs import Refused

Work = Callable[[bytes, list[bytes]], list[bytes]]
WORTH_SHARING = 16  # names of one question: looking at a file takes 0.1 ms in an emulated machine, the sharing as much
READ_WORTH_SHARING = 128 << 10  # bytes for each: a block of squashfs or of btrfs that only one should decompress
NOTHING_PREPARED = (0, b"")
NTFS = "ntfs-3g"


class Tree:
    """A mounted file system as the host asks for it: by path, in bytes, from its root."""

    OPEN_FILES = 64
    OPEN_LISTINGS = 16

    def __init__(
        self,
        where: str,
        kernel_type: str,
        mapped: bool,
        changed: list[tuple[int, int]],
        device: str = "",
        amended: Amended | None = None,
    ) -> None:
        self._root = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        self._type = kernel_type
        self._where = os.fsencode(where)
        self._amended = amended or Amended(kernel_type)
        try:
            self._map = ExtentMap(kernel_type, mapped, changed, self._root, device)
        except BaseException:
            os.close(self._root)
            raise
        self._files: OrderedDict[bytes, int] = OrderedDict()
        self._listings: OrderedDict[int, tuple[int, Names]] = OrderedDict()
        self._next_cursor = 1
        self._following: tuple[bytes, int] | None = None  # path and cursor of the page that will be asked for next
        self._prepared: tuple[int, bytes | Exception] = NOTHING_PREPARED  # its cursor, and what to answer
        self._twin: twin.Twin | None = None
        self._buffer = memoryview(bytearray(wire.MAX_READ // 2))  # the twin's

    @property
    def fd(self) -> int:
        """The root's descriptor."""
        return self._root

    def forget(self, *folders: int) -> None:
        """Names in these open folders have changed: what was opened, listed or prepared before is not told any more."""
        self._prepared, self._following = NOTHING_PREPARED, None
        while self._files:
            os.close(self._files.popitem()[1])
        if self._listings:
            gone = {os.fstat(folder).st_ino for folder in folders}
            for cursor, (fd, _) in list(self._listings.items()):
                if os.fstat(fd).st_ino in gone:
                    self._close_listing(*self._listings.pop(cursor))

    @property
    def direct(self) -> bool:
        """Whether the host may read from the medium by extents."""
        return self._map.direct

    def close(self) -> None:
        """Close every descriptor."""
        if self._twin is not None:
            self._twin.end()
        self._map.close()
        self._amended.close()
        for fd in (self._root, *self._files.values()):
            os.close(fd)
        for folder, listing in self._listings.values():
            self._close_listing(folder, listing)

    def root(self) -> wire.Entry:
        """The root's attributes, under an empty name."""
        return wire.Entry._make((b"", *fitting(self._amended.root(numbers(os.fstat(self._root)))), b""))

    def _parent(self, path: bytes) -> tuple[int, bytes, bool]:
        """Return (descriptor of the folder, last name, whether to close it). Deep paths are walked in steps."""
        if len(path) < 3000:
            return self._root, path or b".", False
        at = os.dup(self._root)
        *folders, name = path.split(b"/")
        for index in range(0, len(folders), 8):
            step = b"/".join(folders[index : index + 8])
            try:
                following = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            finally:
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

    def _opened(self, path: bytes) -> int:
        try:
            return self._open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno == errno.ELOOP and self._type == NTFS:
                raise Refused(errno.EOPNOTSUPP, "only Windows can read it") from error
            raise

    def _file(self, path: bytes) -> int:
        fd = self._files.pop(path, -1)
        if fd < 0:
            fd = self._opened(path)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise Refused(errno.EINVAL, "not a regular file")
            except BaseException:
                os.close(fd)
                raise
        self._files[path] = fd
        if len(self._files) > self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return fd

    # --- work that a twin can do half of ---------------------------------------------------------------------------
    def share_work(self) -> None:
        """From now on do large questions in two processes, if the guest has two processors."""
        if (os.cpu_count() or 1) > 1:
            works: dict[str, twin.Work] = {
                "attributes": lambda path, names: marshal.dumps(self._attributes(path, names)),
                "layouts": lambda path, names: marshal.dumps(self._layouts(path, names)),
                "read": self._read,
            }
            self._twin = twin.Twin(works)

    def _of_all(self, what: str, work: Work, path: bytes, names: list[bytes]) -> list[bytes]:
        """Return what `work` says of each name, half of it found by the twin."""
        if self._twin is None or len(names) < WORTH_SHARING:
            return work(path, names)
        half = len(names) // 2
        try:
            self._twin.begin(what, path, names[half:])
            try:
                found = work(path, names[:half])
            finally:
                rest = self._twin.result()
        except twin.Gone:
            self._do_without_twin()
            return work(path, names)
        found += marshal.loads(rest)
        return found

    def _do_without_twin(self) -> None:
        """It has ended, for want of memory for instance: the worker does all of it from now on, and loses no answer."""
        assert self._twin is not None
        self._twin.end()
        self._twin = None

    def _attributes(self, path: bytes, names: list[bytes]) -> list[bytes]:
        folder = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._type == NTFS:
                depth = path.count(b"/") + 1 if path else 0
                return [packed_of_ntfs(name, folder, self._where, depth) for name in names]
            amend = self._amended.in_folder(path)
            return all_packed(names, folder) if amend is None else [packed(name, folder, amend) for name in names]
        finally:
            os.close(folder)

    def _layouts(self, path: bytes, names: list[bytes]) -> list[bytes]:
        folder = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [wire.pack_file_layout(*self._layout_of(folder, path, name)) for name in names]
        finally:
            os.close(folder)

    def _layout_of(self, folder: int, path: bytes, name: bytes) -> tuple[list[wire.Extent], bool]:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            return [], False
        try:
            if (only := self._map.only(fd)) is not None:
                return [only], False
            told = self._map.of(fd, os.fstat(fd), 0, wire.MAX_FILE_EXTENTS)
            extents, following = padded(told, self._amended.written(path + b"/" + name if path else name))
        finally:
            os.close(fd)
        if following or len(extents) > wire.MAX_FILE_EXTENTS:
            return [], True
        return extents, False

    def _read(self, path: bytes, offset: int, length: int) -> memoryview:
        return self._buffer[: self._filled(path, offset, self._buffer[:length])]

    def _filled(self, path: bytes, offset: int, buffer: memoryview) -> int:
        """Fill a buffer with a file's bytes; return how many there are. Of what was not written they are zeros."""
        fd = self._file(path)
        written = self._amended.written(path)
        if written is None:
            return self.fill(fd, offset, buffer)
        valid, size = written
        wanted = max(0, min(len(buffer), size - offset))
        there = max(0, min(wanted, valid - offset))
        if there and (count := self.fill(fd, offset, buffer[:there])) < there:
            return count
        buffer[there:wanted] = bytes(wanted - there)
        return wanted

    @staticmethod
    def fill(fd: int, offset: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes of what is open; return how many there are."""
        done = 0
        while done < len(buffer) and (count := os.preadv(fd, [buffer[done:]], offset + done)):
            done += count
        return done

    # --- what the host asks ----------------------------------------------------------------------------------------
    def layout(self, path: bytes, names: list[bytes]) -> bytes:
        """Return the extents of files of the folder at `path`; of one with many of them, that there are more."""
        return wire.pack_layout(self._of_all("layouts", self._layouts, path, names))

    def list_page(self, path: bytes, cursor: int) -> bytes:
        """Return a page of the folder at `path`. What cannot be looked at is sent with mode 0: its name is known."""
        if not cursor or cursor != self._prepared[0]:
            return self._page(path, cursor)
        _, page = self._prepared
        self._prepared = NOTHING_PREPARED
        if isinstance(page, Exception):
            raise page
        return page

    def work_ahead(self) -> None:
        """While nobody asks anything: make the page that will be asked for next."""
        if self._following is None or self._prepared is not NOTHING_PREPARED:
            return
        path, cursor = self._following
        self._following = None
        page: bytes | Exception
        try:
            page = self._page(path, cursor)
        except Exception as error:  # noqa: BLE001  # nobody has asked yet: whoever does is told
            page = error
        self._prepared = (cursor, page)

    def _page(self, path: bytes, cursor: int) -> bytes:
        folder, listing = self._listing(path, cursor)
        try:
            shared = finds_by_index(folder, self._type)
            page = list(islice(listing, wire.MAX_PAGE_ENTRIES))
        except BaseException:  # it cannot go on from there: who asks again begins anew
            self._listings.pop(cursor, None)
            self._close_listing(folder, listing)
            raise
        if len(page) == wire.MAX_PAGE_ENTRIES:
            cursor = self._keep(cursor, folder, listing)
            self._following = (path, cursor)
        else:
            self._listings.pop(cursor, None)
            self._close_listing(folder, listing)
            cursor = 0
        page = [name for name in page if len(name) <= wire.MAX_NAME]
        entries = self._of_all("attributes", self._attributes, path, page) if shared else self._attributes(path, page)
        return wire.pack_page(cursor, entries)

    @staticmethod
    def _close_listing(folder: int, listing: Names) -> None:
        listing.close()
        os.close(folder)

    def _listing(self, path: bytes, cursor: int) -> tuple[int, Names]:
        if cursor:
            if cursor not in self._listings:
                raise Refused(errno.ESTALE, "unknown cursor")
            return self._listings[cursor]
        folder = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        return folder, names_in(folder, self._type)

    def _keep(self, cursor: int, folder: int, listing: Names) -> int:
        if cursor:
            self._listings.move_to_end(cursor)
            return cursor
        cursor, self._next_cursor = self._next_cursor, self._next_cursor + 1
        self._listings[cursor] = (folder, listing)
        if len(self._listings) > self.OPEN_LISTINGS:
            self._close_listing(*self._listings.popitem(last=False)[1])
        return cursor

    def read_into(self, path: bytes, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` with a file's bytes from `offset` on; return how many there are."""
        half = len(buffer) // 2
        if self._twin is None or half < READ_WORTH_SHARING:
            return self._filled(path, offset, buffer)
        self._file(path)  # what cannot be opened is said before the twin is asked
        try:
            self._twin.begin("read", path, offset + half, len(buffer) - half)
            try:
                count = self._filled(path, offset, buffer[:half])
            finally:
                rest = self._twin.result_into(buffer[half:])
        except twin.Gone:
            self._do_without_twin()
            return self._filled(path, offset, buffer)
        return count + rest if count == half else count

    def extents(self, path: bytes, offset: int) -> bytes:
        """Return extents of a file from `offset` on."""
        fd = self._file(path)
        told = self._map.of(fd, os.fstat(fd), offset, wire.MAX_EXTENTS)
        extents, following = padded(told, self._amended.written(path))
        if len(extents) > wire.MAX_EXTENTS:
            last = extents[wire.MAX_EXTENTS - 1]
            extents, following = extents[: wire.MAX_EXTENTS], last.logical + last.length
        return wire.pack_extents(extents, following)

    def xattrs(self, path: bytes) -> bytes:
        """Return the extended attributes of anything but a symbolic link, which Linux gives none."""
        fd = self._opened(path)
        try:
            pairs = list(held(fd))
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
