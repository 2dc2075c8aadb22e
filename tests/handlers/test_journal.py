"""Changes: what they must not be repeated over, how much is kept, who is told what, and a guest that lies of them."""

import errno
import os
import stat
from collections.abc import Callable

import pytest
import trio

from mountsafe import changes, wire
from mountsafe.changes import Act
from mountsafe.filesystem import changelog, delivery
from mountsafe.filesystem import journal as journals
from mountsafe.filesystem.index import ROOT
from mountsafe.wire import Entry, Kind, MountState
from tests.guest import HangUp, entry, folder, link
from tests.handlers.disk import Disk, DiskGuest
from tests.handlers.opened import Opened, fails, opened
from tests.handlers.test_journal_model import CTX, Program, Step, compare

# What each would do wrong if it were repeated over a later state without a checkpoint in its midst.
STORIES: dict[str, list[Step]] = {
    "a new file in the place of one that was moved": [("rename", b"a", b"b", 0), ("save", b"a", b"new")],
    "one that was moved in the place of one that was removed": [
        *[("save", b"b", b"old"), ("settle",), ("unlink", b"b"), ("rename", b"a", b"b", 0)],
        ("save", b"c", b"more"),
    ],
    "one that was written to is moved": [("save", b"a", b"more"), ("rename", b"a", b"b", 0), ("save", b"c", b"x")],
    "out of a folder that goes": [("save", b"d/a", b"bytes"), ("rename", b"d/a", b"b", 0), ("rmdir", b"d")],
    "written by a name that goes": [
        *[("link", b"a", b"b"), ("settle",), ("save", b"a", b"by the one"), ("unlink", b"a")],
        ("save", b"c", b"x"),
    ],
    "a link that is moved": [("link", b"a", b"b"), ("rename", b"b", b"c", 0), ("unlink", b"a"), ("save", b"b", b"x")],
    "over one that is open": [
        *[("save", b"b", b"open"), ("hold", b"b", 0), ("put", 0, 0, b"OP"), ("sync",), ("rename", b"a", b"b", 0)],
        *[("put", 0, 0, b"not there"), ("get", 0), ("save", b"c", b"x")],
    ],
    "one that is open": [
        *[("hold", b"a", 0), ("put", 0, 0, b"1"), ("sync",), ("rename", b"a", b"b", 0), ("put", 0, 1, b"23")],
        *[("rename", b"b", b"c", 0), ("put", 0, 2, b"4"), ("get", 0)],
    ],
    "saved twice, as editors do": [
        *[("save", b"b", b"one"), ("rename", b"b", b"a", 0), ("save", b"b", b"another"), ("rename", b"b", b"a", 0)],
    ],
    "a folder in the place of a file": [("unlink", b"a"), ("mkdir", b"a"), ("save", b"a", b"x"), ("rmdir", b"a")],
    "a folder in the place of a folder": [
        ("rmdir", b"d"),
        ("mkdir", b"d"),
        ("save", b"d/a", b"x"),
        ("save", b"d/b", b"y"),
    ],
    "a folder is moved, and another made": [
        *[("save", b"d/a", b"x"), ("rename", b"d", b"b", 0), ("mkdir", b"d"), ("save", b"d/a", b"y")],
    ],
    "two that are exchanged": [("rename", b"a", b"d", 2), ("save", b"d", b"x"), ("rename", b"a", b"d", 2)],
    "what an attribute was given to is moved": [("xattr", b"a", b"1"), ("save", b"b", b"x"), ("rename", b"b", b"a", 0)],
}


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BETWEEN", 0.0)


@pytest.mark.parametrize("story", STORIES)
def test_a_death_at_every_change(story: str) -> None:
    for dies in range(1, 16):
        for seed in range(6):
            compare(STORIES[story], [(0, True), (dies, bool(seed % 3))], seed)


async def test_a_name_that_was_learned_before_anything_could_be_changed_stays() -> None:
    """The session process learns the root's first names before the kernel can ask for anything."""
    disk = Disk()
    disk.now.make(b"a", stat.S_IFREG | 0o644, 0, b"bytes")
    disk.now.link(b"b", b"a")
    async with opened(lambda: DiskGuest(disk), writable=True, begun=True) as mount:
        await mount.operations.unlink(ROOT, b"a", CTX)  # type: ignore[attr-defined]
        assert bytes(await mount.read(b"b")) == b"bytes"
        assert mount.journal is not None
        await mount.journal.end()


