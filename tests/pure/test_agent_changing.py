"""What the agent makes of changes, over a folder of the host: what is answered, and what is then there."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountsafe import changes, wire
from mountsafe.changes import Act, Change, Flag
from mountsafe.wire import Entry, Kind
from tests.guest import FolderWorker

NS = 1_000_000_000


class Asking:
    """A host that asks a worker."""

    def __init__(self, folder: Path, writable: bool = True) -> None:
        self.folder = folder
        self.worker = FolderWorker(folder)
        self.ask(Kind.MOUNT, wire.pack_mount(wire.MountRequest(b"sdx", b"ext4", b"UTC0", writable=writable)))

    def ask(self, kind: int, body: bytes) -> bytes:
        [frame] = wire.Decoder().feed(bytes(self.worker.answer(wire.Frame(1, kind, body))))
        if frame.kind == Kind.ERROR:
            number, words = wire.unpack_error(frame.body)
            raise OSError(number, words.decode())
        assert frame.kind == kind
        return frame.body

    def change(self, act: int, path: bytes = b"", **fields: Any) -> list[Entry]:
        change = Change(act, path, uid=os.getuid(), gid=os.getgid())._replace(**fields)
        return changes.unpack_changed(self.ask(Kind.CHANGE, changes.pack_change(change)))

    def write(self, handle: int, offset: int, data: bytes) -> list[Entry]:
        return changes.unpack_changed(self.ask(Kind.WRITE, changes.pack_write(handle, offset, data)))

    def read(self, handle: int, offset: int = 0, length: int = 100) -> bytes:
        return self.ask(Kind.HANDLE_READ, changes.pack_read(handle, offset, length))

    def listed(self, path: bytes = b"") -> dict[bytes, Entry]:
        return {entry.name: entry for entry in wire.unpack_page(self.ask(Kind.LIST, wire.pack_list(path, 0)))[1]}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Asking]:
    (tmp_path / "top").mkdir()
    asking = Asking(tmp_path / "top")
    yield asking
    asking.worker.close()


def failure(*numbers: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda error: error.errno in numbers)


def untimed(entry: Entry) -> Entry:
    return entry._replace(atime=0)


def test_what_is_answered_is_what_a_listing_tells(host: Asking) -> None:
    host.change(Act.MKDIR, b"d", mode=0o750)
    [made, folder] = host.change(Act.CREATE, b"d/f", handle=1, mode=0o640)
    assert (made.name, stat.S_IMODE(made.mode), made.size) == (b"f", 0o640, 0)
    assert untimed(folder) == untimed(host.listed()[b"d"])
    [written] = host.write(1, 2, b"abc")
    assert (written.name, written.size) == (b"f", 5)
    assert host.read(1) == b"\0\0abc"
    assert untimed(written) == untimed(host.listed(b"d")[b"f"])
    [link, _] = host.change(Act.SYMLINK, b"d/l", other=b"f")
    assert (link.target, untimed(link)) == (b"f", untimed(host.listed(b"d")[b"l"]))
    [fifo, _] = host.change(Act.MKNOD, b"d/p", mode=stat.S_IFIFO | 0o600)
    assert stat.S_ISFIFO(fifo.mode)
    [linked, _] = host.change(Act.LINK, b"second", other=b"d/f")
    assert (linked.nlink, linked.ino) == (2, made.ino)
    [left, folder] = host.change(Act.UNLINK, b"d/f")
    assert (left.name, left.nlink, left.ino) == (b"f", 1, made.ino)
    assert folder.name == b"d"
    [moved, new, old] = host.change(Act.RENAME, b"d/l", other=b"l")
    assert (moved.name, new.name, old.name, moved.target) == (b"l", b"", b"d", b"f")
    assert new.ino == host.folder.stat().st_ino
    [gone, _] = host.change(Act.UNLINK, b"second")
    assert gone.mode == 0
    assert host.read(1) == b"\0\0abc"
    host.change(Act.CLOSE, handle=1)
    with failure(errno.EBADF):
        host.read(1)


def test_attributes(host: Asking) -> None:
    host.change(Act.CREATE, b"f", handle=1, mode=0o4755)
    assert stat.S_IMODE((host.folder / "f").stat().st_mode) == 0o4755
    times = {"atime": 5 * NS + 1, "mtime": 7 * NS}
    [told, _] = host.change(Act.SETATTR, b"f", flags=Flag.SET_ATIME | Flag.SET_MTIME, **times)
    assert (told.atime, told.mtime) == (5 * NS + 1, 7 * NS)
    [told] = host.change(Act.SETATTR, handle=1, flags=Flag.SET_MTIME | Flag.SET_MODE, mtime=8 * NS, mode=0o600)
    assert (told.atime, told.mtime) == (5 * NS + 1, 8 * NS)
    assert stat.S_IMODE(told.mode) == 0o600
    [told, _] = host.change(Act.SETATTR, b"f", flags=Flag.SET_SIZE, size=3)
    assert told.size == 3
    [told] = host.change(Act.SETATTR, handle=1, flags=Flag.SET_SIZE, size=1)
    assert told.size == 1
    host.change(Act.SYMLINK, b"l", other=b"f")
    [told, _] = host.change(Act.SETATTR, b"l", flags=Flag.SET_MTIME, mtime=9 * NS)
    assert told.mtime == 9 * NS
    for flags in (Flag.SET_MODE, Flag.SET_SIZE):
        with failure(errno.EOPNOTSUPP, errno.ELOOP):
            host.change(Act.SETATTR, b"l", flags=flags)
    assert (host.folder / "f").stat().st_size == 1
    [told] = host.change(Act.SETATTR, b"", flags=Flag.SET_MODE, mode=0o711)
    assert (told.name, stat.S_IMODE(told.mode)) == (b"", 0o711)


def test_extended_attributes(host: Asking) -> None:
    host.change(Act.CREATE, b"f", handle=1, mode=0o600)
    host.change(Act.SETXATTR, b"f", other=b"user.a", value=b"1")
    assert os.getxattr(host.folder / "f", "user.a") == b"1"
    host.change(Act.SETXATTR, b"f", other=b"user.a", value=b"2", flags=Flag.AGAIN)
    assert os.getxattr(host.folder / "f", "user.a") == b"2"
    host.change(Act.REMOVEXATTR, b"f", other=b"user.a")
    with failure(errno.ENODATA):
        host.change(Act.REMOVEXATTR, b"f", other=b"user.a")
    host.change(Act.REMOVEXATTR, b"f", other=b"user.a", flags=Flag.AGAIN)


def test_a_folder_that_gives_its_group(host: Asking) -> None:
    host.change(Act.MKDIR, b"d", mode=0o2755)
    [made, _] = host.change(Act.MKDIR, b"d/e", mode=0o755)
    assert stat.S_IMODE(made.mode) == 0o2755


def test_no_link_is_followed(host: Asking, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_text("x")
    os.symlink("../outside", host.folder / "l")
    os.symlink("../outside/f", host.folder / "m")
    for path in (b"l/f", b"l/g", b"../outside/f", b"./m", b"m/", b""):
        for act in (Act.OPEN, Act.CREATE, Act.MKDIR, Act.UNLINK):
            with failure(errno.EINVAL, errno.ENOTDIR, errno.EISDIR):
                host.change(act, path, handle=1)
    for act in (Act.OPEN, Act.CREATE):
        with failure(errno.ELOOP, errno.EEXIST):
            host.change(act, b"m", handle=1)
    with failure(errno.ENOTDIR):
        host.change(Act.MKDIR, b"l/d")
    assert os.listdir(tmp_path / "outside") == ["f"]
    assert (tmp_path / "outside/f").read_text() == "x"


def test_a_deep_path(host: Asking) -> None:
    part = b"n" * 200
    path = part
    for _ in range(30):
        host.change(Act.MKDIR, path, mode=0o755)
        path += b"/" + part
    [made, _] = host.change(Act.CREATE, path, handle=1, mode=0o600)
    assert made.name == part
    assert host.write(1, 0, b"deep")[0].size == 4
    assert host.change(Act.RENAME, path, other=b"up")[0].size == 4


def test_what_is_refused(host: Asking) -> None:
    host.change(Act.MKDIR, b"d/".rstrip(b"/"), mode=0o755)
    host.change(Act.CREATE, b"d/f", handle=1, mode=0o600)
    for number, act, path, fields in (
        (errno.EEXIST, Act.MKDIR, b"d", {}),
        (errno.EEXIST, Act.CREATE, b"d/f", {}),
        (errno.EEXIST, Act.RENAME, b"d", {"other": b"d", "flags": Flag.NOREPLACE}),
        (errno.EINVAL, Act.RENAME, b"d/f", {"other": b"d", "flags": Flag.EXCHANGE}),
        (errno.ENOENT, Act.UNLINK, b"d/g", {}),
        (errno.ENOENT, Act.RENAME, b"d/g", {"other": b"h"}),
        (errno.ENOTEMPTY, Act.RMDIR, b"d", {}),
        (errno.EISDIR, Act.UNLINK, b"d", {}),
        (errno.EISDIR, Act.OPEN, b"d", {}),
        (errno.EPERM, Act.MKNOD, b"d/n", {"mode": stat.S_IFBLK | 0o600}),
        (errno.ENAMETOOLONG, Act.MKDIR, b"n" * 256, {}),
    ):
        with failure(number):
            host.change(act, path, handle=2, **fields)
    with failure(errno.EBADF):
        host.write(3, 0, b"x")
    assert (host.folder / "d/f").read_bytes() == b""


def test_a_stream_that_reads_takes_no_change(tmp_path: Path) -> None:
    host = Asking(tmp_path, writable=False)
    for kind in wire.CHANGING:
        with failure(errno.EROFS):
            host.ask(kind, b"")
    host.worker.close()


def test_after_unmounting_nothing_is_taken(host: Asking) -> None:
    host.change(Act.CREATE, b"f", handle=1, mode=0o600)
    assert host.ask(Kind.SYNC, b"") == b""
    assert host.ask(Kind.UNMOUNT, b"") == b""
    with failure(errno.ENOTCONN):
        host.listed()
    with failure(errno.ENOTCONN):
        host.write(1, 0, b"x")
    assert not any(link.startswith(str(host.folder)) for link in map(os.readlink, _descriptors()))


def _descriptors() -> list[str]:
    return [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]


def test_a_listing_in_the_midst_of_changes_begins_anew(host: Asking) -> None:
    count = wire.MAX_PAGE_ENTRIES + 30
    for number in range(count):
        (host.folder / f"{number:04}").touch()
    cursor, first = wire.unpack_page(host.ask(Kind.LIST, wire.pack_list(b"", 0)))
    host.change(Act.UNLINK, first[0].name)
    with failure(errno.ESTALE):
        host.ask(Kind.LIST, wire.pack_list(b"", cursor))
    host.ask(Kind.READ, wire.pack_read(first[1].name, 0, 10))
    host.change(Act.CREATE, b"new", handle=1, mode=0o600)
    host.write(1, 0, b"new")
    host.change(Act.RENAME, b"new", other=first[1].name)
    assert host.ask(Kind.READ, wire.pack_read(first[1].name, 0, 10)) == b"new"


# --- once more -------------------------------------------------------------------------------------------------------
def again(host: Asking, act: int, path: bytes, **fields: Any) -> list[Entry]:
    return host.change(act, path, **{"flags": Flag.AGAIN, "mode": 0o644, **fields})


def test_what_is_done_already_is_a_success(host: Asking) -> None:
    top = host.folder
    (top / "d/e").mkdir(parents=True)
    (top / "f").write_text("f")
    os.symlink("t", top / "l")
    os.link(top / "f", top / "g")
    assert again(host, Act.MKDIR, b"d")[0].name == b"d"
    assert again(host, Act.SYMLINK, b"l", other=b"t")[0].target == b"t"
    assert again(host, Act.LINK, b"g", other=b"f")[0].nlink == 2
    assert again(host, Act.MKNOD, b"f", mode=stat.S_IFREG | 0o644)[0].size == 1
    assert again(host, Act.CREATE, b"f", handle=1, flags=Flag.AGAIN)[0].size == 1
    assert host.read(1) == b"f"
    assert again(host, Act.UNLINK, b"gone")[0].mode == 0
    assert again(host, Act.RMDIR, b"gone")[0].mode == 0
    assert again(host, Act.RENAME, b"gone", other=b"g")[0].size == 1
    for number, act, path, fields in (
        (errno.EEXIST, Act.MKDIR, b"f", {}),
        (errno.EEXIST, Act.SYMLINK, b"f", {"other": b"x"}),
        (errno.EEXIST, Act.LINK, b"l", {"other": b"f"}),
        (errno.ENOENT, Act.RENAME, b"gone", {"other": b"too"}),
        (errno.ENOENT, Act.OPEN, b"gone", {}),
        (errno.ENOENT, Act.CREATE, b"gone/x", {}),
        (errno.ENOTEMPTY, Act.RMDIR, b"d", {}),
    ):
        with failure(number):
            again(host, act, path, handle=9, **fields)
