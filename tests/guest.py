"""Guests without a virtual machine: the far end of an agent stream, honest or not.

`FolderWorker` is the real agent over a folder of the host: only what needs a guest's kernel is replaced. `Layout` puts
the files of such a folder on a medium, so that there are extents to tell. `Liar` is a far end that says whatever a test
makes it say.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mountsafe import wire
from mountsafe.agent.amended import Amended
from mountsafe.agent.changing import Changing
from mountsafe.agent.programs import Refused
from mountsafe.agent.tree import Tree
from mountsafe.agent.worker import Worker
from mountsafe.wire import Entry, Extent, ExtentKind, Kind

BLOCK = 4096


# --- honest --------------------------------------------------------------------------------------------------------
class Layout:
    """Says where the bytes of a folder's files are on a medium: the part of `agent.ExtentMap` that asks a kernel.

    Each file is stored at blocks of its own, backwards: the first block is the last on the medium. So no two blocks are
    neighbours, and a file of N blocks has N extents. Blocks of zeros are holes.
    """

    direct = True

    def __init__(self, extents: dict[int, list[Extent]], size: int) -> None:
        self._extents = extents
        self.size = size

    @classmethod
    def store(cls, folder: Path, medium: Path, start: int = 0) -> "Layout":
        """Write the files of a folder to a medium, from byte `start` on, and return where they are."""
        extents: dict[int, list[Extent]] = {}
        files = [path for path in sorted(folder.rglob("*")) if stat.S_ISREG(path.lstat().st_mode)]
        inodes = {path.stat().st_ino: path for path in files}
        blocks = [(inode, at, data) for inode, path in inodes.items() for at, data in _stored_blocks(path)]
        size = (len(blocks) + 1) * BLOCK
        with open(medium, "r+b" if medium.exists() else "w+b") as file:
            file.truncate(max(start + size, medium.stat().st_size))
            for number, (inode, at, data) in enumerate(reversed(blocks)):
                os.pwrite(file.fileno(), data, start + number * BLOCK)
                extents.setdefault(inode, []).insert(0, Extent(at, number * BLOCK, BLOCK, ExtentKind.DATA))
        return cls(extents, size)

    @classmethod
    def load(cls, path: Path) -> "Layout":
        """Read what `save` wrote."""
        extents, size = json.loads(path.read_text())
        return cls({int(inode): [Extent(*each) for each in told] for inode, told in extents.items()}, size)

    def save(self, path: Path) -> None:
        """Store it for a guest in another process."""
        path.write_text(json.dumps((self._extents, self.size)))

    def close(self) -> None:
        """Nothing is open."""

    def only(self, fd: int) -> Extent | None:
        told, _ = self.of(fd, os.fstat(fd), 0, 2)
        return told[0] if len(told) == 1 and told[0].kind == ExtentKind.DATA else None

    def of(self, fd: int, st: os.stat_result, start: int, limit: int) -> tuple[list[Extent], int]:
        told: list[Extent] = []
        at = 0
        for extent in self._extents.get(st.st_ino, []):
            if extent.logical > at:
                told.append(Extent(at, 0, extent.logical - at, ExtentKind.ZERO))
            told.append(extent)
            at = extent.logical + extent.length
        if at < st.st_size:
            told.append(Extent(at, 0, st.st_size - at, ExtentKind.ZERO))
        told = [extent for extent in told if extent.logical >= start]
        return told[:limit], told[limit].logical if len(told) > limit else 0


def _stored_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError:  # ENXIO: a hole up to the end
                return
            data = os.pread(file.fileno(), BLOCK, at)
            if any(data):
                yield at, data.ljust(BLOCK, b"\0")
            at += BLOCK


class FolderWorker(Worker):
    """The real agent, with a folder of the host in the place of a mounted medium."""

    def __init__(
        self, folder: Path, fstype: str = "ext4", layout: Layout | None = None, size: int = 1 << 20, start: int = 0
    ) -> None:
        super().__init__("test")
        self._folder = folder
        self._fstype = fstype
        self._layout = layout
        self._umask: int | None = None
        self._answers[Kind.PROBE] = lambda _: wire.pack_volumes(_volumes(fstype.encode(), size, start))

    def _hello(self, body: bytes) -> bytes:
        wire.unpack_hello_request(body)  # and leave this machine's clock alone
        return wire.pack_hello(wire.VERSION, b"6.1.0-test")

    def _mount(self, body: bytes) -> bytes:
        request = wire.unpack_mount(body)  # and leave this process in its zone
        if request.fstype.decode() != self._fstype:
            raise Refused(22, "wrong fs type")
        tree = Tree(str(self._folder), "no extents", request.device.startswith(b"dm-"), [])
        if self._layout is not None:
            tree._map = self._layout  # type: ignore[assignment]
        self._mounted = tree
        if request.writable:
            self._umask = os.umask(0)
            self._changing = Changing(tree, Amended(self._fstype), self._fstype, str(self._folder))
        return wire.pack_mounted(wire.Mounted(request.fstype, wire.MountState.CLEAN, tree.direct, tree.root()))

    def _unmount(self) -> bytes:
        self._changed.close()
        self._ended = True
        return b""

    def close(self) -> None:
        """Close what it has open."""
        super().close()
        if self._umask is not None:
            os.umask(self._umask)
            self._umask = None


def _volumes(fstype: bytes, size: int, start: int) -> list[wire.Volume]:
    """A disk with a file system, or with one in a partition that begins at `start`."""
    disk = wire.Volume(b"sdx", wire.VolumeKind.DISK, 0, 0, size, fstype, b"filesystem", b"folder", b"", b"", b"")
    if not fstype:
        return [disk._replace(usage=b"")]
    if not start:
        return [disk]
    partition = disk._replace(device=b"sdx1", kind=wire.VolumeKind.PARTITION, number=1, start=start, size=size - start)
    return [disk._replace(fstype=b"", usage=b"", label=b"", table=b"dos"), partition]


# --- not honest ----------------------------------------------------------------------------------------------------
IMPOSSIBLE_NAMES = (b"", b".", b"..", b"a/b", b"../../etc/passwd", b"a\0b")


def entry(name: bytes, ino: int = 0, **fields: Any) -> Entry:
    """An entry as the wire carries it: an empty file if nothing else is said."""
    plain = Entry(name, stat.S_IFREG | 0o644, 1, 1000, 1000, ino, 0, 0, 0, 0, 0, b"")
    return plain._replace(**fields)


def folder(name: bytes, ino: int = 0, **fields: Any) -> Entry:
    return entry(name, ino, **{"mode": stat.S_IFDIR | 0o755, "nlink": 2, **fields})


def link(name: bytes, target: bytes, ino: int = 0, **fields: Any) -> Entry:
    return entry(name, ino, **{"mode": stat.S_IFLNK | 0o777, "target": target, **fields})


def page(*entries: Entry, cursor: int = 0) -> bytes:
    """The body of an answer to LIST."""
    return wire.pack_page(cursor, [wire.pack_entry(each.name, each[1:-1], each.target) for each in entries])


def layout(*files: tuple[list[Extent], bool]) -> bytes:
    """The body of an answer to LAYOUT."""
    return wire.pack_layout([wire.pack_file_layout(*each) for each in files])


class HangUp(Exception):
    """The far end closes the stream."""


class Silence(Exception):
    """The far end does not answer."""


class Raw(Exception):
    """The far end sends these bytes instead of a frame."""


Say = Callable[[bytes], bytes]


class Liar:
    """A guest whose answers a test chooses: `folders` is what it lists, `files` what it reads, `say` overrides a kind.

    A function in `say` gets the request's body and returns the answer's, or raises HangUp, Silence, Raw, OSError.
    Each answer comes after a pause of so many seconds.
    """

    pause = 0.0

    def __init__(
        self, folders: dict[bytes, list[Entry]] | None = None, files: dict[bytes, bytes] | None = None
    ) -> None:
        self.folders = folders or {b"": []}
        self.files = files or {}
        self.mounted = wire.Mounted(b"ext4", wire.MountState.CLEAN, True, folder(b""))
        self.say: dict[int, Say] = {}
        self.asked: list[tuple[int, bytes]] = []

    def answer(self, request: wire.Frame) -> bytes:
        """Return the bytes that answer a request; HangUp closes the stream."""
        self.asked.append((request.kind, request.body))
        try:
            body = (self.say.get(request.kind) or self._honestly(request.kind))(request.body)
            return wire.frame(request.ident, request.kind, body)
        except Silence:
            return b""
        except Raw as raw:
            return bytes(raw.args[0])
        except OSError as error:
            return wire.frame(request.ident, Kind.ERROR, wire.pack_error(error.errno or 0, b"no"))

    def close(self) -> None:
        """Nothing is open."""

    def count(self, kind: int) -> int:
        return sum(1 for asked, _ in self.asked if asked == kind)

    def _honestly(self, kind: int) -> Say:
        return {
            Kind.HELLO: lambda _: wire.pack_hello(wire.VERSION, b"6.1.0-liar"),
            Kind.MOUNT: lambda _: wire.pack_mounted(self.mounted),
            Kind.LIST: self._list,
            Kind.READ: self._read,
            Kind.EXTENTS: lambda _: wire.pack_extents([], 0),
            Kind.LAYOUT: lambda body: layout(*[([], True)] * len(wire.unpack_layout_request(body)[1])),
            Kind.XATTRS: lambda _: wire.pack_xattrs([]),
            Kind.STATFS: lambda _: wire.pack_statfs(wire.Statfs(4096, 4096, 100, 50, 50, 10, 5, 255)),
        }[kind]

    def _list(self, body: bytes) -> bytes:
        path, _ = wire.unpack_list(body)
        if path not in self.folders:
            raise FileNotFoundError(2, "no such folder")
        return page(*self.folders[path])

    def _read(self, body: bytes) -> bytes:
        path, offset, length = wire.unpack_read(body)
        return self.files[path][offset : offset + length]