# --- who waits, and for how much -------------------------------------------------------------------------------------
async def save(mount: Opened, path: bytes, data: bytes) -> None:
    await Program(mount)._save(path, data)


async def test_it_keeps_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changelog, "JOURNAL_BYTES", 1 << 16)
    monkeypatch.setattr(changelog, "JOURNAL_CHANGES", 50)
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount:
        assert mount.journal is not None
        for number in range(30):
            await save(mount, b"file", bytes([number]) * 10_000)
            assert mount.journal._log._bytes < (1 << 16) + 11_000
        assert 4 <= disk.syncs <= 10
        before = disk.syncs
        for number in range(40):
            await save(mount, b"%d" % number, b"")
            assert len(mount.journal._log) <= 51
        assert disk.syncs > before


async def test_who_waits_may_go() -> None:
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount:
        await save(mount, b"first", b"")
        await mount.operations.mkdir(ROOT, b"gone", 0o755, CTX)  # type: ignore[attr-defined]
        mount.host.guests[-1].pause = 0.05  # type: ignore[attr-defined]
        with trio.move_on_after(0.01) as scope:
            await mount.operations.rmdir(ROOT, b"gone", CTX)  # type: ignore[attr-defined]
        assert scope.cancelled_caught
        assert mount.journal is not None
        await mount.operations.mkdir(ROOT, b"folder", 0o755, CTX)  # type: ignore[attr-defined]
        await mount.journal.sync()
        await save(mount, b"folder/file", b"x")
        await mount.journal.sync()
        assert sorted(disk.now.facts()) == [b"", b"/first", b"/folder", b"/folder/file"]


async def test_it_rests_and_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "REST", 0.01)
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount, trio.open_nursery() as nursery:
        assert mount.journal is not None
        mount.journal._idle = 0.05
        nursery.start_soon(mount.journal.attend)
        for turn in range(1, 4):
            await save(mount, b"file", b"%d" % turn)
            with trio.fail_after(60):
                while mount.host.settled < turn:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert await mount.read(b"file") == b"%d" % turn
        assert [guest.writing for guest in mount.host.guests] == [False] * 7  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def test_in_a_moment_of_rest_the_disk_gets_all_of_it() -> None:
    """After each change, the first one too; not only when the virtual machine that writes is to go."""
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount, trio.open_nursery() as nursery:
        assert mount.journal is not None
        nursery.start_soon(mount.journal.attend)
        for turn in range(3):
            await save(mount, b"file%d" % turn, b"x")
            assert mount.journal._log
            await trio.sleep(2 * journals.REST)
            assert not mount.journal._log
            await trio.sleep(mount.journal._idle / 2)
            assert mount.host.settled == 0
        nursery.cancel_scope.cancel()


async def test_a_checkpoint_that_does_not_come_about_is_given_up() -> None:
    """What is changed next comes after what is there, and is kept with it until a later one."""
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount:
        assert mount.journal is not None
        await save(mount, b"file", b"x")
        async with mount.host.deserted():
            async with fails(errno.EIO):
                await mount.operations.fsync(0, False)  # type: ignore[attr-defined]
            assert not mount.journal._log.wanted
        await save(mount, b"other", b"y")
        await mount.host.kill()
        await mount.journal.end()
        assert {path: fact[3] for path, fact in disk.now.facts().items() if path} == {b"/file": b"x", b"/other": b"y"}
        assert mount.host.lost == []


class Dirty(DiskGuest):
    """Whoever mounts it for writing replays its journal; `after`: how it is mounted to be read from then on."""

    replayed = False

    def __init__(self, disk: Disk, after: int) -> None:
        super().__init__(disk)
        self._state = after if Dirty.replayed else MountState.RECOVERED

    def _body(self, kind: int, body: bytes) -> bytes:
        told = super()._body(kind, body)
        if kind != Kind.MOUNT:
            return told
        Dirty.replayed |= self.writing
        return wire.pack_mounted(
            wire.unpack_mounted(told)._replace(state=MountState.CLEAN if self.writing else self._state)
        )


@pytest.mark.parametrize(("after", "read"), [(MountState.CLEAN, True), (MountState.SKIPPED, False)])
async def test_a_journal_that_was_dirty_is_not_when_it_was_written_to(
    after: int, read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dirty, "replayed", False)
    disk = Disk()
    async with opened(lambda: Dirty(disk, after), writable=True) as mount:
        assert mount.journal is not None
        for turn in range(2):
            await save(mount, b"file", b"%d" % turn)
            await mount.journal.end()
            if read:
                assert await mount.read(b"file") == b"%d" % turn
            else:
                async with fails(errno.EIO):
                    await mount.read(b"file")


