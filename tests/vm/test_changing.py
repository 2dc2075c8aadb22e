"""Each type that is written to: all that may be asked is done, and afterwards its own tools find it as it should be."""

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from images import hfsplus
from mountsafe import trios, wire
from mountsafe.appliance.client import GuestRefused
from mountsafe.changes import NOW, Act, Flag
from mountsafe.system import zones
from tests.conftest import missing
from tests.vm.changed import OWNER, Changer, guest, reader
from tests.vm.sight import Looking

pytestmark = pytest.mark.usefixtures("looking")  # which builds the appliance

MIB = 1 << 20
NS = 10**9
BIG = bytes(range(256)) * (5 * MIB // 256) + b"end"
WHEN = 1_600_000_000 * NS


@dataclass(frozen=True)
class Kind:
    """A type of file system: how one is made, and what it can. `check`: the command that finds nothing wrong."""

    make: tuple[str, ...]
    check: tuple[str, ...]
    size: int = 64 * MIB
    owners: bool = True
    links: bool = True
    hard_links: bool = True
    attributes: bool = True
    step: int = 1  # of a file's times, in ns
    driver: str = ""


KINDS: dict[str, Kind] = {
    "ext2": Kind(("mkfs.ext2", "-q", "-F"), ("e2fsck", "-f", "-n"), step=NS),
    "ext3": Kind(("mkfs.ext3", "-q", "-F"), ("e2fsck", "-f", "-n"), step=NS),
    "ext4": Kind(("mkfs.ext4", "-q", "-F"), ("e2fsck", "-f", "-n")),
    "vfat": Kind(("mkfs.vfat", "-F", "32"), ("fsck.fat", "-n"), 64 * MIB, False, False, False, False, 2 * NS),
    "exfat": Kind(("mkfs.exfat",), ("fsck.exfat", "-n"), 64 * MIB, False, False, False, False, 2 * NS),
    "ntfs": Kind(("mkfs.ntfs", "-q", "-F", "-f"), ("ntfsfix", "-n"), owners=False, step=100, driver="ntfs-3g"),
    "xfs": Kind(("mkfs.xfs", "-q", "-f"), ("xfs_repair", "-n"), 320 * MIB),
    "btrfs": Kind(("mkfs.btrfs", "-q", "-f"), ("btrfs", "check"), 128 * MIB),
    "f2fs": Kind(("mkfs.f2fs", "-q", "-f"), ("fsck.f2fs", "--dry-run"), 128 * MIB),
    "hfsplus": Kind((), (), 64 * MIB, step=NS),
    "udf": Kind(("mkudffs", "--utf8", "--blocksize=2048"), (), 64 * MIB, attributes=False, step=1000),
}


def made(name: str, folder: Path, size: int = 0) -> Path:
    """Return a new image."""
    kind, image = KINDS[name], folder / f"{name}.img"
    if name == "hfsplus":
        image.write_bytes(hfsplus.volume(kind.size, "TEST", b"12345678", WHEN // NS))
        return image
    if shutil.which(kind.make[0]) is None:
        missing(kind.make[0])
    with image.open("wb") as file:
        file.truncate(size or kind.size)
    subprocess.run([*kind.make, str(image)], check=True, capture_output=True)
    return image


def check(name: str, image: Path) -> None:
    """Have the type's own checker find nothing."""
    command = KINDS[name].check
    if command:
        done = subprocess.run([*command, str(image)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def in_vm(image: Path, work: Callable[[Changer], "trio.abc.Awaitable[None]"]) -> None:
    """Work in a virtual machine that may change an image."""

    async def main() -> None:
        async with guest(image) as vm:
            await work(vm)

    trios.run(main)


# --- everything ------------------------------------------------------------------------------------------------------
async def everything(vm: Changer, kind: Kind) -> dict[bytes, object]:
    """Ask for every change; return what is there then."""
    await names(vm)
    expected: dict[bytes, object] = {
        b"d": "folder",
        b"d/big": BIG,
        b"d/e": "folder",
        b"d/e/moved": b"head\0\0\0tail",
        "d/Größe und Länge €".encode(): b"utf-8",
        b"kept": b"kept",
        b"replaced": b"new",
    }
    if kind.links:
        [link, _] = await vm.change(Act.SYMLINK, b"d/link", other=b"e/moved")
        assert (link.target, stat.S_ISLNK(link.mode)) == (b"e/moved", True)
        [pipe, _] = await vm.change(Act.MKNOD, b"pipe", mode=stat.S_IFIFO | 0o600)
        assert stat.S_ISFIFO(pipe.mode)
        expected |= {b"d/link": b"e/moved", b"pipe": "special"}
    else:
        await vm.refused(errno.EPERM, Act.SYMLINK, b"d/link", other=b"e/moved")
    if kind.hard_links:
        expected |= await hard_links(vm)
    else:
        await vm.refused(errno.EPERM, Act.LINK, b"again", other=b"kept")
    await attributes(vm, kind)
    await refusals(vm)
    return expected


async def names(vm: Changer) -> None:
    [folder, root] = await vm.change(Act.MKDIR, b"d", mode=0o750)
    assert (folder.name, stat.S_ISDIR(folder.mode), root.name) == (b"d", True, b"")
    await vm.change(Act.MKDIR, b"d/e", mode=0o755)
    [file, above] = await vm.change(Act.CREATE, b"d/file", handle=1, flags=Flag.EXCLUSIVE)
    assert (file.name, file.size, above.name) == (b"file", 0, b"d")
    assert (await vm.write(1, b"tail", 7)).size == 11
    assert (await vm.write(1, b"head")).size == 11
    assert await vm.read(1) == b"head\0\0\0tail"
    [moved, new, old] = await vm.change(Act.RENAME, b"d/file", other=b"d/e/moved")
    assert (moved.name, moved.size, new.name, old.name) == (b"moved", 11, b"e", b"d")
    assert await vm.read(1, 4, 7) == b"tail"
    await vm.sync(1)
    await vm.change(Act.CLOSE, handle=1)
    await vm.put(b"d/big", BIG)
    await vm.put("d/Größe und Länge €".encode(), b"utf-8")
    for name in (b"kept", b"old", b"gone"):
        await vm.put(name, name)
    await vm.put(b"new", b"new")
    await vm.put(b"replaced", b"what is replaced")
    await vm.change(Act.RENAME, b"new", other=b"replaced")
    await vm.change(Act.MKDIR, b"empty", mode=0o755)
    [gone, _] = await vm.change(Act.RMDIR, b"empty")
    assert gone.mode == 0
    for name in (b"old", b"gone"):
        [gone, _] = await vm.change(Act.UNLINK, name)
        assert (gone.name, gone.mode) == (name, 0)
    assert set(await vm.listed()) >= {b"d", b"kept", b"replaced"}


async def hard_links(vm: Changer) -> dict[bytes, object]:
    [before, _] = await vm.change(Act.OPEN, b"kept", handle=2)
    [linked, _] = await vm.change(Act.LINK, b"d/again", other=b"kept")
    assert (linked.name, linked.nlink, linked.ino) == (b"again", 2, before.ino)
    await vm.change(Act.LINK, b"third", other=b"kept")
    [left, _] = await vm.change(Act.UNLINK, b"third")
    assert (left.nlink, left.ino) == (2, before.ino)
    await vm.change(Act.CLOSE, handle=2)
    return {b"d/again": b"kept"}


async def attributes(vm: Changer, kind: Kind) -> None:
    times = {"atime": WHEN, "mtime": WHEN + 2 * NS + 2_200_000_000}
    await vm.change(Act.OPEN, b"kept", handle=3, flags=Flag.WRITE)
    [told] = await vm.change(Act.SETATTR, handle=3, flags=Flag.SET_SIZE, size=10)
    assert told.size == 10
    [told] = await vm.change(Act.SETATTR, handle=3, flags=Flag.SET_SIZE, size=4)
    assert (told.size, told.name) == (4, b"kept")
    [told, _] = await vm.change(Act.SETATTR, b"kept", flags=Flag.SET_MTIME | Flag.SET_ATIME, **times)
    assert 0 <= times["mtime"] - told.mtime < kind.step
    [same] = await vm.change(Act.SETATTR, handle=3, flags=Flag.SET_ATIME, atime=NOW)
    assert same.mtime == told.mtime
    assert same.atime > WHEN or kind.step > NS
    if kind.owners:
        flags = Flag.SET_UID | Flag.SET_GID | Flag.SET_MODE
        [told, _] = await vm.change(Act.SETATTR, b"kept", flags=flags, uid=7, gid=8, mode=0o4751)
        assert (told.uid, told.gid, stat.S_IMODE(told.mode)) == (7, 8, 0o4751)
        [made, _] = [(await vm.listed())[b"replaced"], 0]
        assert (made.uid, made.gid, stat.S_IMODE(made.mode)) == (*OWNER, 0o640)
    await vm.change(Act.CLOSE, handle=3)
    if kind.attributes:
        await vm.change(Act.SETXATTR, b"kept", other=b"user.a", value=b"value")
        await vm.change(Act.SETXATTR, b"kept", other=b"user.b", value=b"b")
        await vm.change(Act.REMOVEXATTR, b"kept", other=b"user.b")
        await vm.refused(errno.ENODATA, Act.REMOVEXATTR, b"kept", other=b"user.b")
    else:
        await vm.refused(errno.EOPNOTSUPP, Act.SETXATTR, b"kept", other=b"user.a", value=b"value")
    told_now, listed = (await vm.change(Act.OPEN, b"kept", handle=4))[0], (await vm.listed())[b"kept"]
    assert told_now._replace(atime=0) == listed._replace(atime=0)
    await vm.change(Act.CLOSE, handle=4)


async def refusals(vm: Changer) -> None:
    await vm.refused(errno.EEXIST, Act.MKDIR, b"d")
    await vm.refused(errno.EEXIST, Act.CREATE, b"kept", handle=5, flags=Flag.EXCLUSIVE)
    await vm.refused(errno.EEXIST, Act.RENAME, b"kept", other=b"replaced", flags=Flag.NOREPLACE)
    await vm.refused(errno.ENOTEMPTY, Act.RMDIR, b"d")
    await vm.refused(errno.ENOENT, Act.UNLINK, b"not there")
    await vm.refused(errno.ENOENT, Act.RENAME, b"not there", other=b"x")
    await vm.refused(errno.ENAMETOOLONG, Act.MKDIR, b"n" * 256)
    await vm.refused(errno.EISDIR, Act.UNLINK, b"d")
    await vm.change(Act.MKDIR, b"d", flags=Flag.AGAIN)
    await vm.change(Act.UNLINK, b"not there", flags=Flag.AGAIN)


@pytest.mark.parametrize("name", KINDS)
def test_everything_that_can_be_asked(name: str, tmp_path: Path) -> None:
    kind, image = KINDS[name], made(name, tmp_path)
    expected: dict[bytes, object] = {}

    async def work(vm: Changer) -> None:
        mounted = await vm.mount(name)
        assert mounted == mounted._replace(fstype=(kind.driver or name).encode(), state=wire.MountState.CLEAN)
        expected.update(await everything(vm, kind))
        found = await vm.tree()
        assert {path: found.get(path) for path in expected} == expected
        await vm.sync()
        await vm.unmount()
        with pytest.raises(GuestRefused, match="unmounted"):
            await vm.listed()

    in_vm(image, work)
    check(name, image)

    async def look() -> None:
        async with reader(image, name) as vm:
            found = await vm.tree()
            assert {path: found.get(path) for path in expected} == expected
            if kind.attributes:
                pairs = wire.unpack_xattrs(await vm.ask(wire.Kind.XATTRS, b"kept"))
                assert (b"user.a", b"value") in pairs
            with pytest.raises(GuestRefused, match="mounted to be read"):
                await vm.change(Act.MKDIR, b"never")

    trios.run(look)
