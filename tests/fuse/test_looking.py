"""What programs see of a mount: everything as it is on the medium, and nothing can be changed."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.conftest import Mount, Mounted, Person, Stage
from tests.guest import BLOCK, Layout

START = 1 << 20  # of the partition on the medium
CONTENT = bytes(range(1, 256)) * 8192  # 2 MiB
FAR = 5 << 30


@pytest.fixture(scope="session")
def tree(stage: Stage) -> Path:
    """A folder with one of everything, that anybody may read."""
    top = stage.folder()
    (top / "folder/below").mkdir(parents=True)
    (top / "file").write_bytes(CONTENT)
    (top / "small").write_bytes(b"small file\n")
    os.link(top / "small", top / "folder/hard")
    (top / "folder/below/deep").write_bytes(b"deep down\n")
    (top / "folder/below/up").symlink_to("../../small")
    (top / "link").symlink_to("folder/below")
    (top / "out").symlink_to("/etc/passwd")
    (top / "up").symlink_to("../..")
    (top / os.fsdecode(b"caf\xe9\n")).write_bytes(b"latin-1\n")
    (top / "setuid").touch()
    (top / "setuid").chmod(0o6755)
    os.mkfifo(top / "fifo")
    if os.geteuid() == 0:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(top / "small", "user.comment", b"hello")
    for number in range(8):
        (top / f"part{number}").write_bytes(hashlib.sha512(b"%d" % number).digest() * 4096)
    with open(top / "sparse", "wb") as file:
        file.write(b"first")
        file.seek(FAR)
        file.write(b"last")
    (top / "altered").write_bytes(b"in the folder".ljust(BLOCK, b"."))
    return top


@pytest.fixture(scope="session")
def mounted(stage: Stage, tree: Path, mount_for_all: Mount) -> Mounted:
    """The folder, mounted; its files' bytes are on a medium, in a partition. The guest says "altered" otherwise."""
    medium = tree.with_suffix(".medium")
    layout = Layout.store(tree, medium, START)
    data = medium.read_bytes()
    medium.write_bytes(data.replace(b"in the folder", b"on the medium"))
    return mount_for_all(tree, layout, medium, start=START)


@pytest.fixture
def there(mounted: Mounted) -> Callable[..., Any]:
    """A function that calls another as the one who mounted: `there(os.lstat, "name")` looks below the mount."""

    def call(function: Callable[..., Any], name: str, *arguments: Any) -> Any:
        return mounted.person.run(function, mounted.target / name, *arguments)

    return call


There = Callable[..., Any]


def test_names(there: There, tree: Path) -> None:
    assert sorted(there(os.listdir, "")) == sorted(os.listdir(tree))
    assert sorted(there(os.listdir, "folder")) == ["below", "hard"]


@pytest.mark.parametrize("name", ["", "file", "folder", "folder/below/deep", "link", "fifo", "sparse", "caf\udce9\n"])
def test_attributes(there: There, tree: Path, name: str) -> None:
    told, real = there(os.lstat, name), os.lstat(tree / name)
    assert (told.st_mode, told.st_nlink, told.st_size) == (real.st_mode, real.st_nlink, real.st_size)
    assert (told.st_uid, told.st_gid, told.st_blocks) == (real.st_uid, real.st_gid, real.st_blocks)
    assert (told.st_mtime_ns, told.st_ctime_ns) == (real.st_mtime_ns, real.st_ctime_ns)
    assert told.st_ino == (real.st_ino if name else 1)


def test_inode_numbers_are_the_same_from_every_side(there: There) -> None:
    def numbers(top: Path) -> tuple[dict[str, int], dict[str, int]]:
        listed = {each.name: each.inode() for each in os.scandir(top)}
        return listed, {name: os.lstat(top / name).st_ino for name in listed}

    listed, looked_up = there(numbers, "")
    assert listed == looked_up
    assert len(set(listed.values())) == len(listed)


