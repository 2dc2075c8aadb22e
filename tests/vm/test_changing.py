"""Each type that is written to: all that may be asked is done, and afterwards its own tools find it as it should be."""

import errno
import os
import re
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from images import hfsplus
from mountsafe import trios, wire
from mountsafe.appliance.client import GuestRefused
from mountsafe.changes import Act, Flag
from mountsafe.system import zones
from tests.conftest import missing
from tests.vm.changed import OWNER, Changer, guest, reader
from tests.vm.recorder import SIZE, WRITTEN, recorder

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


def in_vm(image: Path, work: Callable[[Changer], Awaitable[None]]) -> None:
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
    [file, above] = await vm.change(Act.CREATE, b"d/file", handle=1)
    assert (file.name, file.size, above.name) == (b"file", 0, b"d")
    assert (await vm.write(1, b"tail", 7)).size == 11
    assert (await vm.write(1, b"head")).size == 11
    assert await vm.read(1) == b"head\0\0\0tail"
    [moved, new, old] = await vm.change(Act.RENAME, b"d/file", other=b"d/e/moved")
    assert (moved.name, moved.size, new.name, old.name) == (b"moved", 11, b"e", b"d")
    assert await vm.read(1, 4, 7) == b"tail"
    await vm.sync()
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
    await vm.change(Act.OPEN, b"kept", handle=3)
    [told] = await vm.change(Act.SETATTR, handle=3, flags=Flag.SET_SIZE, size=10)
    assert told.size == 10
    [told] = await vm.change(Act.SETATTR, handle=3, flags=Flag.SET_SIZE, size=4)
    assert (told.size, told.name) == (4, b"kept")
    [told, _] = await vm.change(Act.SETATTR, b"kept", flags=Flag.SET_MTIME | Flag.SET_ATIME, **times)
    assert 0 <= times["mtime"] - told.mtime < kind.step
    [same] = await vm.change(Act.SETATTR, handle=3, flags=Flag.SET_ATIME, atime=WHEN + 86_400 * NS)
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
    await vm.refused(errno.EEXIST, Act.CREATE, b"kept", handle=5)
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


# --- what a type cannot hold -----------------------------------------------------------------------------------------
def test_what_fat_cannot_hold(tmp_path: Path) -> None:
    image = made("vfat", tmp_path)

    async def work(vm: Changer) -> None:
        await vm.mount("vfat")
        for name in (b"a:b", b"what?", b"star*", b"bar|", b"<x>"):
            await vm.refused(errno.EINVAL, Act.CREATE, name, handle=1)
        await vm.put(b"Abc", b"1")
        await vm.refused(errno.EEXIST, Act.CREATE, b"aBC", handle=1)
        await vm.change(Act.OPEN, b"Abc", handle=1)
        with pytest.raises(GuestRefused) as refused:
            await vm.write(1, b"x", 1 << 32)
        assert refused.value.errno == errno.EFBIG
        await vm.refused(errno.EFBIG, Act.SETATTR, b"Abc", flags=Flag.SET_SIZE, size=5 << 30)
        assert (await vm.listed())[b"Abc"].size == 1
        await vm.refused(errno.EPERM, Act.SETATTR, b"Abc", flags=Flag.SET_UID, uid=1000)
        await vm.unmount()

    in_vm(image, work)
    check("vfat", image)


@pytest.mark.parametrize("name", ["ext4", "vfat", "exfat"])
def test_a_medium_that_is_full_says_so_where_it_is_written_to(name: str, tmp_path: Path) -> None:
    image = made(name, tmp_path, 40 * MIB)
    data = os.urandom(MIB)

    async def work(vm: Changer) -> None:
        await vm.mount(name)
        await vm.put(b"first", data)
        await vm.change(Act.CREATE, b"large", handle=1)
        written, refused = 0, None
        while refused is None:
            try:
                await vm.write(1, data, written * MIB)
                written += 1
            except GuestRefused as error:
                refused = error
        assert refused.errno == errno.ENOSPC
        assert written > 8
        await vm.sync()
        await vm.change(Act.SETATTR, handle=1, flags=Flag.SET_SIZE, size=MIB)
        await vm.put(b"second", data)
        assert await vm.content(b"large", MIB) == data
        await vm.unmount()

    in_vm(image, work)
    check(name, image)


