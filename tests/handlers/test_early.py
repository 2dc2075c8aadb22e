"""Changes that are answered before the guest makes them: which, in what order they go, and who hears of a late no."""

import errno
import os
import stat
from collections.abc import Awaitable, Callable

import pyfuse3
import pytest
import trio

from mountsafe import changes, wire
from mountsafe.changes import Act, Change, Flag
from mountsafe.filesystem import changelog, delivery
from mountsafe.filesystem.early import FAT_LARGEST, LARGEST, MARGIN_BLOCKS, MARGIN_BYTES, Judge, folded
from mountsafe.filesystem.index import ROOT
from mountsafe.filesystem.nodes import Listing, Node
from mountsafe.wire import Kind
from tests.guest import entry, folder
from tests.handlers.disk import Disk, DiskGuest
from tests.handlers.opened import Opened, fails, opened
from tests.handlers.test_journal_model import CTX, Program

PLENTY = wire.Statfs(4096, 4096, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 255)
FILE = Change(Act.CREATE, mode=stat.S_IFREG | 0o640, uid=1000, gid=100)


# --- what the host judges ---------------------------------------------------------------------------------------------
def place(*names: bytes, root: Node | None = None) -> Node:
    """A folder that has these names."""
    made = Node(7, root, folder(b"f", mode=stat.S_IFDIR | 0o755, nlink=2))
    made.listing = Listing(0)
    for name in names:
        made.listing.add(name, Node(8, made, entry(name)))
    return made


def judge(fstype: bytes, told: wire.Statfs | None = PLENTY) -> Judge:
    async def ask() -> wire.Statfs | None:
        await trio.lowlevel.checkpoint()
        return told

    return Judge(fstype, Node(ROOT, None, folder(b"", mode=stat.S_IFDIR | 0o755)), ask)


USUAL = [b"a", b"IMG_1234.JPG", b"report (2).odt", b".hidden", b"x" * 255]
UNUSUAL = [b"dot.", b"space ", b" space", b"a:b", b"q?", b"st*r", b"back\\slash", b"LONGNA~1.TXT", b"con", b"Aux.txt"]
UNUSUAL += [b"nul", b"lpt1.x", "\N{LATIN SMALL LETTER U WITH DIAERESIS}".encode(), b"\xff", b"pipe|", b"<", b'"', b"\n"]


@pytest.mark.parametrize("fstype", [b"vfat", b"exfat", b"ntfs-3g"])
async def test_names_that_a_type_may_take_otherwise_go_to_the_guest_first(fstype: bytes) -> None:
    for name in USUAL:
        assert await judge(fstype).made(place(), name, FILE), name
    for name in UNUSUAL:
        assert await judge(fstype).made(place(), name, FILE) is None, name
    for name, there in (
        (b"readme", b"README"),
        (b"K", "\N{KELVIN SIGN}".encode()),
        (b"i", "\N{LATIN SMALL LETTER DOTLESS I}".encode()),
    ):
        assert await judge(fstype).made(place(there), name, FILE) is None, name


async def test_names_of_types_that_keep_every_byte() -> None:
    for name in [*USUAL, *UNUSUAL]:
        assert (await judge(b"ext4").made(place(), name, FILE) is None) == (name == b"\xff"), name
    # A folder may take two names for one here as well (casefold).
    assert await judge(b"ext4").made(place(b"README"), b"readme", FILE) is None
    composed, taken_apart = (text.encode() for text in ("\u00e9", "e\u0301"))
    assert await judge(b"ext4").made(place(composed), taken_apart, FILE) is None


def test_what_is_folded_is_kept_count_of() -> None:
    assert folded(b"Ab") == folded(b"aB")
    assert folded(b"\xff") != folded(b"\xfe")


async def test_types_that_nothing_is_judged_of() -> None:
    for fstype in (b"btrfs", b"hfsplus", b"udf", b"msdos", b"unheard of"):
        assert not judge(fstype).any
        assert await judge(fstype).made(place(), b"a", FILE) is None
        assert await judge(fstype).wrote(Node(9, None, entry(b"a")), 0, 1) is None