class Refusing(DiskGuest):
    """One that will not repeat what it is asked for."""

    def _change(self, c: changes.Change) -> bytes:
        if c.flags & changes.Flag.AGAIN:
            raise OSError(errno.ENOSPC, "no room")
        return super()._change(c)


async def test_what_cannot_be_repeated_is_lost_loudly() -> None:
    disk = Disk()
    async with opened(lambda: Refusing(disk), writable=True) as mount:
        assert mount.journal is not None
        await save(mount, b"file", b"x")
        await mount.host.kill()
        async with fails(errno.EIO):
            await mount.operations.mkdir(ROOT, b"folder", 0o755, CTX)  # type: ignore[attr-defined]
        async with fails(errno.EIO):
            await mount.operations.fsync(0, False)  # type: ignore[attr-defined]
        ((why, count, names),) = mount.host.lost
        assert "could not be repeated" in why
        assert count >= 3
        assert names == [b"file"]
        await mount.journal.end()


async def test_what_is_about_to_be_saved_is_announced_and_then_that_it_is() -> None:
    """Nobody may be left to tell how it ended: names come first, before anything is waited for."""
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount:
        assert mount.journal is not None
        await save(mount, b"file", b"x")
        await mount.journal.sync()
        assert mount.host.announced == [[b"file"], []]
        await mount.journal.sync()
        assert mount.host.announced == [[b"file"], []]  # there was nothing to be saved
        await save(mount, b"other", b"y")
        await mount.journal.end()
        assert mount.host.announced[2:] == [[b"other"]]


async def test_machines_that_do_not_come() -> None:
    """A change is refused then, and nothing that was done is lost when one comes after all."""
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount:
        assert mount.journal is not None
        await save(mount, b"file", b"x")
        async with mount.host.deserted(), fails(errno.EIO):
            await mount.operations.mkdir(ROOT, b"folder", 0o755, CTX)  # type: ignore[attr-defined]
        await save(mount, b"other", b"y")
        await mount.journal.end()
        assert {path: fact[3] for path, fact in disk.now.facts().items() if path} == {b"/file": b"x", b"/other": b"y"}
        assert mount.host.lost == []


class Stillborn(DiskGuest):
    """One that dies when it is to mount it for writing; `left` of them do."""

    left = 0

    def _body(self, kind: int, body: bytes) -> bytes:
        if kind == Kind.MOUNT and wire.unpack_mount(body).writable and Stillborn.left:
            Stillborn.left -= 1
            raise HangUp
        return super()._body(kind, body)


async def test_the_first_machine_that_writes_may_die_before_it_does() -> None:
    """The program waits for the next one."""
    Stillborn.left, disk = delivery.ATTEMPTS - 1, Disk()
    async with opened(lambda: Stillborn(disk), writable=True) as mount:
        await save(mount, b"file", b"x")
        assert mount.journal is not None
        await mount.journal.end()
        assert disk.now.facts()[b"/file"][3] == b"x"
        assert Stillborn.left == 0


async def test_attributes_that_are_set_by_a_path(disk: Disk) -> None:
    """The answer tells of the folder as well."""
    async with opened(lambda: DiskGuest(disk), writable=True) as mount:
        program = Program(mount)
        for step in [("mkdir", b"d"), ("save", b"d/a", b"x"), ("settle",), ("chmod", b"d/a", 0o600), ("sync",)]:
            await program.do(step)
        assert int(str(disk.now.facts()[b"/d/a"][0])) & 0o777 == 0o600
        assert mount.host.misbehaved == []
        assert mount.journal is not None
        await mount.journal.end()


