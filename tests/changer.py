"""A guest without a virtual machine whose tree can be changed: a folder of the host in the place of a medium.

It dies when it is told to, and the next one finds what a disk might have: the state at the last SYNC with some of what
was done since, and with some of the bytes that were written not there. `Control` is what a test tells it.
"""

import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mountsafe import changes, wire
from mountsafe.agent.entries import all_packed
from mountsafe.agent.programs import Refused
from mountsafe.changes import NO_TIME, Act, Change, Flag
from mountsafe.wire import Kind
from tests.guest import FolderWorker

AT_FDCWD, RENAME_EXCHANGE = -100, 2
DIED = 77  # the exit code of a guest that was told to


@dataclass
class Control:
    """What a guest is to do: `dies`: at its so manieth change or sync from now on, once it is done (0: it lives).

    `refuses`: to be mounted for writing. `fails_sync`: the next SYNC, with EIO. `room`: the largest file, in bytes;
    `said_room`: what there is room for, it says.
    `keeps`: whether it can die, so that states are kept. `seed`: for what a disk has after a death. `turn`: how often
    it was told something; what is to be done once is done once in a turn. `refused`: names that are neither made nor
    removed.
    """

    turn: int = 0
    dies: int = 0
    refuses: bool = False
    fails_sync: bool = False
    room: int = 1 << 40
    said_room: int = 1 << 40
    keeps: bool = False
    seed: int = 0
    refused: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """For the guest in another process, from its next question on."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)))
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Control":
        return cls(**json.loads(path.read_text()))


class Changer:
    """Does changes in a folder."""

    def __init__(self, top: Path) -> None:
        self._top = os.fsencode(top)
        self.handles: dict[int, int] = {}
        os.umask(0)

    def path(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top

    def close(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()

    def entry(self, path: bytes) -> bytes:
        folder, name = os.path.split(self.path(path)) if path else (self._top, b".")
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            (told,) = all_packed([name], fd)
        finally:
            os.close(fd)
        return told if path else self._unnamed(told)

    @staticmethod
    def _unnamed(told: bytes) -> bytes:
        (each,) = wire.unpack_page(wire.pack_page(0, [told]))[1]
        return wire.pack_entry(b"", each[1:-1], each.target)

    def _of_handle(self, handle: int) -> bytes:
        st = os.fstat(self.handles[handle])
        numbers = (st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_ino, st.st_size, st.st_blocks)
        return wire.pack_entry(b"", (*numbers, st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns), b"")

    def _opened(self, handle: int, fd: int) -> None:
        if handle in self.handles:
            os.close(self.handles[handle])
        self.handles[handle] = fd

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> bytes:
        if handle not in self.handles:
            raise OSError(errno.EBADF, "unknown handle")
        os.pwrite(self.handles[handle], data, offset)
        return changes.pack_changed([self._of_handle(handle)])

    def change(self, c: Change) -> bytes:
        """Do it; return the body of the answer."""
        again = bool(c.flags & Flag.AGAIN)
        try:
            self._do(c, again)
        except FileExistsError:
            if not again or c.act not in (Act.MKDIR, Act.MKNOD, Act.SYMLINK, Act.LINK):
                raise
        except FileNotFoundError:
            if not again or c.act not in (Act.UNLINK, Act.RMDIR, Act.RENAME, Act.LINK):
                raise
        return changes.pack_changed(self._entries(c))

    def _entries(self, c: Change) -> list[bytes]:
        if c.act == Act.CLOSE:
            return []
        if c.act == Act.SETATTR and c.handle:
            return [self._of_handle(c.handle)]
        what, folders = c.path, [os.path.dirname(c.path)]
        if c.act == Act.RENAME:
            what, folders = c.other, [os.path.dirname(c.other), os.path.dirname(c.path)]
        if c.act in (Act.OPEN, Act.SETATTR, Act.SETXATTR, Act.REMOVEXATTR):
            folders = []
        return [self.entry(what), *(self.entry(folder) for folder in folders)]

    def _do(self, c: Change, again: bool) -> None:
        path = self.path(c.path)
        if c.act in (Act.OPEN, Act.CREATE, Act.CLOSE):
            self._do_with_handle(c, path, again)
        elif c.act in (Act.MKDIR, Act.MKNOD, Act.SYMLINK):
            self._make(c, path)
        elif c.act in (Act.SETATTR, Act.SETXATTR, Act.REMOVEXATTR):
            self._set(c, path, again)
        elif c.act == Act.LINK:
            os.link(self.path(c.other), path, follow_symlinks=False)
        elif c.act == Act.RENAME:
            self._rename(path, self.path(c.other), c.flags)
        else:
            (os.unlink if c.act == Act.UNLINK else os.rmdir)(path)

    def _do_with_handle(self, c: Change, path: bytes, again: bool) -> None:
        if c.act == Act.OPEN:
            self._opened(c.handle, os.open(path, os.O_RDWR | os.O_NOFOLLOW))
        elif c.act == Act.CREATE:
            exclusive = 0 if again else os.O_EXCL
            self._opened(c.handle, os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | exclusive, c.mode & 0o777))
            os.chown(path, c.uid, c.gid)
        elif c.handle in self.handles:
            os.close(self.handles.pop(c.handle))

    @staticmethod
    def _make(c: Change, path: bytes) -> None:
        if c.act == Act.MKDIR:
            os.mkdir(path, c.mode & 0o777)
        elif c.act == Act.MKNOD:
            os.mknod(path, c.mode)
        else:
            os.symlink(c.other, path)
        os.lchown(path, c.uid, c.gid)

    @staticmethod
    def _rename(old: bytes, new: bytes, flags: int) -> None:
        how = 1 if flags & Flag.NOREPLACE else RENAME_EXCHANGE if flags & Flag.EXCHANGE else 0
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, how):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _set(self, c: Change, path: bytes, again: bool) -> None:
        if c.act == Act.SETATTR:
            self._set_attributes(c, path)
        elif c.act == Act.SETXATTR:
            os.setxattr(path, c.other, c.value, follow_symlinks=False)
        else:
            try:
                os.removexattr(path, c.other, follow_symlinks=False)
            except OSError as error:
                if not again or error.errno != errno.ENODATA:
                    raise

    def _set_attributes(self, c: Change, path: bytes) -> None:
        if c.handle and c.handle not in self.handles:
            raise OSError(errno.EBADF, "unknown handle")
        where: int | bytes = self.handles[c.handle] if c.handle else path
        follow = {} if c.handle else {"follow_symlinks": False}
        st = os.fstat(where) if isinstance(where, int) else os.lstat(where)
        if c.flags & Flag.SET_SIZE:
            os.truncate(where, c.size)
        if c.flags & (Flag.SET_UID | Flag.SET_GID):
            uid, gid = (c.uid if c.flags & Flag.SET_UID else -1), (c.gid if c.flags & Flag.SET_GID else -1)
            os.chown(where, uid, gid, **follow)
        if c.flags & Flag.SET_MODE:
            os.chmod(where, c.mode)
        if c.flags & (Flag.SET_ATIME | Flag.SET_MTIME):
            atime = st.st_atime_ns if c.atime == NO_TIME else c.atime
            os.utime(where, ns=(atime, st.st_mtime_ns if c.mtime == NO_TIME else c.mtime), **follow)


class ChangingWorker(FolderWorker):
    """The agent over a folder; `state` is a folder of its own, in which `Control` is as "control"."""

    def __init__(self, folder: Path, fstype: str, state: Path) -> None:
        super().__init__(folder, fstype)
        self._state = state
        self._synced = state / "synced"
        self._log = state / "log"
        self._changer = Changer(folder)
        self._writing = False
        self._turn = self._left = 0
        self._answers |= {
            Kind.CHANGE: self._change,
            Kind.WRITE: self._write,
            Kind.SYNC: self._sync,
            Kind.STATFS: lambda _: self._statfs(),
            Kind.UNMOUNT: self._unmount,
        }

    @property
    def _control(self) -> Control:
        return Control.load(self._state / "control")

    def _statfs(self) -> bytes:
        """As much room as there is said to be, but for what files take."""
        told = wire.unpack_statfs(self._tree.statfs())
        sizes = (path.lstat().st_size for path in self._folder.rglob("*") if path.is_file())
        free = max(0, self._control.said_room - sum(sizes)) // told.frsize
        return wire.pack_statfs(told._replace(bfree=free, bavail=free))

    def _require_turn(self, kind: int) -> None:
        super()._require_turn(kind)
        if kind in wire.CHANGING and not self._writing:
            raise Refused(errno.ENOTCONN, "it is not mounted for writing")

    def _mount(self, body: bytes) -> bytes:
        if wire.unpack_mount(body).writable:
            if self._control.refuses:
                raise Refused(errno.EROFS, "it is write-protected")
            if self._synced.exists():
                self._recover()
            self._writing = True
            self._keep()
        return super()._mount(body)

    # --- what a disk has -------------------------------------------------------------------------------------------
    def _keep(self) -> None:
        if not self._control.keeps:
            return
        part = self._state / "part"
        subprocess.run(["cp", "-a", self._folder, part], check=True)
        shutil.rmtree(self._synced, ignore_errors=True)
        part.rename(self._synced)
        self._log.write_bytes(b"")

    def _recover(self) -> None:
        """Leave what a disk might have after a death."""
        chance = random.Random(self._control.seed + self._log.stat().st_size)
        for each in self._folder.iterdir():
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        subprocess.run(["cp", "-a", f"{self._synced}/.", self._folder], check=True)
        data = self._log.read_bytes()
        done = wire.Decoder().feed(data)
        handles = json.loads((self._state / "handles").read_text()) if (self._state / "handles").exists() else {}
        changer = Changer(self._folder)
        for handle, path in handles.items():
            changer.change(Change(Act.OPEN, os.fsencode(path), handle=int(handle)))
        for each in done[: chance.randint(0, len(done))]:
            if each.kind == Kind.CHANGE:
                changer.change(changes.unpack_change(each.body))
            elif chance.random() < 0.7:
                changer.write(*changes.unpack_write(each.body))
        changer.close()

    def _logged(self, kind: int, body: bytes) -> None:
        control = self._control
        if control.keeps:
            with open(self._log, "ab") as file:
                file.write(wire.frame(0, kind, body))

    def _once(self, what: str, turn: int) -> bool:
        """Whether something was not done yet in this turn; it counts as done."""
        path = self._state / what
        if path.exists() and int(path.read_text()) >= turn:
            return False
        path.write_text(str(turn))
        return True

    def _perhaps_die(self) -> None:
        control = self._control
        if self._turn != control.turn:
            self._turn, self._left = control.turn, control.dies
        self._left -= 1
        if self._left == 0 and self._once("died", self._turn):
            os._exit(DIED)

    # --- what the host asks ----------------------------------------------------------------------------------------
    def _change(self, body: bytes) -> bytes:
        change = changes.unpack_change(body)
        if change.act in (Act.CREATE, Act.UNLINK) and os.fsdecode(change.path) in self._control.refused:
            raise OSError(errno.EPERM, "it is immutable")
        answer = self._changer.change(change)
        self._logged(Kind.CHANGE, body)
        self._mounted._files.clear()  # type: ignore[union-attr]  # by path, and paths lead elsewhere
        self._perhaps_die()
        return answer

    def _write(self, body: bytes) -> bytes:
        handle, offset, data = changes.unpack_write(body)
        if offset + len(data) > self._control.room:
            raise OSError(errno.ENOSPC, "no room")
        answer = self._changer.write(handle, offset, data)
        self._logged(Kind.WRITE, body)
        self._perhaps_die()
        return answer

    def _read(self, request: wire.Frame) -> memoryview:
        if request.kind == Kind.HANDLE_READ:
            return memoryview(wire.frame(request.ident, request.kind, self._handle_read(request.body)))
        return super()._read(request)

    def _handle_read(self, body: bytes) -> bytes:
        handle, offset, length = changes.unpack_read(body)
        if handle not in self._changer.handles:
            raise OSError(errno.EBADF, "unknown handle")
        return os.pread(self._changer.handles[handle], length, offset)

    def _sync(self, body: bytes) -> bytes:
        control = self._control
        self._perhaps_die()
        if control.fails_sync and self._once("failed", control.turn):
            raise OSError(errno.EIO, "a bad sector")
        self._keep()
        self._keep_handles()
        return b""

    def _keep_handles(self) -> None:
        """For `_recover`, which does the log again: where open files are."""
        top = os.fspath(self._folder) + "/"
        where = {handle: os.readlink(f"/proc/self/fd/{fd}") for handle, fd in self._changer.handles.items()}
        named = {handle: path.removeprefix(top) for handle, path in where.items() if not path.endswith(" (deleted)")}
        (self._state / "handles").write_text(json.dumps(named))

    def _unmount(self, body: bytes) -> bytes:
        self._changer.close()
        shutil.rmtree(self._synced, ignore_errors=True)
        (self._state / "handles").unlink(missing_ok=True)
        self._writing = False
        return b""