# --- what is not written to ------------------------------------------------------------------------------------------
def refusal(image: Path, fstype: str, *options: str) -> str:
    """Return why an image is not mounted to be changed, which leaves it as it was."""
    before, words = image.read_bytes(), []

    async def work(vm: Changer) -> None:
        with pytest.raises(GuestRefused) as refused:
            await vm.mount(fstype, options=options)
        assert refused.value.errno == errno.EROFS
        words.append(refused.value.words)

    in_vm(image, work)
    assert image.read_bytes() == before
    return words[0]


def test_an_ntfs_that_windows_has_not_closed(tmp_path: Path) -> None:
    image = made("ntfs", tmp_path)
    data = bytearray(image.read_bytes())
    sector, clusters, table = struct.unpack_from("<HB34xQ", data, 0x0B)
    record = table * sector * clusters + 3 * 1024
    at = record + struct.unpack_from("<H", data, record + 0x14)[0]
    while struct.unpack_from("<I", data, at)[0] != 0x70:
        at += struct.unpack_from("<I", data, at + 4)[0]
    data[at + struct.unpack_from("<H", data, at + 0x14)[0] + 10] |= 1
    image.write_bytes(data)
    assert "chkdsk /f" in refusal(image, "ntfs")


def test_an_hfsplus_with_a_journal_or_not_closed(tmp_path: Path) -> None:
    image = made("hfsplus", tmp_path)
    clean = image.read_bytes()
    for bits, words in ((0x2100, "has a journal"), (0, "not left clean")):
        image.write_bytes(clean[:1028] + struct.pack(">I", bits) + clean[1032:])
        assert words in refusal(image, "hfsplus")


def test_a_disc(image: Callable[[str], Path], tmp_path: Path) -> None:
    disc = tmp_path / "disc.iso"
    shutil.copy(image("iso9660"), disc)
    assert "nothing here writes iso9660" in refusal(disc, "iso9660")


def test_what_is_cut_damaged_or_asked_for_otherwise(tmp_path: Path) -> None:
    image = made("ext4", tmp_path)
    assert "mount option noload" in refusal(image, "ext4", "noload")
    os.truncate(image, 48 * MIB)
    assert "end is missing" in refusal(image, "ext4")
    image = made("vfat", tmp_path)
    data = bytearray(image.read_bytes())
    reserved = struct.unpack_from("<H", data, 0x0E)[0] * 512
    data[reserved : reserved + 512] = bytes(512)
    image.write_bytes(data)
    assert "damaged" in refusal(image, "vfat")


# --- whose power is cut ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "state"),
    [
        *((name, wire.MountState.RECOVERED) for name in ("ext3", "ext4", "xfs")),
        *((name, wire.MountState.REPAIRED) for name in ("ext2", "vfat", "exfat")),
        # Their drivers do not say what they did.
        *((name, None) for name in ("btrfs", "f2fs", "ntfs", "udf")),
    ],
)
def test_what_was_synchronised_is_there_after_the_power_is_cut(name: str, state: int | None, tmp_path: Path) -> None:
    image = made(name, tmp_path)

    async def cut(vm: Changer) -> None:
        await vm.mount(name)
        await vm.change(Act.MKDIR, b"d", mode=0o755)
        await vm.put(b"d/kept", BIG)
        await vm.sync()
        await vm.change(Act.CREATE, b"d/file", handle=1)
        await vm.write(1, b"file")
        await vm.sync()
        for number in range(50):
            await vm.put(b"d/%d" % number, b"x" * 5000)
        await vm.kill()

    in_vm(image, cut)

    async def again(vm: Changer) -> None:
        assert state in (None, (await vm.mount(name)).state)
        assert await vm.content(b"d/kept", len(BIG)) == BIG
        assert await vm.content(b"d/file", 4) == b"file"
        await vm.put(b"after", b"after")
        await vm.unmount()

    in_vm(image, again)
    check(name, image)

    async def clean(vm: Changer) -> None:
        assert (await vm.mount(name)).state == wire.MountState.CLEAN
        assert await vm.content(b"after", 5) == b"after"
        await vm.unmount()

    in_vm(image, clean)


