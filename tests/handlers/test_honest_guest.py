"""The real agent over a folder of the host: everything that a kernel can ask comes out as it is in the folder."""

import errno
import os
import stat
from pathlib import Path

import pytest

from mountsafe.filesystem.index import ROOT
from mountsafe.filesystem.operations import View
from mountsafe.medium.extents import Window
from tests.guest import FolderWorker, Layout
from tests.handlers.opened import fails, opened

CONTENT = bytes(range(1, 256)) * 100


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    top = tmp_path / "tree"
    (top / "folder/below").mkdir(parents=True)
    (top / "file").write_bytes(CONTENT)
    (top / "folder/below/deep").write_bytes(b"deep")
    (top / "empty").touch()
    os.link(top / "file", top / "folder/hard")
    (top / "link").symlink_to("folder/below")
    (top / "out").symlink_to("/etc/passwd")
    (top / os.fsdecode(b"caf\xe9")).write_bytes(b"latin-1")
    os.mkfifo(top / "fifo")
    (top / "setuid").touch()
    (top / "setuid").chmod(0o7711)
    return top


@pytest.fixture
def medium(tmp_path: Path, tree: Path) -> tuple[Path, Layout]:
    """A medium that holds the bytes of the tree's files, behind a partition table."""
    path = tmp_path / "medium"
    return path, Layout.store(tree, path, start=8192)


async def test_names_attributes_and_targets(tree: Path) -> None:
    async with opened(lambda: FolderWorker(tree)) as mount:
        assert sorted(await mount.names()) == sorted(os.listdir(os.fsencode(tree)))
        assert await mount.names(b"folder/below") == [b"deep"]
        for name in (b"file", b"folder", b"fifo", b"link"):
            told = await mount.operations.getattr(await mount.walk(name), None)
            real = os.lstat(os.path.join(os.fsencode(tree), name))
            assert (told.st_ino, told.st_nlink, told.st_size) == (real.st_ino, real.st_nlink, real.st_size)
            assert (told.st_mode, told.st_mtime_ns) == (real.st_mode, real.st_mtime_ns)
            assert (told.st_uid, told.st_gid, told.st_blocks) == (real.st_uid, real.st_gid, real.st_blocks)
        assert await mount.operations.readlink(await mount.walk(b"link"), None) == b"folder/below"
        assert mount.incidents.count == 0


async def test_a_name_that_is_not_there_is_an_answer_that_the_kernel_may_keep(tree: Path) -> None:
    async with opened(lambda: FolderWorker(tree)) as mount:
        missing = await mount.operations.lookup(ROOT, b"nothing", None)
        assert missing.st_ino == 0
        assert missing.entry_timeout > 0


async def test_a_name_in_a_file_is_no_folder(tree: Path) -> None:
    async with opened(lambda: FolderWorker(tree)) as mount, fails(errno.ENOTDIR):
        await mount.walk(b"file/below")


async def test_reading_through_the_agent(tree: Path) -> None:
    async with opened(lambda: FolderWorker(tree)) as mount:
        assert await mount.read(b"file") == CONTENT
        assert await mount.read(b"file", 100, 50) == CONTENT[100:150]
        assert await mount.read(b"file", len(CONTENT) - 5, 50) == CONTENT[-5:]
        assert await mount.read(b"file", len(CONTENT), 50) == b""
        assert await mount.read(b"empty") == b""
        assert await mount.read(b"folder/below/deep") == b"deep"
        assert await mount.read(b"caf\xe9") == b"latin-1"


async def test_reading_from_the_medium(tree: Path, medium: tuple[Path, Layout]) -> None:
    path, layout = medium
    window = Window(8192, layout.size)
    async with opened(lambda: FolderWorker(tree, layout=layout), path, window) as mount:
        assert await mount.read(b"file") == CONTENT
        assert await mount.read(b"folder/hard", 5000, 9000) == CONTENT[5000:14000]
        assert mount.reader.direct
        assert await mount.read(b"folder/below/deep") == b"deep"
        await mount.host.kill()
        assert await mount.read(b"folder/below/deep") == b"deep"  # proven and known: needs no guest
        assert len(mount.host.guests) == 1
        assert mount.incidents.count == 0


async def test_the_first_direct_read_is_proven(tree: Path, medium: tuple[Path, Layout]) -> None:
    path, layout = medium
    data = bytearray(path.read_bytes())
    data[data.index(b"deep")] ^= 1
    path.write_bytes(data)
    async with opened(lambda: FolderWorker(tree, layout=layout), path, Window(8192, layout.size)) as mount:
        assert await mount.read(b"folder/below/deep") == b"deep"
        assert not mount.reader.direct
        assert mount.incidents.count == 1
        assert await mount.read(b"file") == CONTENT


