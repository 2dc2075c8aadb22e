"""What programs do to a mount that can be changed: as on any file system, whatever becomes of virtual machines."""

import ctypes
import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mountsafe.session.conversation import Settle, WantStream
from tests.conftest import missing
from tests.fuse.changed import PATIENCE, Changed

Mounts = Callable[..., Changed]


@pytest.fixture
def mount() -> Iterator[Mounts]:
    """A function that mounts a folder, which it fills before if it is told how."""
    if os.geteuid() != 0:
        missing("root")
    begun: list[Changed] = []
    base = Path(tempfile.mkdtemp(prefix="mountsafe-changing-"))
    base.chmod(0o755)

    def begin(fill: Callable[[Path], object] = lambda top: None, **options: Any) -> Changed:
        places = [base / f"{name}{len(begun)}" for name in ("tree", "target", "state")]
        for place in places:
            place.mkdir()
        fill(places[0])
        begun.append(Changed(*places, **options))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()
    shutil.rmtree(base)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something holds that another process brings about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    with pytest.raises(OSError, match=r".") as failure:
        yield
    assert errno.errorcode[failure.value.errno or 0] in [errno.errorcode[number] for number in numbers]


def facts(top: Path) -> dict[str, tuple[Any, ...]]:
    """All of a tree, but for times and numbers."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        st = path.lstat()
        content: object = None
        if stat.S_ISREG(st.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(st.st_mode):
            content = os.readlink(path)
        size = st.st_size if stat.S_ISREG(st.st_mode) else 0
        mode = st.st_mode if path != top else 0
        links = 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink
        found[str(path.relative_to(top))] = (mode, links, st.st_uid, st.st_gid, size, content)
    return found


def saved(mounted: Changed) -> None:
    """Unmount, and make sure that everything was said to be saved."""
    shown = facts(mounted.target)
    mounted.sync()
    mounted.unmount()
    assert facts(mounted.tree) == shown
    assert mounted.unsaved == [], mounted.words()
    words = [each for each in mounted.said if isinstance(each, Settle) or each == WantStream(writing=True)]
    assert not words or isinstance(words[-1], Settle)
    assert "a bug" not in mounted.words()


def small_files(top: Path, folders: int = 6, files: int = 10) -> Path:
    chance = random.Random(1)
    for folder in range(folders):
        (top / f"d{folder}/in").mkdir(parents=True)
        for number in range(files):
            (top / f"d{folder}/f{number}").write_bytes(chance.randbytes(chance.randrange(9000)))
        (top / f"d{folder}/in/link").symlink_to("../f0")
        os.link(top / f"d{folder}/f1", top / f"d{folder}/in/hard")
        (top / f"d{folder}/f2").chmod(0o640)
        os.utime(top / f"d{folder}/f3", (1, 2))
    return top


# --- by and by -----------------------------------------------------------------------------------------------------
def test_a_file_is_made_written_read_and_removed(mount: Mounts) -> None:
    mounted = mount()
    top, tree = mounted.target, mounted.tree
    (top / "file").write_bytes(b"hello")
    assert (top / "file").read_bytes() == b"hello"
    mounted.sync()
    assert (tree / "file").read_bytes() == b"hello"
    os.rename(top / "file", top / "other")
    assert os.listdir(top) == ["other"]
    (top / "other").unlink()
    assert os.listdir(top) == []
    saved(mounted)
    assert os.listdir(tree) == []


def test_reading_begins_no_writing(mount: Mounts) -> None:
    mounted = mount(lambda top: (top / "file").write_bytes(b"read only"))
    fd = os.open(mounted.target / "file", os.O_RDWR)
    assert os.read(fd, 100) == b"read only"
    os.fsync(fd)
    os.close(fd)
    os.chmod(mounted.target / "file", stat.S_IMODE((mounted.target / "file").stat().st_mode))
    os.chown(mounted.target / "file", 0, 0)
    mounted.sync()
    mounted.unmount()
    assert mounted.writers == 0
    assert mounted.settled == 0


def test_it_settles_and_goes_on(mount: Mounts) -> None:
    """The file that is open all the time is written to again."""
    mounted = mount()
    with open(mounted.target / "file", "wb", buffering=0) as file:
        for turn in range(1, 4):
            file.write(b"turn %d\n" % turn)
            wait_for(lambda turn=turn: mounted.settled == turn)  # type: ignore[misc]
            assert (mounted.tree / "file").stat().st_size == 7 * turn
            assert (mounted.target / "file").read_bytes().endswith(b"turn %d\n" % turn)
    assert mounted.writers == 3
    saved(mounted)


def test_a_read_only_mount_stays_one(mount: Mounts) -> None:
    mounted = mount(lambda top: (top / "file").touch(), writable=False)
    top = mounted.target
    for attempt in (
        lambda: os.open(top / "file", os.O_WRONLY),
        lambda: (top / "new").touch(),
        lambda: os.open(top / "file", os.O_RDONLY | os.O_TRUNC),
    ):
        with fails(errno.EROFS, errno.ENOSYS):
            attempt()


def test_a_medium_that_cannot_be_written_to(mount: Mounts) -> None:
    mounted = mount(lambda top: (top / "file").write_bytes(b"there"), control={"refuses": True})
    for _ in range(3):
        with fails(errno.EROFS):
            (mounted.target / "new").touch()
    assert (mounted.target / "file").read_bytes() == b"there"
    assert mounted.words().count("write-protected") == 1
    assert mounted.writers == 1
    mounted.unmount()


# --- programs ------------------------------------------------------------------------------------------------------
def test_a_copy_of_a_tree_is_moved_and_removed(mount: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_files(source)
    mounted = mount()
    top = mounted.target
    subprocess.run(["cp", "-a", source, top / "copy"], check=True)
    assert facts(top / "copy") == facts(source)
    assert (top / "copy/d0/f3").stat().st_mtime == 2
    subprocess.run(["mv", top / "copy", top / "moved"], check=True)
    subprocess.run(["mv", top / "moved/d1", top / "moved/d2/in/"], check=True)
    assert facts(top / "moved/d2/in/d1") == facts(source / "d1")
    subprocess.run(["rm", "-rf", top / "moved/d3"], check=True)
    assert not (top / "moved/d3").exists()
    mounted.sync()
    assert facts(mounted.tree) == facts(top)
    subprocess.run(["rm", "-rf", top / "moved"], check=True)
    saved(mounted)
    assert os.listdir(mounted.tree) == []


def test_tar(mount: Mounts, tmp_path: Path) -> None:
    source = small_files(tmp_path / "source")
    subprocess.run(["tar", "cf", tmp_path / "all.tar", "-C", source, "."], check=True)
    mounted = mount()
    subprocess.run(["tar", "xf", tmp_path / "all.tar", "-C", mounted.target], check=True)
    subprocess.run(["tar", "df", tmp_path / "all.tar", "-C", mounted.target], check=True)
    saved(mounted)
    assert facts(mounted.tree) == facts(source)


def test_two_who_append(mount: Mounts) -> None:
    mounted = mount()
    fds = [os.open(mounted.target / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: [os.write(fds[number], b"%d" % number * 10) for _ in range(50)], range(2)))
    for fd in fds:
        os.close(fd)
    told = (mounted.target / "log").read_bytes()
    assert len(told) == 1000
    assert {told[at : at + 10] for at in range(0, 1000, 10)} == {b"0" * 10, b"1" * 10}
    saved(mounted)


def test_shared_memory(mount: Mounts) -> None:
    mounted = mount()
    with open(mounted.target / "mapped", "w+b") as file:
        file.truncate(1 << 20)
        with mmap.mmap(file.fileno(), 1 << 20) as memory:
            memory[5000:5010] = b"0123456789"
            memory[-3:] = b"end"
            memory.flush()
        os.fsync(file.fileno())
    content = (mounted.target / "mapped").read_bytes()
    assert (content[5000:5010], content[-3:], len(content)) == (b"0123456789", b"end", 1 << 20)
    saved(mounted)


def test_a_file_without_a_name(mount: Mounts) -> None:
    mounted = mount(lambda top: (top / "old").write_bytes(b"old content"))
    top = mounted.target
    with open(top / "old", "rb", buffering=0) as old, open(top / "new", "w+b", buffering=0) as new:
        new.write(b"new ")
        (top / "old").unlink()
        (top / "new").unlink()
        new.write(b"content")
        (top / "new").write_bytes(b"another one")
        assert (os.pread(old.fileno(), 99, 0), os.pread(new.fileno(), 99, 0)) == (b"old content", b"new content")
        assert os.fstat(old.fileno()).st_nlink == 0
        time.sleep(0.5)  # longer than it takes to settle, which it must not
        assert mounted.settled == 0
        assert os.pread(new.fileno(), 99, 0) == b"new content"
        os.ftruncate(new.fileno(), 3)
        assert os.fstat(new.fileno()).st_size == 3
    assert (top / "new").read_bytes() == b"another one"
    assert (top / "new").stat().st_nlink == 1
    wait_for(lambda: mounted.settled == 1)
    saved(mounted)


def test_hard_links(mount: Mounts) -> None:
    mounted = mount()
    top = mounted.target
    (top / "one").write_bytes(b"shared")
    (top / "folder").mkdir()
    os.link(top / "one", top / "folder/two")
    assert (top / "one").stat().st_nlink == (top / "folder/two").stat().st_nlink == 2
    assert (top / "one").stat().st_ino == (top / "folder/two").stat().st_ino
    (top / "folder/two").write_bytes(b"changed")
    assert (top / "one").read_bytes() == b"changed"
    (top / "one").unlink()
    assert (top / "folder/two").stat().st_nlink == 1
    with open(top / "folder/two", "ab") as file:
        file.write(b" again")
    assert (top / "folder/two").read_bytes() == b"changed again"
    saved(mounted)


def test_a_name_of_a_file_that_was_not_looked_at(mount: Mounts) -> None:
    """Its other name lies in a folder that nobody has looked at."""

    def fill(top: Path) -> None:
        (top / "far").mkdir()
        (top / "near").write_bytes(b"both")
        os.link(top / "near", top / "far/away")

    mounted = mount(fill)
    with open(mounted.target / "near", "r+b", buffering=0) as file:
        (mounted.target / "near").unlink()
        file.write(b"BOTH of us")
        assert (mounted.target / "far/away").read_bytes() == b"BOTH of us"
        file.write(b"!")
        assert (mounted.target / "far/away").read_bytes() == b"BOTH of us!"
    saved(mounted)


def test_a_rename_over_a_file_that_is_open(mount: Mounts) -> None:
    mounted = mount(lambda top: (top / "kept").write_bytes(b"as it was"))
    top = mounted.target
    with open(top / "kept", "rb", buffering=0) as file:
        for turn in range(3):
            (top / "part").write_bytes(b"turn %d" % turn)
            os.rename(top / "part", top / "kept")
            assert (top / "kept").read_bytes() == b"turn %d" % turn
        assert file.read(99) == b"as it was"
    assert os.listdir(top) == ["kept"]
    saved(mounted)


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_exchange_and_noreplace(mount: Mounts) -> None:
    mounted = mount()
    one, other = mounted.target / "one", mounted.target / "other"
    one.write_bytes(b"1")
    other.mkdir()
    (other / "in").write_bytes(b"2")
    with fails(errno.EEXIST):
        renameat2(one, other, 1)
    renameat2(one, other, 2)
    assert (other.read_bytes(), (one / "in").read_bytes()) == (b"1", b"2")
    renameat2(other, mounted.target / "new", 1)
    assert sorted(os.listdir(mounted.target)) == ["new", "one"]
    saved(mounted)


def test_attributes(mount: Mounts) -> None:
    mounted = mount()
    path = mounted.target / "file"
    path.write_bytes(b"x" * 5000)
    os.truncate(path, 100)
    assert (path.stat().st_size, path.read_bytes()) == (100, b"x" * 100)
    os.truncate(path, 6000)
    assert path.read_bytes() == b"x" * 100 + bytes(5900)
    path.chmod(0o4751)
    assert stat.S_IMODE(path.stat().st_mode) == 0o751
    os.chown(path, 12, 34)
    assert (path.stat().st_uid, path.stat().st_gid) == (12, 34)
    os.utime(path, ns=(1_000_000_007, 2_000_000_009))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_007, 2_000_000_009)
    before = time.time_ns()
    os.utime(path)
    assert before - 10**9 < path.stat().st_mtime_ns < time.time_ns() + 10**9
    link = mounted.target / "link"
    link.symlink_to("file")
    os.utime(link, (5, 6), follow_symlinks=False)
    assert link.lstat().st_mtime == 6
    os.truncate(path, 0)
    with open(path, "wb") as file:
        assert os.fstat(file.fileno()).st_size == 0
    saved(mounted)


def test_a_folder_knows_when_it_was_changed(mount: Mounts) -> None:
    mounted = mount(lambda top: os.utime(top, (1, 1)))
    assert mounted.target.stat().st_mtime == 1
    (mounted.target / "folder").mkdir()
    assert mounted.target.stat().st_mtime > 1
    assert mounted.target.stat().st_nlink == 3
    saved(mounted)


def test_extended_attributes(mount: Mounts) -> None:
    mounted = mount()
    path = mounted.target / "file"
    path.touch()
    os.setxattr(path, "user.one", b"1")
    assert (os.listxattr(path), os.getxattr(path, "user.one")) == (["user.one"], b"1")
    with fails(errno.EEXIST):
        os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.one", b"2", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.one") == b"2"
    os.removexattr(path, "user.one")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.one")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(path, "trusted.one", b"1")
    assert os.listxattr(path) == []
    saved(mounted)


def test_special_files(mount: Mounts) -> None:
    mounted = mount()
    os.mkfifo(mounted.target / "fifo")
    assert stat.S_ISFIFO((mounted.target / "fifo").stat().st_mode)
    with fails(errno.EPERM):
        os.mknod(mounted.target / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(mounted.target / "plain", stat.S_IFREG | 0o600)
    (mounted.target / "plain").write_bytes(b"y")
    saved(mounted)


def test_names_and_types_that_do_not_fit(mount: Mounts) -> None:
    mounted = mount()
    top = mounted.target
    (top / "folder/in").mkdir(parents=True)
    (top / "file").touch()
    with fails(errno.ENAMETOOLONG):
        (top / ("x" * 256)).touch()
    with fails(errno.ENOTEMPTY):
        (top / "folder").rmdir()
    with fails(errno.ENOTDIR):
        (top / "file/x").touch()
    with fails(errno.EISDIR):
        (top / "folder").unlink()
    with fails(errno.ENOENT):
        (top / "absent").unlink()
    with fails(errno.EEXIST):
        (top / "folder").mkdir()
    with fails(errno.EEXIST):
        os.open(top / "file", os.O_CREAT | os.O_EXCL)
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        (top / "x").mkdir()
        os.rename(top / "x", top / "folder")
    saved(mounted)


def test_names_of_a_type_that_does_not_tell_letters_apart(mount: Mounts) -> None:
    mounted = mount(fstype="vfat")
    with fails(errno.EINVAL):
        (mounted.target / "dot.").touch()
    for name in ("a", "b"):
        (mounted.target / name).touch()
    with fails(errno.EINVAL):
        renameat2(mounted.target / "a", mounted.target / "b", 2)
    os.rename(mounted.target / "a", mounted.target / "A")
    assert sorted(os.listdir(mounted.target)) == ["A", "b"]


def test_a_folder_is_read_while_it_is_emptied(mount: Mounts) -> None:
    mounted = mount(lambda top: [(top / f"f{number}").touch() for number in range(500)])
    seen = set()
    with os.scandir(mounted.target) as entries:
        for entry in entries:
            seen.add(entry.name)
            os.unlink(entry)
            (mounted.target / f"new-{len(seen) % 7}").touch()
            if len(seen) > 2000:
                break
    assert {f"f{number}" for number in range(500)} <= seen
    assert all(name.startswith("new-") for name in os.listdir(mounted.target))
    saved(mounted)


def test_a_folder_of_many_files(mount: Mounts) -> None:
    mounted = mount()
    top = mounted.target / "many"
    top.mkdir()
    for number in range(3000):
        os.close(os.open(top / f"f{number}", os.O_CREAT | os.O_WRONLY))
    assert len(os.listdir(top)) == 3000
    for number in range(0, 3000, 2):
        (top / f"f{number}").unlink()
    for number in range(1, 3000, 2):
        os.rename(top / f"f{number}", top / f"g{number}")
    assert sorted(os.listdir(top)) == sorted(f"g{number}" for number in range(1, 3000, 2))
    saved(mounted)


def test_folders_that_are_forgotten(mount: Mounts) -> None:
    """More is known than may be: what is changed is known all the same."""
    mounted = mount(lambda top: small_files(top, 20, 20), entries=100)
    top = mounted.target
    expected = facts(top)
    for folder in range(20):
        os.rename(top / f"d{folder}", top / f"e{folder}")
        (top / f"e{folder}/new").write_bytes(b"%d" % folder)
        (top / f"e{folder}/f4").unlink()
    now = facts(top)
    assert len(now) == len(expected)
    assert now["e7/new"][-1] == b"7"
    assert now["e7/in/hard"] == expected["d7/in/hard"]
    saved(mounted)


# --- owners --------------------------------------------------------------------------------------------------------
def test_owners_as_on_the_medium(mount: Mounts) -> None:
    mounted = mount(lambda top: top.chmod(0o777))
    subprocess.run(["touch", mounted.target / "theirs"], user=65534, group=65534, check=True)
    assert (mounted.target / "theirs").stat().st_uid == 65534
    assert subprocess.run(["chown", "0", mounted.target / "theirs"], user=65534, check=False).returncode
    saved(mounted)


def test_a_mount_that_is_all_its_owners(mount: Mounts) -> None:
    def fill(top: Path) -> None:
        (top / "roots").write_bytes(b"of somebody else's")
        (top / "roots").chmod(0o600)

    mounted = mount(fill, owner=(65534, 65534))
    top = mounted.target
    run = {"user": 65534, "group": 65534, "check": True}
    subprocess.run(["cp", "-p", "/etc/hostname", top / "mine"], **run)
    subprocess.run(["sh", "-c", f"echo more >>{top}/roots && chmod 0640 {top}/roots && mkdir {top}/d"], **run)
    subprocess.run(["chown", "65534:65534", top / "roots"], **run)
    assert subprocess.run(["chown", "1000", top / "mine"], user=65534, check=False).returncode
    mounted.sync()
    tree = mounted.tree
    assert [(tree / name).stat().st_uid for name in ("mine", "d", "roots")] == [65534, 65534, 0]
    assert stat.S_IMODE((tree / "roots").stat().st_mode) == 0o640
    assert (top / "roots").stat().st_uid == 65534
    mounted.unmount()


# --- when things go wrong ------------------------------------------------------------------------------------------
def test_no_room(mount: Mounts) -> None:
    mounted = mount(control={"room": 1 << 20, "said_room": 1 << 20})
    with fails(errno.ENOSPC), open(mounted.target / "large", "wb", buffering=0) as file:
        for _ in range(20):
            file.write(bytes(1 << 17))
    assert (mounted.target / "large").stat().st_size == 1 << 20
    saved(mounted)


def test_room_that_was_promised_and_is_not_there(mount: Mounts) -> None:
    """What is refused later is told once to whoever has the file open, and to the mount's owner; the rest is there."""
    mounted = mount(control={"room": 1 << 20})
    top = mounted.target
    other = os.open(top / "other", os.O_CREAT | os.O_RDWR)
    files = [os.open(top / "large", os.O_CREAT | os.O_WRONLY) for _ in range(2)]
    os.write(files[0], bytes(1 << 20))
    os.pwrite(files[0], bytes(1 << 17), 1 << 20)
    for fd in files:
        with fails(errno.ENOSPC):
            os.fsync(fd)
        os.fsync(fd)
        os.close(fd)
    os.write(other, b"here")
    os.fsync(other)
    os.close(other)
    assert (top / "large").stat().st_size == 1 << 20
    assert (top / "large").read_bytes() == bytes(1 << 20)
    with fails(errno.EIO):
        mounted.sync()
    mounted.sync()
    wait_for(lambda: bool(mounted.unsaved))
    assert [each.names for each in mounted.unsaved] == [("large",)]
    mounted.unmount()
    assert (mounted.tree / "other").read_bytes() == b"here"