def test_an_hfsplus_whose_power_was_cut_is_left_to_its_maker(tmp_path: Path) -> None:
    image = made("hfsplus", tmp_path)

    async def cut(vm: Changer) -> None:
        await vm.mount("hfsplus")
        await vm.put(b"file", b"file")
        await vm.sync()
        await vm.kill()

    in_vm(image, cut)
    assert "not left clean" in refusal(image, "hfsplus")


Logged = tuple[int, bytes, dict[str, object]]
WORK: tuple[Logged, ...] = (
    (Act.MKDIR, b"d", {"mode": 0o755}),
    (Act.CREATE, b"d/new", {"handle": 1}),
    (Act.RENAME, b"log", {"other": b"log.1"}),
    (Act.UNLINK, b"target", {}),
    (Act.RENAME, b"source", {"other": b"moved"}),
    (Act.LINK, b"d/hard", {"other": b"d/new"}),
    (Act.SYMLINK, b"d/soft", {"other": b"new"}),
    (Act.SETATTR, b"d/new", {"flags": Flag.SET_MODE, "mode": 0o600}),
    (Act.CREATE, b"d/gone", {"handle": 3}),
    (Act.UNLINK, b"d/gone", {}),
    (Act.SETXATTR, b"d/new", {"other": b"user.x", "value": b"1"}),
    (Act.REMOVEXATTR, b"d/new", {"other": b"user.x"}),
)


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("synchronised", [0, 6, len(WORK)])
def test_changes_that_are_sent_again_make_the_same_tree(name: str, synchronised: int, tmp_path: Path) -> None:
    """To another virtual machine, after the first has died: whatever of them the medium has."""
    image = made(name, tmp_path)
    trees = []

    async def first(vm: Changer) -> None:
        await vm.mount(name)
        for each in (b"log", b"source", b"target"):
            await vm.put(each, each)
        await vm.sync()
        for number, (act, path, fields) in enumerate(WORK):
            await vm.change(act, path, **fields)
            if "handle" in fields:
                await vm.write(int(str(fields["handle"])), path)
            if number + 1 == synchronised:
                await vm.sync()
        trees.append(await vm.tree())
        await vm.kill()

    in_vm(image, first)

    async def second(vm: Changer) -> None:
        await vm.mount(name)
        for act, path, fields in WORK:
            flags = int(str(fields.get("flags", 0))) | Flag.AGAIN
            await vm.change(act, path, **{**fields, "flags": flags})
            if "handle" in fields:
                await vm.write(int(str(fields["handle"])), path)
        trees.append(await vm.tree())
        await vm.unmount()

    in_vm(image, second)
    assert trees[0] == trees[1]
    assert b"target" not in trees[0]
    assert trees[0][b"moved"] == b"source"
    assert trees[0][b"log.1"] == b"log"
    check(name, image)