async def test_what_a_type_has_not_goes_to_the_guest_first() -> None:
    """It says EPERM, or does what it does."""
    link = Change(Act.SYMLINK, other=b"target")
    fifo = Change(Act.MKNOD, mode=stat.S_IFIFO | 0o600)
    node = Node(9, None, entry(b"a"))
    for change in (link, fifo):
        assert await judge(b"vfat").made(place(), b"a", change) is None
        assert await judge(b"ext4").made(place(), b"a", change)
    for flag in (Flag.SET_MODE, Flag.SET_UID, Flag.SET_GID):
        assert await judge(b"exfat").set(node, Change(Act.SETATTR, flags=flag)) is None
        assert await judge(b"xfs").set(node, Change(Act.SETATTR, flags=flag))
    assert await judge(b"vfat").set(node, Change(Act.SETATTR, flags=Flag.SET_MTIME, mtime=5))
    assert await judge(b"ext4").made(place(), b"a", link._replace(other=b"t" * 1001)) is None


async def test_limits_of_types() -> None:
    node = Node(9, None, entry(b"a"))
    many = wire.Statfs(4096, 4096, 1 << 40, 1 << 40, 1 << 40, 0, 0, 255)
    for fstype, most in ((b"vfat", FAT_LARGEST), (b"ext3", LARGEST)):
        assert await judge(fstype, many).wrote(node, most - 1, 1)
        assert await judge(fstype, many).wrote(node, most, 1) is None
        assert await judge(fstype, many).set(node, Change(Act.SETATTR, flags=Flag.SET_SIZE, size=most + 1)) is None
    full = place(*(b"%d" % number for number in range(3000)))
    assert await judge(b"vfat").made(full, b"a", FILE) is None
    assert await judge(b"exfat").made(full, b"a", FILE)
    fat = judge(b"vfat")
    fat._root.listing = Listing(0)
    assert await fat.made(fat._root, b"a", FILE) is None
    folders = place()
    folders.nlink = 30_000
    assert await judge(b"ext3").made(folders, b"a", Change(Act.MKDIR, mode=stat.S_IFDIR | 0o755)) is None


async def test_near_the_end_of_the_room_the_guest_judges() -> None:
    """Whatever is promised together fits into what was said, less the margin."""
    asked = []
    said = wire.Statfs(4096, 4096, 2000, 2000, 2000, 0, 0, 255)

    async def ask() -> wire.Statfs:
        await trio.lowlevel.checkpoint()
        asked.append(True)
        return said

    room = Judge(b"ext4", Node(ROOT, None, folder(b"")), ask).room
    promised = 0
    while await room.reserve(10_000):
        promised += 3
        assert len(asked) < 20
        said = said._replace(bavail=2000 - promised)  # all of it is done
    assert 2000 - promised >= MARGIN_BYTES // 4096 >= MARGIN_BLOCKS
    assert promised > 1000
    assert not await room.reserve(10_000)
    said = said._replace(bavail=2000)
    assert await room.reserve(10_000)


async def test_files_that_are_numbered_have_room_as_well() -> None:
    few = PLENTY._replace(files=1000, ffree=70)
    judged = judge(b"ext4", few)
    made = 0
    while await judged.made(place(), b"a", FILE):
        made += 1
        if made > 100:
            break
    assert made > 100  # it is asked again, and says so again
    assert await judge(b"ext4", PLENTY._replace(ffree=10)).made(place(), b"a", FILE) is None
    assert await judge(b"ext4", None).made(place(), b"a", FILE) is None