def test_hard_links(there: There) -> None:
    one, other = there(os.lstat, "small"), there(os.lstat, "folder/hard")
    assert (one.st_ino, one.st_nlink) == (other.st_ino, other.st_nlink)
    assert one.st_nlink == 2


def test_content(there: There) -> None:
    assert there(Path.read_bytes, "file") == CONTENT
    assert there(Path.read_bytes, "folder/below/deep") == b"deep down\n"
    assert there(Path.read_bytes, "caf\udce9\n") == b"latin-1\n"


def test_content_comes_from_the_medium(there: There, mounted: Mounted) -> None:
    """The guest has other bytes of this file: after the first proof it is not asked."""
    assert mounted.record.mounts[0].direct_reads is True
    assert there(Path.read_bytes, "file") == CONTENT
    assert there(Path.read_bytes, "altered").startswith(b"on the medium")


def test_a_sparse_file_beyond_four_gib(there: There) -> None:
    def ends(path: Path) -> list[bytes]:
        with open(path, "rb") as file:
            return [os.pread(file.fileno(), 8, at) for at in (0, FAR - 4, FAR, FAR + 4, FAR + 5000)]

    assert there(os.stat, "sparse").st_size == FAR + 4
    assert there(ends, "sparse") == [b"first\0\0\0", b"\0\0\0\0last", b"last", b"", b""]


def test_eight_readers_at_a_time(there: There) -> None:
    def read_all(top: Path) -> list[bytes]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda number: (top / f"part{number % 8}").read_bytes(), range(32)))

    contents = there(read_all, "")
    for number, content in enumerate(contents):
        assert content == hashlib.sha512(b"%d" % (number % 8)).digest() * 4096


def test_extended_attributes(there: There) -> None:
    assert there(os.listxattr, "small") == ["user.comment"]
    assert there(os.getxattr, "small", "user.comment") == b"hello"
    for name in ("security.capability", "user.other"):
        with pytest.raises(OSError, match=r"No data|not supported"):
            there(os.getxattr, "small", name)


def test_figures(there: There, tree: Path) -> None:
    told, real = there(os.statvfs, ""), os.statvfs(tree)
    assert (told.f_frsize, told.f_blocks, told.f_namemax) == (real.f_frsize, real.f_blocks, real.f_namemax)
    assert told.f_flag & os.ST_RDONLY


def test_nothing_on_it_has_rights(there: There) -> None:
    """By the kernel's word for the mount, and by what is told of each file."""
    rights = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    assert there(os.statvfs, "").f_flag & rights == rights
    assert stat.S_IMODE(there(os.lstat, "setuid").st_mode) == 0o755


def test_a_device_on_it_is_no_device(there: There, tree: Path) -> None:
    if not (tree / "null").exists():
        pytest.skip("only root can make a device")
    assert there(os.lstat, "null").st_rdev == 0
    with pytest.raises(PermissionError):
        there(Path.read_bytes, "null")


# --- links ---------------------------------------------------------------------------------------------------------
def test_targets(there: There, mounted: Mounted) -> None:
    shown = there(os.readlink, "out")
    assert shown == ("/etc/passwd" if mounted.person.is_root else "/.mountsafe-leads-out-of-the-mount/etc/passwd")
    assert there(os.readlink, "link") == "folder/below"


@pytest.mark.parametrize("name", ["out", "up/etc/passwd", "up"])
def test_no_link_leads_out(there: There, mounted: Mounted, name: str) -> None:
    with pytest.raises(OSError) as failure:  # noqa: PT011  # the errno is looked at
        there(os.stat, name)
    assert failure.value.errno == (errno.ELOOP if mounted.person.is_root else errno.ENOENT)


def test_links_inside(there: There, mounted: Mounted) -> None:
    """Root's mounts follow no link at all; elsewhere the kernel cannot be told so."""
    for name in ("link/deep", "folder/below/up"):
        if mounted.person.is_root:
            with pytest.raises(OSError, match="symbolic"):
                there(Path.read_bytes, name)
        else:
            assert there(Path.read_bytes, name) in (b"deep down\n", b"small file\n")