# --- times -----------------------------------------------------------------------------------------------------------
def test_fat_keeps_what_a_clock_on_the_wall_shows(tmp_path: Path, program: Callable[[str], str]) -> None:
    image, berlin = made("vfat", tmp_path), zones.rules_of("Europe/Berlin")
    summer, winter = 1_719_828_000, 1_704_103_200  # 2024-07-01 10:00 and 2024-01-01 10:00, UTC

    async def work(vm: Changer) -> None:
        await vm.mount("vfat", zone=berlin)
        began = time.time()
        for name, when in ((b"SUMMER", summer), (b"WINTER", winter)):
            await vm.put(name, b"")
            [told, _] = await vm.change(Act.SETATTR, name, flags=Flag.SET_MTIME, mtime=when * NS)
            assert told.mtime == when * NS
        await vm.put(b"NOW", b"now")
        assert began - 2 <= (await vm.listed())[b"NOW"].mtime / NS <= time.time() + 2
        await vm.unmount()

    in_vm(image, work)
    shown = subprocess.run([program("mdir"), "-i", image, "::"], check=True, capture_output=True, text=True).stdout
    assert re.search(r"SUMMER .*2024-07-01 +12:00", shown), shown
    assert re.search(r"WINTER .*2024-01-01 +11:00", shown), shown


def test_exfat_keeps_times_and_sizes_that_its_driver_does_not_know(tmp_path: Path) -> None:
    """Of files that a recorder has made: local times, and bytes that were not written."""
    image, berlin = recorder(tmp_path), zones.rules_of("Europe/Berlin")
    noon = 1_719_828_000 * NS  # on a clock in Berlin
    there: dict[bytes, wire.Entry] = {}

    async def work(vm: Changer) -> None:
        await vm.mount("exfat", zone=berlin)
        there.update(await vm.listed())
        assert (there[b"part.mp4"].size, there[b"part.mp4"].mtime) == (SIZE, noon)
        [renamed, *_] = await vm.change(Act.RENAME, b"part.mp4", other=b"renamed.mp4")
        assert (renamed.size, renamed.mtime) == (SIZE, noon)
        await vm.change(Act.OPEN, b"renamed.mp4", handle=1)
        [told, folder] = await vm.change(Act.CREATE, b"folder/new", handle=2)
        assert abs(folder.mtime / NS - time.time()) < 60
        [told, _] = await vm.change(Act.SETATTR, b"folder/inner.mp4", flags=Flag.SET_ATIME, atime=noon)
        assert (told.size, told.mtime) == (SIZE, noon)
        assert (await vm.write(1, b"W", SIZE)).size == SIZE + 1
        assert (await vm.content(b"renamed.mp4", SIZE + 1)) == b"R" * WRITTEN + bytes(SIZE - WRITTEN) + b"W"
        assert (await vm.listed())[b"renamed.mp4"].size == SIZE + 1
        await vm.unmount()

    in_vm(image, work)
    check("exfat", image)

    async def look() -> None:
        async with reader(image, "exfat", berlin) as vm:
            found, inner = await vm.listed(), await vm.listed(b"folder")
            assert found[b"away.mp4"] == there[b"away.mp4"]
            assert (inner[b"inner.mp4"].size, inner[b"inner.mp4"].mtime) == (SIZE, noon)
            whole = b"R" * WRITTEN + bytes(SIZE - WRITTEN) + b"W"
            assert await vm.content(b"renamed.mp4", SIZE + 1) == whole
            assert await vm.content(b"folder/inner.mp4", SIZE) == bytes(SIZE)

    trios.run(look)


# --- a disk that fails -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["ext4", "vfat"])
def test_a_disk_that_cannot_be_written_to_is_told_of(name: str, tmp_path: Path) -> None:
    image, broken = made(name, tmp_path), tmp_path / "broken"
    said: list[str] = []

    async def main() -> None:
        async with guest(image, broken) as vm:
            await vm.mount(name)
            await vm.put(b"before", b"before")
            await vm.sync()
            broken.touch()
            with suppress(GuestRefused):  # a driver that has noticed is read-only at once
                await vm.put(b"lost", BIG)
            for kind in (wire.Kind.SYNC, wire.Kind.SYNC, wire.Kind.UNMOUNT):
                with pytest.raises(GuestRefused) as refused:
                    await vm.ask(kind)
                assert refused.value.errno in (errno.EIO, errno.EROFS)
                said.append(refused.value.words)

    trios.run(main)
    assert len(said) == 3