def test_names_that_are_refused_later(mount: Mounts) -> None:
    """What never came to be is not shown any more, and what was not removed is shown again."""
    mounted = mount(lambda top: (top / "stays").write_bytes(b"there"), control={"refused": ["never", "stays"]})
    top = mounted.target
    (top / "first").touch()
    fd = os.open(top / "never", os.O_CREAT | os.O_WRONLY)
    with suppress(OSError):  # it is known already
        os.write(fd, b"x")
    (top / "stays").unlink()
    with fails(errno.EPERM):
        os.fsync(fd)
    os.close(fd)
    wait_for(lambda: sorted(os.listdir(top)) == ["first", "stays"])
    assert (top / "stays").read_bytes() == b"there"
    assert not (top / "never").exists()
    mounted.control(refused=[])
    (top / "never").write_bytes(b"now")
    (top / "stays").unlink()
    assert (top / "never").read_bytes() == b"now"
    wait_for(lambda: bool(mounted.unsaved))
    assert {name for each in mounted.unsaved for name in each.names} == {"never", "stays"}
    with fails(errno.EIO):
        mounted.sync()
    mounted.unmount()
    assert sorted(os.listdir(mounted.tree)) == ["first", "never"]


def test_a_sync_that_fails_is_told_once_to_each(mount: Mounts) -> None:
    mounted = mount()
    files = [os.open(mounted.target / f"{number}", os.O_CREAT | os.O_RDWR) for number in range(3)]
    mounted.control(fails_sync=True)
    os.write(files[0], b"lost")
    with fails(errno.EIO):
        os.fsync(files[0])
    os.fsync(files[0])
    with fails(errno.EIO):
        os.close(files[1])
    with fails(errno.EIO):
        os.fsync(files[2])
    os.close(files[2])
    os.close(files[0])
    with fails(errno.EIO):
        mounted.sync()
    mounted.sync()
    assert len(mounted.unsaved) == 1
    assert mounted.unsaved[0].count >= 1
    mounted.unmount()