async def test_a_path_that_is_asked_for_does_not_change_meanwhile() -> None:
    disk = Disk()
    async with opened(lambda: DiskGuest(disk), writable=True) as mount:
        for name in (b"a", b"b"):
            await mount.operations.mkdir(ROOT, name, 0o755, CTX)  # type: ignore[attr-defined]
            await save(mount, name + b"/file", name * 5)
        read: list[bytes] = []
        inode = await mount.walk(b"a/file")

        async def look() -> None:
            info = await mount.operations.open(inode, os.O_RDONLY, CTX)
            read.append(bytes(await mount.operations.read(info.fh, 0, 5)))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(look)
                await mount.operations.rename(ROOT, b"a", ROOT, b"c", 0, CTX)  # type: ignore[attr-defined]
                nursery.start_soon(look)
                await mount.operations.rename(ROOT, b"b", ROOT, b"a", 0, CTX)  # type: ignore[attr-defined]
                await mount.operations.rename(ROOT, b"a", ROOT, b"b", 0, CTX)  # type: ignore[attr-defined]
                await mount.operations.rename(ROOT, b"c", ROOT, b"a", 0, CTX)  # type: ignore[attr-defined]
        assert read == [b"aaaaa"] * 40


# --- lies ----------------------------------------------------------------------------------------------------------
def _packed(*entries: Entry) -> bytes:
    return changes.pack_changed([wire.pack_entry(each.name, each[1:-1], each.target) for each in entries])


LIES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: _packed(),
    "another name": lambda: _packed(entry(b"other", 77)),
    "an impossible name": lambda: _packed(entry(b"a/b", 77)),
    "another type": lambda: _packed(link(b"new", b"/etc", 77)),
    "no type": lambda: _packed(entry(b"new", 77, mode=0o170000)),
    "an impossible size": lambda: _packed(entry(b"new", 77, size=1 << 63)),
    "a folder that is none": lambda: _packed(entry(b"new", 77), entry(b"")),
    "another folder": lambda: _packed(entry(b"new", 77), folder(b"x")),
    "too many": lambda: _packed(entry(b"new", 77), folder(b""), folder(b"")),
    "far too many": lambda: _packed(*[entry(b"new", 77)] * 9),
    "half of it": lambda: _packed(entry(b"new", 77))[:20],
    "no more than a count": lambda: b"\0" * 9 + b"\1",
}


class Lying(DiskGuest):
    """One that does what it is asked for, and says something else."""

    lie: Callable[[], bytes] | None = None

    def _change(self, c: changes.Change) -> bytes:
        answer = super()._change(c)
        return self.lie() if self.lie and c.act in (Act.CREATE, Act.MKNOD) else answer


@pytest.mark.parametrize("lie", LIES)
async def test_a_guest_that_lies_of_what_it_did(disk: Disk, lie: str) -> None:
    """Every machine that says so is ended; it is none of the program's business, who is told of a failure."""

    def make() -> DiskGuest:
        guest = Lying(disk)
        guest.lie = LIES[lie]
        return guest

    async with opened(make, writable=True) as mount:
        async with fails(errno.EIO):
            await mount.operations.create(ROOT, b"new", 0o644, os.O_RDWR, CTX)  # type: ignore[attr-defined]
        assert len(mount.host.misbehaved) >= delivery.ATTEMPTS - 1
        assert await mount.names() == []
        await mount.operations.mkdir(ROOT, b"folder", 0o755, CTX)  # type: ignore[attr-defined]
        assert await mount.names() == [b"folder"]


class Short(DiskGuest):
    """One that says of every write that the file is shorter."""

    def _write(self, handle: int, offset: int, data: memoryview) -> bytes:
        super()._write(handle, offset, data)
        return _packed(entry(b"", 77, size=1))


async def test_a_guest_that_writes_less(disk: Disk) -> None:
    async with opened(lambda: Short(disk), writable=True) as mount:
        await save(mount, b"file", b"hello")
        assert mount.journal is not None
        await mount.journal.sync()
        assert mount.host.misbehaved
        assert disk.now.facts()[b"/file"][3] == b"hello"


class Mute(DiskGuest):
    """One that hangs up at every change."""

    def _change(self, c: changes.Change) -> bytes:
        raise HangUp


async def test_a_guest_that_never_does_anything(disk: Disk) -> None:
    async with opened(lambda: Mute(disk), writable=True) as mount:
        for _ in range(2):
            async with fails(errno.EIO):
                await mount.operations.mkdir(ROOT, b"folder", 0o755, CTX)  # type: ignore[attr-defined]
        assert len(mount.host.guests) <= 2 * delivery.ATTEMPTS + 2


def test_all_that_changes_is_of_the_wire() -> None:
    assert {Kind.CHANGE, Kind.WRITE, Kind.HANDLE_READ, Kind.SYNC, Kind.UNMOUNT, Kind.BATCH} == wire.CHANGING
