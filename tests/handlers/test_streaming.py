"""A file system served over a stream, from a guest of a test to the library: it is what is in the folder behind it."""

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from mountsafe import reading, trios, wire
from mountsafe.filesystem.index import ROOT
from mountsafe.filesystem.streaming import Streaming
from mountsafe.library.filesystem import FileSystem
from mountsafe.library.stream import Stream
from mountsafe.limits import INDEX_ENTRIES
from mountsafe.medium.extents import Window
from mountsafe.session.record import Mount
from tests.guest import FolderWorker, Layout, Liar, entry, folder, link
from tests.handlers.opened import Guest, Opened, opened

T = TypeVar("T")
MOUNT = Mount("", "sdx", 0, "0", "ext4", "label", "", (), True, 0, 0)
pytestmark = pytest.mark.real_clock


@asynccontextmanager
async def served(
    make: Callable[[], Guest], medium: Path | None = None, window: Window | None = None, limit: int = INDEX_ENTRIES
) -> AsyncIterator[tuple[FileSystem, Opened]]:
    """The library's file system, whose questions are answered in this thread: ask from another."""
    async with opened(make, medium, window, limit=limit) as mount:
        ours, theirs = socket.socketpair()
        async with trio.open_nursery() as nursery:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            nursery.start_soon(Streaming(mount.inside, stream).serve)
            client = Stream(ours)
            try:
                yield FileSystem(object(), client, MOUNT, 1), mount
            finally:
                client.close()


