"""A file system in memory, which a guest changes, and what a disk may have of it when the guest dies."""

import copy
import errno
import os
import random
import stat
from dataclasses import dataclass, field

from mountsafe import changes, wire
from mountsafe.changes import NO_TIME, Act, Change, Flag
from mountsafe.wire import Kind
from tests.guest import HangUp


@dataclass
class Inode:
    """A file, folder or link."""

    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    mtime: int = 0
    data: bytes = b""
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def no(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Tree:
    """The state of a file system. Numbers of inodes are used again at once."""

    def __init__(self) -> None:
        self.inodes = {2: Inode(stat.S_IFDIR | 0o755, nlink=2)}

    def copy(self) -> "Tree":
        return copy.deepcopy(self)

    def find(self, path: bytes) -> int:
        number = 2
        for name in filter(None, path.split(b"/")):
            if not stat.S_ISDIR(self.inodes[number].mode):
                raise no(errno.ENOTDIR)
            if name not in self.inodes[number].names:
                raise no(errno.ENOENT)
            number = self.inodes[number].names[name]
        return number

    def parent(self, path: bytes) -> tuple[Inode, bytes]:
        above, _, name = path.rpartition(b"/")
        folder = self.inodes[self.find(above)]
        if not stat.S_ISDIR(folder.mode):
            raise no(errno.ENOTDIR)
        return folder, name

    def entry(self, number: int, name: bytes) -> bytes:
        inode = self.inodes.get(number)
        if inode is None:
            return wire.pack_entry(name, (0,) * 10, b"")
        link = inode.data if stat.S_ISLNK(inode.mode) else b""
        numbers = (inode.mode, inode.nlink, inode.uid, inode.gid, number, len(inode.data), 0, 0, inode.mtime, 0)
        return wire.pack_entry(name, numbers, link)

    def facts(self, number: int = 2, path: bytes = b"") -> dict[bytes, tuple[object, ...]]:
        """Everything by path; hard links are seen by what else has the same bytes and links."""
        inode = self.inodes[number]
        links = 0 if stat.S_ISDIR(inode.mode) else inode.nlink
        found: dict[bytes, tuple[object, ...]] = {
            path: (inode.mode, inode.uid, links, inode.data, sorted(inode.xattrs.items()))
        }
        for name, child in inode.names.items():
            found |= self.facts(child, path + b"/" + name)
        return found

    # --- changes ---------------------------------------------------------------------------------------------------
    def make(self, path: bytes, mode: int, uid: int, data: bytes = b"") -> int:
        folder, name = self.parent(path)
        if name in folder.names:
            raise no(errno.EEXIST)
        number = next(number for number in range(3, 1000) if number not in self.inodes)
        self.inodes[number] = Inode(mode, uid, data=data, nlink=2 if stat.S_ISDIR(mode) else 1)
        folder.names[name] = number
        return number

    def link(self, path: bytes, other: bytes) -> None:
        folder, name = self.parent(path)
        if name in folder.names:
            raise no(errno.EEXIST)
        number = self.find(other)
        folder.names[name] = number
        self.inodes[number].nlink += 1

    def remove(self, path: bytes, is_folder: bool, held: set[int]) -> None:
        folder, name = self.parent(path)
        if name not in folder.names:
            raise no(errno.ENOENT)
        number = folder.names[name]
        inode = self.inodes[number]
        if is_folder != stat.S_ISDIR(inode.mode):
            raise no(errno.ENOTDIR if is_folder else errno.EISDIR)
        if inode.names:
            raise no(errno.ENOTEMPTY)
        del folder.names[name]
        inode.nlink -= 2 if is_folder else 1
        if not inode.nlink and number not in held:
            del self.inodes[number]

    def rename(self, old: bytes, new: bytes, exchange: bool, held: set[int]) -> None:
        source, name = self.parent(old)
        target, other = self.parent(new)
        if name not in source.names:
            raise no(errno.ENOENT)
        moved = source.names[name]
        if exchange:
            source.names[name], target.names[other] = target.names[other], moved
            return
        if target.names.get(other) == moved:
            return
        if other in target.names:
            self.remove(new, stat.S_ISDIR(self.inodes[moved].mode), held)
        del source.names[name]
        target.names[other] = moved


class Disk:
    """A tree, and what a disk may have of it: the state at the last SYNC, or any since."""

    def __init__(self, seed: int = 0) -> None:
        self.now = Tree()
        self._states = [self.now.copy()]
        self._chance = random.Random(seed)
        self.syncs = 0

    def changed(self) -> None:
        self._states.append(self.now.copy())

    def sync(self) -> None:
        self.syncs += 1
        self._states = [self.now.copy()]

    def crash(self) -> None:
        """Leave one of the states, in which bytes that were written may be older ones."""
        states = self._states
        newest = self._chance.random() < 0.4
        self.now = (states[-1] if newest else self._chance.choice(states)).copy()
        for number, inode in list(self.now.inodes.items()):
            if not inode.nlink:
                del self.now.inodes[number]  # it was open
            elif stat.S_ISREG(inode.mode) and self._chance.random() < 0.5:
                synced = states[0].inodes.get(number)
                before = synced.data if synced is not None else b""
                if before != inode.data:
                    came = self._chance.randrange(len(inode.data) + 1)
                    inode.data = inode.data[:came] + before[came:]
        self._states = [self.now.copy()]


class DiskGuest:
    """A guest that has a disk. It dies at its `dies`th change, which is done or not (`after`).

    Of `deaths` whoever mounts it for writing takes the next one. `blocks`: that are free.
    """

    blocks = 100_000

    def __init__(self, disk: Disk, deaths: list[tuple[int, bool]] | None = None) -> None:
        self.disk = disk
        self._deaths = deaths
        self.handles: dict[int, int] = {}
        self.dies = 0
        self.after = True
        self.mounted = False
        self.writing = False

    def close(self) -> None:
        """The stream is closed: whoever had it mounted for writing, and did not unmount it, has died."""
        if self.writing:
            self.writing = False
            self.disk.crash()

    def answer(self, request: wire.Frame) -> bytes:
        if request.kind == Kind.BATCH:
            results = [self._result(*question) for question in changes.unpack_batch(request.body)]
            return wire.frame(request.ident, request.kind, changes.pack_results(results))
        number, body = self._result(request.kind, request.body)
        if number:
            return wire.frame(request.ident, Kind.ERROR, wire.pack_error(number, body))
        return wire.frame(request.ident, request.kind, body)

    def _result(self, kind: int, question: bytes) -> changes.Result:
        changing = kind in (Kind.CHANGE, Kind.WRITE, Kind.SYNC)
        self.dies -= changing
        if changing and self.dies == 0 and not self.after:
            raise HangUp
        try:
            body = self._body(kind, question)
        except OSError as error:
            return changes.Result(error.errno or errno.EIO, b"no")
        if changing and self.dies == 0:
            raise HangUp
        return changes.Result(0, body)

    def _body(self, kind: int, body: bytes) -> bytes:
        tree = self.disk.now
        match kind:
            case Kind.HELLO:
                return wire.pack_hello(wire.VERSION, b"6.1.0-disk")
            case Kind.MOUNT:
                self.writing = wire.unpack_mount(body).writable
                if self.writing and self._deaths:
                    self.dies, self.after = self._deaths.pop(0)
                root = wire.unpack_page(wire.pack_page(0, [tree.entry(2, b"")]))[1][0]
                return wire.pack_mounted(wire.Mounted(b"ext4", wire.MountState.CLEAN, False, root))
            case Kind.LIST:
                folder = tree.inodes[tree.find(wire.unpack_list(body)[0])]
                return wire.pack_page(0, [tree.entry(number, name) for name, number in folder.names.items()])
            case Kind.READ:
                path, offset, length = wire.unpack_read(body)
                return tree.inodes[tree.find(path)].data[offset : offset + length]
            case Kind.XATTRS:
                return wire.pack_xattrs(list(tree.inodes[tree.find(body)].xattrs.items()))
            case Kind.STATFS:
                return wire.pack_statfs(wire.Statfs(4096, 4096, self.blocks, self.blocks, self.blocks, 2000, 1000, 255))
        return self._when_writing(kind, body)

    def _when_writing(self, kind: int, body: bytes) -> bytes:
        if not self.writing:
            raise no(errno.ENOTCONN)
        if kind == Kind.SYNC:
            self.disk.sync()
            return b""
        if kind == Kind.UNMOUNT:
            self._drop_unnamed()
            self.disk.sync()
            self.writing = False
            return b""
        if kind == Kind.HANDLE_READ:
            handle, offset, length = changes.unpack_read(body)
            return self._held(handle).data[offset : offset + length]
        if kind == Kind.WRITE:
            answer = self._write(*changes.unpack_write(body))
        else:
            answer = self._change(changes.unpack_change(body))
        self.disk.changed()
        return answer

    def _drop_unnamed(self) -> None:
        self.handles.clear()
        inodes = self.disk.now.inodes
        for number in [number for number, inode in inodes.items() if not inode.nlink]:
            del inodes[number]

    def _held(self, handle: int) -> Inode:
        if handle not in self.handles:
            raise no(errno.EBADF)
        return self.disk.now.inodes[self.handles[handle]]

    def _write(self, handle: int, offset: int, data: memoryview) -> bytes:
        inode = self._held(handle)
        inode.data = inode.data[:offset].ljust(offset, b"\0") + bytes(data) + inode.data[offset + len(data) :]
        return changes.pack_changed([self.disk.now.entry(self.handles[handle], b"")])

    def _change(self, c: Change) -> bytes:
        again = bool(c.flags & Flag.AGAIN)
        try:
            self._do(c, again)
        except FileExistsError:
            if not again or c.act not in (Act.MKDIR, Act.MKNOD, Act.SYMLINK, Act.LINK):
                raise
        except FileNotFoundError:
            if not again or not (c.act in (Act.UNLINK, Act.RMDIR) or (c.act == Act.RENAME and self._is_there(c.other))):
                raise
        return changes.pack_changed(self._entries(c))

    def _is_there(self, path: bytes) -> bool:
        try:
            return self.disk.now.find(path) > 0
        except OSError:
            return False

    def _entries(self, c: Change) -> list[bytes]:
        tree = self.disk.now
        if c.act == Act.CLOSE:
            return []
        if c.handle and c.act == Act.SETATTR:
            return [tree.entry(self.handles[c.handle], b"")]
        path = c.other if c.act == Act.RENAME else c.path
        if not path:
            return [tree.entry(tree.find(path), b"")]
        told = []
        for each in (path, path.rpartition(b"/")[0]):
            try:
                told.append(tree.entry(tree.find(each), each.rpartition(b"/")[2]))
            except OSError:
                told.append(tree.entry(0, each.rpartition(b"/")[2]))
        return told if tree.inodes.get(2) and told[1][:4] != bytes(4) else told[:1]

    def _do(self, c: Change, again: bool) -> None:
        tree, held = self.disk.now, set(self.handles.values())
        if c.act in (Act.OPEN, Act.CREATE, Act.CLOSE):
            self._do_with_handle(c, again)
        elif c.act in (Act.MKDIR, Act.MKNOD, Act.SYMLINK):
            mode = stat.S_IFLNK | 0o777 if c.act == Act.SYMLINK else c.mode
            tree.make(c.path, mode, c.uid, c.other)
        elif c.act in (Act.SETATTR, Act.SETXATTR, Act.REMOVEXATTR):
            self._set(c, again)
        elif c.act == Act.LINK:
            tree.link(c.path, c.other)
        elif c.act == Act.RENAME:
            tree.rename(c.path, c.other, bool(c.flags & Flag.EXCHANGE), held)
        else:
            tree.remove(c.path, c.act == Act.RMDIR, held)

    def _do_with_handle(self, c: Change, again: bool) -> None:
        tree = self.disk.now
        if c.act == Act.CLOSE:
            number = self.handles.pop(c.handle, 0)
            if number and number not in self.handles.values() and not tree.inodes[number].nlink:
                del tree.inodes[number]
            return
        if c.act == Act.CREATE:
            try:
                tree.make(c.path, c.mode, c.uid)
            except FileExistsError:
                if not again:
                    raise
        number = tree.find(c.path)
        if not stat.S_ISREG(tree.inodes[number].mode):
            raise no(errno.EISDIR)
        self.handles[c.handle] = number

    def _set(self, c: Change, again: bool) -> None:
        inode = self._held(c.handle) if c.handle else self.disk.now.inodes[self.disk.now.find(c.path)]
        if c.act == Act.SETXATTR:
            inode.xattrs[c.other] = c.value
        elif c.act == Act.REMOVEXATTR:
            if c.other not in inode.xattrs and not again:
                raise no(errno.ENODATA)
            inode.xattrs.pop(c.other, None)
        if c.flags & Flag.SET_SIZE:
            inode.data = inode.data[: c.size].ljust(c.size, b"\0")
        if c.flags & Flag.SET_MODE:
            inode.mode = stat.S_IFMT(inode.mode) | c.mode
        if c.mtime != NO_TIME and c.flags & Flag.SET_MTIME:
            inode.mtime = c.mtime
