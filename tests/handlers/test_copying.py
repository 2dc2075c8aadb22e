"""What is copied out of an image, and archived: all of it, as it is, and nothing anywhere else."""

import gc
import hashlib
import io
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest

from mountsafe import trios
from mountsafe.cli.listings import body_line, sum_line
from mountsafe.library.archive import Archive
from mountsafe.library.copying import Copy, Hears, Links, Wish
from mountsafe.library.filesystem import FileSystem
from mountsafe.library.naming import Names
from mountsafe.library.results import status
from mountsafe.library.whole import Found, Whole
from tests.guest import FolderWorker, Liar, entry, folder, link
from tests.handlers.opened import Guest
from tests.handlers.test_streaming import served

pytestmark = pytest.mark.real_clock
TIME = 1_500_000_000_123_456_789


class Heard(Hears):
    def __init__(self) -> None:
        self.failures: list[tuple[bytes, str]] = []
        self.left: list[bytes] = []
        self.count = 0

    def failed(self, path: bytes, error: OSError) -> None:
        self.failures.append((path, error.strerror or str(error)))

    def left_out(self, path: bytes, why: str) -> None:
        self.left.append(path)

    def copied(self, count: int) -> None:
        self.count += count


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "a/b").mkdir(parents=True)
    (root / "a/file").write_bytes(b"hello")
    (root / "a/b/large").write_bytes(os.urandom(300_000) * 8)
    os.link(root / "a/file", root / "a/b/hard")
    (root / "inside").symlink_to("a/b/large")
    (root / "out").symlink_to("../../etc/passwd")
    (root / "absolute").symlink_to("/etc/passwd")
    os.mkfifo(root / "fifo")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\n\x1b[2J")).write_bytes(b"odd")
    (root / "set").write_bytes(b"x")
    (root / "set").chmod(0o6755)
    with (root / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    for path in (*root.rglob("*"), root):
        os.utime(path, ns=(TIME, TIME), follow_symlinks=False)
    return root


async def copied(guest: Guest, target: Path, wish: Wish, name: bytes = b"copy", path: bytes = b"/") -> Heard:
    heard = Heard()

    def copy(fs: FileSystem) -> None:
        whole = Whole([fs])
        fd = os.open(target, os.O_RDONLY)
        try:
            Copy(whole, wish, heard).into(fd, whole.find(path, follow=False), name)
        finally:
            os.close(fd)

    async with served(lambda: guest) as (fs, _):
        await trios.in_thread(copy, fs)
    return heard


def told(root: Path) -> dict[str, object]:
    """What there is below a folder, but for what is never copied."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        st = path.lstat()
        name = os.path.relpath(path, root)
        if stat.S_ISLNK(st.st_mode):
            found[name] = os.readlink(path)
        elif stat.S_ISREG(st.st_mode):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest(), st.st_nlink, st.st_mode & 0o777, st.st_mtime_ns
        elif stat.S_ISDIR(st.st_mode):
            found[name] = st.st_mode & 0o777, st.st_mtime_ns
    return found


async def test_a_copy_is_as_the_tree(tree: Path, tmp_path: Path) -> None:
    heard = await copied(FolderWorker(tree), tmp_path, Wish(preserve=True))
    wanted = {name: what for name, what in told(tree).items() if name not in ("out", "absolute")}
    assert told(tmp_path / "copy") == wanted
    assert heard.failures == []
    assert sorted(heard.left) == [b"absolute", b"fifo", b"out"]
    assert not (tmp_path / "copy/set").stat().st_mode & 0o7000
    assert (tmp_path / "copy/sparse").stat().st_blocks <= 16  # though no hole was told: its zeros are none
    assert (tmp_path / "copy").stat().st_mtime_ns == TIME
    assert (tmp_path / "copy/a/file").stat().st_ino == (tmp_path / "copy/a/b/hard").stat().st_ino


async def test_without_being_asked_to_modes_and_times_are_not_kept(tree: Path, tmp_path: Path) -> None:
    await copied(FolderWorker(tree), tmp_path, Wish(links=Links.NONE))
    assert (tmp_path / "copy/set").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "copy/set").stat().st_mtime_ns != TIME
    assert not (tmp_path / "copy/inside").is_symlink()


async def test_nothing_is_made_through_a_link(tmp_path: Path) -> None:
    """Neither through one that was there, nor through one that came from another image."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    evil = Liar({b"": [link(b"a", os.fsencode(outside), 5), link(b"file", os.fsencode(outside / "made"), 6)]})
    await copied(evil, target, Wish(links=Links.ALL))
    assert (target / "copy/a").is_symlink()
    files = {b"a/inside": b"x", b"file": b"x"}
    other = Liar(
        {b"": [folder(b"a", 5), entry(b"file", 6, size=1)], b"a": [entry(b"inside", 7, size=1), folder(b"below", 8)]},
        files,
    )
    for wish in (Wish(), Wish(resume=True), Wish(preserve=True)):
        heard = await copied(other, target, wish)
        assert {path for path, _ in heard.failures} >= {b"a"}
        assert list(outside.iterdir()) == []
    (target / "link").symlink_to(outside)
    heard = await copied(other, target, Wish(), b"link")
    assert [path for path, _ in heard.failures] == [b"/"]
    assert list(outside.iterdir()) == []


async def test_what_is_there_is_not_overwritten(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "copy/a").mkdir(parents=True)
    (tmp_path / "copy/a/file").write_text("mine")
    heard = await copied(FolderWorker(tree), tmp_path, Wish())
    assert [path for path, _ in heard.failures] == [b"a/file"]
    assert (tmp_path / "copy/a/file").read_text() == "mine"
    assert (tmp_path / "copy/a/b/large").read_bytes() == (tree / "a/b/large").read_bytes()


async def test_a_copy_goes_on_where_it_was_broken_off(tree: Path, tmp_path: Path) -> None:
    await copied(FolderWorker(tree), tmp_path, Wish(resume=True, preserve=True))
    before = told(tmp_path / "copy")
    (tmp_path / "copy/a/b/large").write_bytes(b"half")
    (tmp_path / "copy/set").unlink()
    heard = await copied(FolderWorker(tree), tmp_path, Wish(resume=True, preserve=True))
    assert heard.failures == []
    assert heard.count == (tree / "a/b/large").stat().st_size + 1
    assert told(tmp_path / "copy") == before


async def test_one_file_that_cannot_be_read_does_not_stop_the_rest(tmp_path: Path) -> None:
    entries = [entry(b"a", 5, size=3), entry(b"b", 6, size=3), entry(b"c", 7, mode=0), folder(b"d", 8)]
    liar = Liar({b"": entries}, {b"a": b"x", b"b": b"abc"})
    heard = await copied(liar, tmp_path, Wish())
    assert sorted(path for path, _ in heard.failures) == [b"a", b"c", b"d"]
    assert sorted(os.listdir(tmp_path / "copy")) == ["b", "d"]  # half a file is none


async def test_a_claimed_size_fills_no_disk(tmp_path: Path) -> None:
    liar = Liar(
        {b"": [entry(b"huge", 5, size=1 << 62), entry(b"b", 6, size=3)]}, {b"huge": bytes(1 << 16), b"b": b"abc"}
    )
    heard = await copied(liar, tmp_path, Wish())
    assert [path for path, _ in heard.failures] == [b"huge"]
    assert sorted(os.listdir(tmp_path / "copy")) == ["b"]


async def test_names_that_are_safe_anywhere(tmp_path: Path) -> None:
    odd = [b"a:b", b"A:B", b"con.txt", b"x.", b"-rf", b"\x1b[2J", b"\xff", b"100%", "é".encode(), "É".encode()]
    odd.append(b"n" * 255)
    liar = Liar({b"": [entry(name, 10 + number) for number, name in enumerate(odd)]})
    heard = await copied(liar, tmp_path, Wish(names=Names.SAFE))
    assert heard.failures == []
    assert sorted(os.listdir(tmp_path / "copy")) == sorted(
        ["a%3Ab~2", "A%3AB", "%63on.txt", "x%2E", "%2Drf", "%1B[2J", "%FF", "100%25", "é~2", "É", "n" * 255]
    )


def everything(tree: Path) -> set[str]:
    return {os.path.relpath(path, tree) for path in tree.rglob("*")}


async def archived(guest: Guest) -> tuple[tarfile.TarFile, list[bytes]]:
    out, failures = io.BytesIO(), list[bytes]()

    def write(fs: FileSystem) -> None:
        whole = Whole([fs])
        archive = Archive(whole, out, lambda path, error: failures.append(path))
        archive.add(whole.find(b"/"))
        archive.close()

    async with served(lambda: guest) as (fs, _):
        await trios.in_thread(write, fs)
    out.seek(0)
    return tarfile.open(fileobj=out, encoding="utf-8", errors="surrogateescape"), failures


async def test_an_archive_that_nobody_reads_any_more_ends_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tarfile writes at its end, when it is garbage, is an error that nobody could catch."""
    unheard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unheard.append)

    class Gone(io.RawIOBase):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    def write(fs: FileSystem) -> None:
        whole = Whole([fs])
        archive = Archive(whole, Gone(), lambda path, error: None)
        top = whole.find(b"/")
        with pytest.raises(BrokenPipeError):
            archive.add(top)

    async with served(lambda: FolderWorker(tree)) as (fs, _):
        await trios.in_thread(write, fs)
    gc.collect()
    assert unheard == []


async def test_an_archive_is_as_the_tree(tree: Path) -> None:
    archive, failures = await archived(FolderWorker(tree))
    assert failures == []
    found = {member.name: member for member in archive}
    assert set(found) == everything(tree)
    for name, member in found.items():
        st = (tree / name).lstat()
        assert member.pax_headers["mtime"] == "1500000000.123456789"
        assert member.mode == st.st_mode & 0o777
        if member.issym():
            assert member.linkname == os.readlink(tree / name)
        elif member.isfile():
            file = archive.extractfile(member)
            assert file is not None
            assert file.read() == (tree / name).read_bytes()
    assert (found["a/file"].islnk(), found["a/file"].linkname) == (True, "a/b/hard")


async def test_what_cannot_be_read_of_an_archive_is_zeros_and_told() -> None:
    entries = [entry(b"a", 5, size=200_000), entry(b"b", 6, size=3)]
    liar = Liar({b"": entries}, {b"a": b"x" * 70_000, b"b": b"abc"})
    archive, failures = await archived(liar)
    assert failures == [b"a"]
    file = archive.extractfile("b")
    assert file is not None
    assert file.read() == b"abc"


def found(name: bytes, target: bytes = b"") -> Found:
    mode = stat.S_IFLNK | 0o777 if target else stat.S_IFREG | 0o640
    told = entry(name, 5, mode=mode, uid=0, gid=7, size=9, atime=10**9, mtime=-2 * 10**9, ctime=3 * 10**9)
    return Found(name, status(told, 1), target)


def test_lines_for_other_programs() -> None:
    assert sum_line("00", b"a b") == b"00  a b"
    assert sum_line("00", b"a\n\\b\r") == b"\\00  a\\n\\\\b\\r"
    assert body_line(found(b"a|b\n%")) == b"0|/a%7Cb%0A%25|5|-rw-r-----|0|7|9|1|-2|3|0"
    assert body_line(found(b"/l", b"t")) == b"0|/l -> t|5|lrwxrwxrwx|0|7|9|1|-2|3|0"


async def test_several_file_systems_are_folders_of_one_tree() -> None:
    one = Liar({b"": [entry(b"a", 5, size=1)]}, {b"a": b"1"})
    two = Liar({b"": [folder(b"f", 5)], b"f": [link(b"l", b"/f/b", 6), entry(b"b", 7, size=1)]}, {b"f/b": b"2"})

    def look(fs: FileSystem, other: FileSystem) -> None:
        fs.folder, fs.name, other.folder, other.name = "p1-ONE", "1", "p2", "2"
        whole = Whole([fs, other])
        failures: list[bytes] = []
        below = [each.path for each in whole.below(whole.find(b"/"), lambda path, error: failures.append(path))]
        assert below == [b"/", b"p1-ONE", b"p1-ONE/a", b"p2", b"p2/f", b"p2/f/b", b"p2/f/l"]
        assert body_line(whole.find(b"/")).startswith(b"0|/|1|dr-xr-xr-x|0|0|0|0|0|0|0")
        assert whole.open(b"2/f/l").pread(5, 0) == b"2"
        assert whole.open(b"/p1-ONE/a").pread(5, 0) == b"1"
        assert whole.find(b"p2/f/l", follow=False).target == b"/f/b"
        assert whole.inside(b"/p2/../p1-ONE")[0].status.st_dev != whole.inside(b"p2")[0].status.st_dev
        for path in (b"3", b"p1-ONE/b", b"a"):
            with pytest.raises(FileNotFoundError):
                whole.find(path)
        with pytest.raises(IsADirectoryError):
            whole.open(b"/")
        for slash in (b"p2/f/l/", b"2/f//../f/l//"):  # it leads over the link, as in the only file system
            with pytest.raises(NotADirectoryError):
                whole.find(slash, follow=False)
        assert whole.find(b"2/f/", follow=False).is_folder

    async with served(lambda: one) as (fs, _), served(lambda: two) as (other, _):
        other._number = 2
        await trios.in_thread(look, fs, other)