async def asked(function: Callable[[], T]) -> T:
    return await trios.in_thread(function)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with what file systems have in them."""
    root = tmp_path / "tree"
    (root / "a/b/c").mkdir(parents=True)
    (root / "empty").touch()
    (root / "small").write_bytes(b"hello")
    (root / "large").write_bytes(bytes(range(256)) * 5000)
    (root / "a/b/deep").write_bytes(b"deep")
    os.link(root / "small", root / "a/hard")
    (root / "relative").symlink_to("a/b")
    (root / "absolute").symlink_to("/a/b/deep")
    (root / "up").symlink_to("../../../../small")
    (root / "loop").symlink_to("loop")
    (root / "nowhere").symlink_to("nothing")
    os.mkfifo(root / "fifo")
    os.mkdir(os.fsencode(root) + b"/\xff\n\x1b")
    (root / "many").mkdir()
    for number in range(1000):
        (root / f"many/{number}").touch()
    return root


async def test_all_of_it_is_as_it_is_in_the_folder(tree: Path) -> None:
    async with served(lambda: FolderWorker(tree)) as (fs, _):

        def look() -> int:
            count = 0
            for top, folders, files in os.walk(os.fsencode(tree)):
                inside = os.path.relpath(top, os.fsencode(tree))
                told = {each.name: each for each in fs.scandir(inside)}
                assert sorted(told) == sorted(folders + files)
                for name, each in told.items():
                    real = os.lstat(os.path.join(top, name))
                    for st in (each.stat(follow_symlinks=False), fs.lstat(os.path.join(inside, name))):
                        assert (st.st_mode, st.st_size, st.st_nlink) == (real.st_mode, real.st_size, real.st_nlink)
                        assert (st.st_mtime_ns, st.st_uid, st.st_blocks) == (
                            *(real.st_mtime_ns, real.st_uid),
                            real.st_blocks,
                        )
                    if each.is_symlink():
                        assert fs.readlink(os.path.join(inside, name)) == os.readlink(os.path.join(top, name))
                    elif stat.S_ISREG(real.st_mode):
                        content = Path(os.fsdecode(os.path.join(top, name))).read_bytes()
                        assert fs.read_bytes(os.path.join(inside, name)) == content
                    count += 1
            return count

        assert await asked(look) == 1016
        walked = await asked(lambda: sorted((top, sorted(a), sorted(b)) for top, a, b in fs.walk(".")))
        assert walked == await asked(lambda: _walked(tree))


def _walked(tree: Path) -> list[tuple[str, list[str], list[str]]]:
    """As os.walk, which takes a link to a folder for a folder."""
    found = []
    for top, folders, files in os.walk(tree):
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        inside = "." if top == str(tree) else os.path.join(".", os.path.relpath(top, tree))
        found.append((inside, sorted(set(folders) - set(links)), sorted(files + links)))
    return sorted(found)


async def test_links_lead_as_if_the_root_were_all_there_is(tree: Path) -> None:
    async with served(lambda: FolderWorker(tree)) as (fs, _):

        def look() -> None:
            assert fs.read_bytes("relative/deep") == b"deep"
            assert fs.read_bytes("absolute") == b"deep"
            assert fs.read_bytes("up") == b"hello"  # it would be a file beside the folder, or none
            assert fs.read_bytes("../../a/./b//deep") == b"deep"
            assert fs.stat("relative").st_mode == fs.stat("a/b").st_mode
            assert stat.S_ISLNK(fs.lstat("relative").st_mode)
            assert {each.name for each in fs.scandir("relative/")} == {"c", "deep"}
            for path, number in (("loop", errno.ELOOP), ("nowhere", errno.ENOENT), ("small/x", errno.ENOTDIR)):
                with pytest.raises(OSError, match=os.strerror(number)) as failure:
                    fs.stat(path)
                assert (failure.value.errno, failure.value.filename) == (number, path)
            assert not fs.exists("nowhere")
            with pytest.raises(OSError, match="Invalid"):
                fs.readlink("small")
            with pytest.raises(OSError, match="Invalid"):
                fs.open("fifo")
            with pytest.raises(IsADirectoryError):
                fs.open("a")

        await asked(look)


async def test_files_are_read_as_files_are(tree: Path) -> None:
    content = (tree / "large").read_bytes()
    async with served(lambda: FolderWorker(tree)) as (fs, _):

        def look() -> None:
            with fs.open("large") as file:
                assert file.read(10) == content[:10]
                assert file.seek(-7, os.SEEK_END) == len(content) - 7
                assert file.read() == content[-7:]
                assert file.read() == b""
                file.seek(70_000)
                assert file.tell() == 70_000
                assert file.read(100_000) == content[70_000:170_000]
                with pytest.raises(ValueError, match="negative"):
                    file.seek(-1)
            with pytest.raises(ValueError, match="closed"):
                file.read()
            with fs.open("small", "r", encoding="ascii") as text:
                assert text.read() == "hello"
            with pytest.raises(ValueError, match="only read"):
                fs.open("small", "wb")
            with fs.open_raw("large") as raw:
                assert raw.pread(5, len(content) - 3) == content[-3:]
                assert raw.next_data(5) == 5

        await asked(look)


async def test_all_that_is_left_of_a_file_is_asked_for_in_large_pieces(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (tree / "large").read_bytes()
    async with served(lambda: FolderWorker(tree)) as (fs, _):
        kinds: list[int] = []
        begin = fs._stream.begin

        def counted(kind: int, body: bytes = b"") -> int:
            kinds.append(kind)
            return begin(kind, body)

        monkeypatch.setattr(fs._stream, "begin", counted)

        def look() -> None:
            assert fs.read_bytes("large") == content
            for position in (5, 70_000, len(content) - 1, len(content), len(content) + 9):
                with fs.open("large", buffering=0) as raw:
                    raw.seek(position)
                    assert raw.read() == content[position:]
                    assert raw.tell() == max(position, len(content))
            with fs.open("large") as file:
                assert file.read(3) + file.read() == content

        await asked(look)
        assert kinds.count(reading.Kind.READ) == 2 + 2 + 2 + 1 + 2


async def test_holes_are_told_and_read_as_zeros(tree: Path, tmp_path: Path) -> None:
    (tree / "sparse").touch()
    os.truncate(tree / "sparse", 3 << 20)
    with (tree / "sparse").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
    layout = Layout.store(tree, tmp_path / "medium")
    window = Window(0, layout.size)
    async with served(lambda: FolderWorker(tree, layout=layout), tmp_path / "medium", window) as (fs, _):

        def look() -> None:
            with fs.open_raw("sparse") as raw:
                assert raw.next_data(0) == 1 << 20
                assert raw.next_data((1 << 20) + 5) == (1 << 20) + 5
                assert raw.next_data((1 << 20) + 4096) == 3 << 20
                assert raw.next_data(9 << 20) == 3 << 20
            assert fs.read_bytes("sparse") == (tree / "sparse").read_bytes()
            assert fs.read_bytes("large") == (tree / "large").read_bytes()

        await asked(look)


async def test_threads_ask_beside_each_other(tree: Path) -> None:
    content = (tree / "large").read_bytes()
    async with served(lambda: FolderWorker(tree)) as (fs, _):

        def look(number: int) -> None:
            for _ in range(5):
                with fs.open("large") as file:
                    file.seek(number * 1000)
                    assert file.read(300_000) == content[number * 1000 :][:300_000]
                assert len(fs.listdir("many")) == 1000

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(trios.in_thread, look, number)


async def test_an_open_file_is_read_when_its_folder_was_forgotten(tree: Path) -> None:
    async with served(lambda: FolderWorker(tree), limit=50) as (fs, mount):

        def look() -> None:
            file = fs.open("a/b/deep", buffering=0)
            for _ in range(3):
                assert len(fs.listdir("many")) == 1000
                assert len(fs.listdir("a")) == 2
            assert file.read() == b"deep"
            file.close()

        await asked(look)
        await trio.testing.wait_all_tasks_blocked()
        held = [each for each in mount.index._nodes.values() if each.lookups and each.ino != ROOT]
        assert held == []


async def test_too_many_open_files_are_refused_and_close_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_HANDLES", 3)
    async with served(lambda: Liar({b"": [entry(b"file", 5)]})) as (fs, _):

        def look() -> None:
            files = [fs.open("file", buffering=0) for _ in range(3)]
            with pytest.raises(OSError, match="Too many"):
                fs.open("file")
            files[0].close()
            fs.open("file", buffering=0)

        await asked(look)


async def test_lies_of_a_guest_are_errors_and_the_rest_is_told() -> None:
    entries = [entry(b"good", 5, size=3), entry(b"a/b"), entry(b".."), link(b"out", b"../../etc/passwd", 6)]
    liar = Liar({b"": [*entries, folder(b"bad", 7)]}, {b"good": b"abc"})
    async with served(lambda: liar) as (fs, _):

        def look() -> None:
            assert sorted(fs.listdir("/")) == ["bad", "good", "out"]
            assert fs.read_bytes("good") == b"abc"
            with pytest.raises(FileNotFoundError):
                fs.open("out")
            with pytest.raises(FileNotFoundError):
                fs.listdir("bad")
            liar.files[b"good"] = b"a"
            with pytest.raises(OSError, match="Input/output"):
                fs.read_bytes("good")

        await asked(look)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(wire.frame(1, 99), id="kind"),
        pytest.param(wire.HEADER.pack(1 << 30, 1, reading.Kind.LOOK), id="length"),
        pytest.param(wire.frame(1, reading.Kind.LOOK, b"x"), id="short"),
        pytest.param(wire.frame(1, reading.Kind.LOOK, reading.pack_asked(reading.Asked(b"a\0b"))), id="nul"),
        pytest.param(wire.frame(1, reading.Kind.LOOK, reading.pack_asked(reading.Asked(b"", 255))), id="flags"),
        pytest.param(wire.frame(1, reading.Kind.READ, bytes(3)), id="held"),
        pytest.param(wire.frame(1, reading.Kind.READ, reading.pack_held(reading.Held(1, 0, 1 << 21))), id="much"),
    ],
)
async def test_who_reads_and_breaks_the_protocol_is_served_no_longer(sent: bytes) -> None:
    async with opened(lambda: Liar({b"": [entry(b"x")]})) as mount:
        ours, theirs = socket.socketpair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Streaming(mount.inside, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))).serve)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                await stream.send_all(sent)
                assert await stream.receive_some() == b""