@pytest.mark.parametrize("seed", range(4))
def test_machines_that_die(mount: Mounts, tmp_path: Path, seed: int) -> None:
    """Every few changes, and in the repeating too: programs notice nothing, and the tree is the same."""
    source = small_files(tmp_path / "source", 3, 6)
    mounted = mount(control={"keeps": True, "seed": seed, "dies": 20 + seed})
    chance = random.Random(seed)
    top = mounted.target

    def again() -> None:
        mounted.control(dies=chance.randrange(1, 60))

    subprocess.run(["cp", "-a", source, top / "a"], check=True)
    again()
    with open(top / "open", "w+b", buffering=0) as file:
        for number in range(30):
            file.write(b"%04d" % number)
            if number == 10:
                os.rename(top / "open", top / "renamed")
                again()
        assert os.pread(file.fileno(), 4, 40) == b"0010"
    os.rename(top / "a", top / "b")
    again()
    subprocess.run(["cp", "-a", source, top / "a"], check=True)
    for number in range(5):
        os.rename(top / f"a/d0/f{number}", top / f"b/d1/f{number}")
        (top / f"a/d0/f{number}").write_bytes(b"in the place of one that was moved")
        again()
    renameat2(top / "a", top / "b", 2)
    again()
    subprocess.run(["rm", "-rf", top / "b/d1"], check=True)
    os.link(top / "renamed", top / "linked")
    (top / "renamed").unlink()
    expected = facts(top)
    mounted.sync()
    assert facts(mounted.tree) == expected
    mounted.control(dies=0)
    saved(mounted)
    assert mounted.writers > 2
    assert (mounted.tree / "linked").read_bytes() == b"".join(b"%04d" % number for number in range(30))


def test_a_file_without_a_name_goes_with_its_machine(mount: Mounts) -> None:
    mounted = mount(lambda top: (top / "file").write_bytes(b"x"), control={"keeps": True})
    with open(mounted.target / "file", "r+b", buffering=0) as file:
        (mounted.target / "file").unlink()
        mounted.sync()
        mounted.control(dies=1)
        (mounted.target / "other").touch()
        with fails(errno.EIO):
            file.write(b"y")
    assert "is gone with the virtual machine" in mounted.words()
    saved(mounted)