async def test_a_file_system_is_read_without_fuse(tree: Path, medium: tuple[Path, Layout]) -> None:
    path, layout = medium
    (tree / "large").write_bytes(os.urandom((2 << 20) + 5))  # which only the guest has
    for host_reads in (True, False):
        async with opened(lambda: FolderWorker(tree, layout=layout if host_reads else None), path) as mount:  # noqa: B023
            inside = mount.inside
            await inside.begun()
            await inside.learn_ahead(1000)
            assert sorted(await inside.names()) == sorted(os.listdir(os.fsencode(tree)))
            assert await inside.names(b"/folder/below/") == [b"deep"]
            for name in ("file", "folder/below/deep", "empty", "large"):
                assert b"".join([part async for part in inside.content(name.encode())]) == (tree / name).read_bytes()
            assert (await inside.node(b"link")).target == b"folder/below"
            assert (await inside.node(b"")) is inside.index.root
            for wrong, error in ((b"no", FileNotFoundError), (b"file/x", NotADirectoryError), (b"link/deep", OSError)):
                with pytest.raises(error):
                    await inside.node(wrong)
            with pytest.raises(OSError, match="no file"):
                await anext(inside.content(b"folder"))


async def test_hard_links_share_an_inode(tree: Path) -> None:
    async with opened(lambda: FolderWorker(tree)) as mount:
        assert await mount.walk(b"file") == await mount.walk(b"folder/hard")


async def test_writing_is_refused(tree: Path) -> None:
    async with opened(lambda: FolderWorker(tree)) as mount:
        inode = await mount.walk(b"file")
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND | os.O_WRONLY):
            async with fails(errno.EROFS):
                await mount.operations.open(inode, flags, None)


async def test_the_owner_of_the_mount_owns_and_reads_everything(tree: Path) -> None:
    (tree / "file").chmod(0)
    (tree / "folder").chmod(0)
    async with opened(lambda: FolderWorker(tree), view=View(1234, 5678, True)) as mount:
        told = await mount.operations.getattr(await mount.walk(b"file"), None)
        assert (told.st_uid, told.st_gid, stat.S_IMODE(told.st_mode)) == (1234, 5678, 0o400)
        assert stat.S_IMODE((await mount.operations.getattr(await mount.walk(b"folder"), None)).st_mode) == 0o500


async def test_setuid_and_its_like_are_masked(tree: Path) -> None:
    async with opened(lambda: FolderWorker(tree)) as mount:
        told = await mount.operations.getattr(await mount.walk(b"setuid"), None)
        assert stat.S_IMODE(told.st_mode) == 0o711
        assert told.st_rdev == 0


@pytest.mark.parametrize(
    ("guard", "target"), [(True, b"/.mountsafe-leads-out-of-the-mount/etc/passwd"), (False, b"/etc/passwd")]
)
async def test_a_link_that_leads_out(tree: Path, guard: bool, target: bytes) -> None:
    async with opened(lambda: FolderWorker(tree), view=View(None, None, guard)) as mount:
        assert await mount.operations.readlink(await mount.walk(b"out"), None) == target


async def test_extended_attributes_that_mean_something_to_the_host_are_not_shown(tree: Path) -> None:
    os.setxattr(tree / "file", "user.comment", b"hello")
    if os.geteuid() == 0:
        os.setxattr(tree / "file", "trusted.secret", b"x")
        os.setxattr(tree / "file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    async with opened(lambda: FolderWorker(tree)) as mount:
        inode = await mount.walk(b"file")
        assert await mount.operations.listxattr(inode, None) == [b"user.comment"]
        assert await mount.operations.getxattr(inode, b"user.comment", None) == b"hello"
        for name in (b"security.capability", b"trusted.secret", b"system.posix_acl_access"):
            async with fails(errno.EOPNOTSUPP):
                await mount.operations.getxattr(inode, name, None)
        async with fails(errno.ENODATA):
            await mount.operations.getxattr(inode, b"user.other", None)
        assert await mount.operations.listxattr(await mount.walk(b"fifo"), None) == []


async def test_statfs(tree: Path) -> None:
    real = os.statvfs(tree)
    async with opened(lambda: FolderWorker(tree)) as mount:
        told = await mount.operations.statfs(None)
        assert (told.f_bsize, told.f_blocks, told.f_namemax) == (real.f_bsize, real.f_blocks, real.f_namemax)


async def test_a_large_folder_comes_in_pages(tmp_path: Path) -> None:
    names = {b"%05d" % number for number in range(3000)}
    for name in names:
        (tmp_path / name.decode()).touch()
    async with opened(lambda: FolderWorker(tmp_path)) as mount:
        assert set(await mount.names()) == names


async def test_a_path_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    name = "n" * 200
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, b"down here")
    os.close(file)
    os.close(here)
    async with opened(lambda: FolderWorker(tmp_path)) as mount:
        path = b"/".join([name.encode()] * 30 + [b"bottom"])
        assert len(path) > 4096
        assert await mount.read(path) == b"down here"