# --- how they go ------------------------------------------------------------------------------------------------------
class Watched(DiskGuest):
    """One that puts down what it is asked, and waits until it may answer changes."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.frames: list[int] = []
        self.no: dict[bytes, int] = {}  # errno by path

    def answer(self, request: wire.Frame) -> bytes:
        self.frames.append(request.kind)
        return super().answer(request)

    def _change(self, c: Change) -> bytes:
        if c.path in self.no and not c.flags & Flag.AGAIN:
            raise OSError(self.no[c.path], "no")
        return super()._change(c)


@pytest.fixture
def disk() -> Disk:
    return Disk()


async def begun(mount: Opened) -> Watched:
    """Begin to write; return the guest that does."""
    await mount.operations.mkdir(ROOT, b"first", 0o755, CTX)  # type: ignore[attr-defined]
    guest = mount.host.guests[-1]
    assert isinstance(guest, Watched)
    return guest


async def slow(guest: Watched, seconds: float = 0.05) -> None:
    guest.pause = seconds  # type: ignore[attr-defined]
    await trio.lowlevel.checkpoint()


async def test_they_are_answered_before_the_guest_has_them(disk: Disk) -> None:
    async with opened(lambda: Watched(disk), writable=True) as mount:
        guest = await begun(mount)
        await slow(guest, 0.5)
        program = Program(mount)
        for number in range(20):
            await program.do(("save", b"file%d" % number, b"bytes"))
        await program.do(("chmod", b"file1", 0o600))
        await program.do(("unlink", b"file2"))
        await program.do(("rename", b"file3", b"other", 0))
        assert len(disk.now.facts()) == 2
        await slow(guest, 0.0)
        assert mount.journal is not None
        await mount.journal.sync()
        facts = disk.now.facts()
        assert len(facts) == 2 + 19
        assert facts[b"/other"][3] == b"bytes"
        assert int(str(facts[b"/file1"][0])) & 0o777 == 0o600
        assert guest.frames.count(Kind.BATCH) < 10  # of 63 changes
        await mount.journal.end()


async def test_what_goes_on_where_a_write_ended_is_one(disk: Disk) -> None:
    async with opened(lambda: Watched(disk), writable=True) as mount:
        guest = await begun(mount)
        info, _ = await mount.operations.create(ROOT, b"log", 0o644, os.O_RDWR, CTX)  # type: ignore[attr-defined]
        await slow(guest)
        assert mount.journal is not None
        for number in range(100):
            await mount.operations.write(info.fh, number * 3, b"%03d" % number)  # type: ignore[attr-defined]
        assert len(mount.journal._log) < 10
        await slow(guest, 0.0)
        assert await mount.read(b"log") == b"".join(b"%03d" % number for number in range(100))
        await mount.journal.end()
        assert disk.now.facts()[b"/log"][3] == b"".join(b"%03d" % number for number in range(100))


async def test_who_looks_sees_what_was_changed(disk: Disk) -> None:
    """Bytes and attributes come from the guest, when it has made the changes."""
    async with opened(lambda: Watched(disk), writable=True) as mount:
        guest = await begun(mount)
        await slow(guest, 0.02)
        program = Program(mount)
        await program.do(("save", b"file", b"some bytes"))
        inode = await mount.walk(b"file")
        told = await mount.operations.getattr(inode, CTX)
        assert (told.st_size, told.st_uid) == (10, 1000)
        assert told.attr_timeout > 100  # it is what the guest says
        assert disk.now.facts()[b"/file"][3] == b"some bytes"
        await program.do(("save", b"file", b"others"))
        assert await mount.read(b"file") == b"others"
        await program.do(("chmod", b"file", 0o600))
        assert mount.operations._attributes(mount.index.node(inode)).attr_timeout <= 1  # only expected
        await slow(guest, 0.0)
        assert mount.journal is not None
        await mount.journal.end()


async def test_what_is_asked_by_a_path_is_asked_when_it_leads_there(disk: Disk) -> None:
    async with opened(lambda: Watched(disk), writable=True) as mount:
        guest = await begun(mount)
        await slow(guest, 0.02)
        program = Program(mount)
        for number in range(20):
            await program.do(("save", b"file%d" % number, b"x"))
        await program.do(("rename", b"file19", b"last", 0))
        assert await mount.operations.listxattr(await mount.walk(b"last"), CTX) == []
        await slow(guest, 0.0)
        assert mount.journal is not None
        await mount.journal.end()


async def test_a_full_log_makes_who_changes_something_wait(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changelog, "JOURNAL_BYTES", 1 << 16)
    async with opened(lambda: Watched(disk), writable=True) as mount:
        guest = await begun(mount)
        await slow(guest, 60.0)
        program = Program(mount)
        with trio.move_on_after(1.0) as scope:
            for number in range(30):
                await program.do(("save", b"file%d" % number, bytes(10_000)))
        assert scope.cancelled_caught
        assert mount.journal is not None
        assert mount.journal._log._bytes < (1 << 16) + 11_000


# --- a late no --------------------------------------------------------------------------------------------------------
async def told_at(asked: Callable[[int], Awaitable[object]], handle: int) -> str:
    try:
        await asked(handle)
    except pyfuse3.FUSEError as error:
        return errno.errorcode[error.errno]
    return ""


async def test_a_late_no_is_told_to_each_who_has_it_open_once_and_to_no_other(disk: Disk) -> None:
    async with opened(lambda: Watched(disk), writable=True) as mount:
        guest = await begun(mount)
        await slow(guest)
        operations = mount.operations
        handles = []
        for name in (b"bad", b"bad", b"good"):
            if name == b"bad" and handles:
                handles.append((await operations.open(await mount.walk(name), os.O_RDWR, CTX)).fh)
            else:
                handles.append((await operations.create(ROOT, name, 0o644, os.O_RDWR, CTX))[0].fh)  # type: ignore[attr-defined]
        guest.no = {b"bad": errno.EDQUOT}
        assert mount.journal is not None
        await slow(guest, 0.0)

        async def fsync(handle: int) -> None:
            await operations.fsync(handle, False)  # type: ignore[attr-defined]

        assert [await told_at(fsync, handle) for handle in handles] == ["EDQUOT", "EDQUOT", ""]
        assert [await told_at(operations.flush, handle) for handle in handles] == ["", "", ""]  # type: ignore[attr-defined]
        with trio.fail_after(30):
            while not mount.host.lost:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert [(count, names) for _, count, names in mount.host.lost] == [(1, [b"bad"])]
        assert sorted(await mount.names()) == [b"first", b"good"]
        async with fails(errno.EIO):
            await operations.write(handles[0], 0, b"x")  # type: ignore[attr-defined]
        for handle in handles:
            await operations.release(handle)
        guest.no = {}
        await Program(mount).do(("save", b"bad", b"after all"))
        await mount.journal.end()
        assert disk.now.facts()[b"/bad"][3] == b"after all"


async def test_results_that_are_not_those_of_the_batch_end_the_guest(disk: Disk) -> None:
    class Miscounting(Watched):
        def answer(self, request: wire.Frame) -> bytes:
            if request.kind == Kind.BATCH:
                return wire.frame(request.ident, request.kind, changes.pack_results([]))
            return super().answer(request)

    async with opened(lambda: Miscounting(disk), writable=True) as mount:
        await slow(await begun(mount), 0.01)
        program = Program(mount)
        for number in range(4):
            await program.do(("save", b"file%d" % number, b"x"))
        assert mount.journal is not None
        await mount.journal.sync()
        assert mount.host.misbehaved
        await mount.journal.end()
        assert len(disk.now.facts()) == 6


async def test_no_machine_comes_and_what_was_answered_is_kept(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until one comes nothing more is answered early, and then all is there."""
    monkeypatch.setattr(delivery, "BETWEEN", 0.0)
    monkeypatch.setattr(delivery, "AGAIN_LATER", 1000.0)
    async with opened(lambda: Watched(disk), writable=True) as mount:
        await slow(await begun(mount), 0.05)
        program = Program(mount)
        await program.do(("save", b"file", b"x"))
        async with mount.host.deserted():
            assert mount.journal is not None
            async with fails(errno.EIO):
                await mount.operations.fsync(0, False)  # type: ignore[attr-defined]
            async with fails(errno.EIO):
                await mount.operations.mkdir(ROOT, b"folder", 0o755, CTX)  # type: ignore[attr-defined]
        await mount.journal.end()
        assert disk.now.facts()[b"/file"][3] == b"x"
        assert mount.host.lost == []