# --- writing -------------------------------------------------------------------------------------------------------
WRITES: dict[str, Callable[[Path], Any]] = {
    "open": lambda top: os.open(top / "file", os.O_WRONLY),
    "truncate": lambda top: os.truncate(top / "file", 0),
    "create": lambda top: os.open(top / "new", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda top: (top / "new").mkdir(),
    "unlink": lambda top: (top / "file").unlink(),
    "rmdir": lambda top: (top / "folder/below").rmdir(),
    "rename": lambda top: (top / "file").rename(top / "new"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "symlink": lambda top: (top / "new").symlink_to("file"),
    "chmod": lambda top: (top / "file").chmod(0o777),
    "chown": lambda top: os.chown(top / "file", os.geteuid(), os.getegid()),
    "utime": lambda top: os.utime(top / "file", (0, 0)),
    "setxattr": lambda top: os.setxattr(top / "file", "user.a", b"b"),
    "removexattr": lambda top: os.removexattr(top / "small", "user.comment"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writing_is_refused(there: There, write: Callable[[Path], Any]) -> None:
    with pytest.raises(OSError) as failure:  # noqa: PT011  # the errno is looked at
        there(write, "")
    assert failure.value.errno == errno.EROFS


# --- whose it is ---------------------------------------------------------------------------------------------------
def test_the_owner_of_the_mount_owns_everything(tree: Path, mount: Mount) -> None:
    mounted = mount(tree, options={"owner": "user"})
    for name in ("", "file", "folder"):
        told = mounted.person.run(os.lstat, mounted.target / name)
        assert (told.st_uid, told.st_gid) == (mounted.person.uid, mounted.person.gid)


def test_who_else_may_look(mounted: Mounted) -> None:
    """Root mounts for everybody whom the files' modes let in; into a user's mount not even root strays."""
    if mounted.person.is_root:
        nobody = Person(65534, 65534)
        assert "file" in nobody.run(os.listdir, mounted.target)
    elif os.geteuid() == 0:
        with pytest.raises(PermissionError):
            os.listdir(mounted.target)


# --- much ----------------------------------------------------------------------------------------------------------
def test_a_folder_of_100_000_entries(stage: Stage, mount: Mount) -> None:
    top = stage.folder()
    many = os.open(top, os.O_RDONLY)
    for number in range(100_000):
        os.mknod(f"{number:05}", stat.S_IFREG | 0o644, dir_fd=many)
    os.close(many)
    mounted = mount(top)

    def count(target: Path) -> tuple[int, int, int]:
        with os.scandir(target) as listing:
            entries = {each.name: each.inode() for each in listing}
        return len(entries), len(set(entries.values())), os.lstat(target / "99999").st_ino - entries["99999"]

    assert mounted.person.run(count, mounted.target) == (100_000, 100_000, 0)


def test_a_tree_that_is_larger_than_what_is_remembered(stage: Stage, mount: Mount) -> None:
    """Folders are forgotten and learned again meanwhile: numbers stay, and so does what is in use."""
    top = stage.folder()
    for number in range(12):
        (top / f"{number:02}/inner").mkdir(parents=True)
        for name in range(300):
            (top / f"{number:02}/{name:03}").write_bytes(b"%d" % number)
    mounted = mount(top, options={"entries": 1000})

    def walk(target: Path) -> tuple[int, bool, bytes, str]:
        def look() -> dict[str, int]:
            return {
                os.path.join(folder, name): os.lstat(os.path.join(folder, name)).st_ino
                for folder, folders, files in os.walk(target)
                for name in folders + files
            }

        before = os.getcwd()
        try:
            os.chdir(target / "00/inner")
            with open(target / "00/000", "rb") as file:
                first = look()
                same = look() == first
                return len(first), same, file.read(), os.path.relpath(os.getcwd(), target)
        finally:
            os.chdir(before)

    assert mounted.person.run(walk, mounted.target) == (12 * 302, True, b"0", "00/inner")
    mounted.unmount()
    mounted.assert_nothing_left()
