"""A virtual machine that dies is replaced when it is needed, once for everybody, and only by one that says the same."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyfuse3
import pytest
import trio

from mountsafe import wire
from mountsafe.errors import GuestFault, GuestGone
from mountsafe.filesystem.index import ROOT
from mountsafe.wire import Kind
from tests.guest import FolderWorker, HangUp, Liar, Raw, Silence, entry, folder, page
from tests.handlers.opened import Opened, fails, opened

TREE = {b"": [entry(b"file", 12, size=5), folder(b"folder", 13)], b"folder": [entry(b"below", 14)]}
FILES = {b"file": b"hello"}


def honest() -> Liar:
    return Liar(TREE, FILES)


async def test_what_is_known_needs_no_guest() -> None:
    async with opened(honest) as mount:
        inode = await mount.walk(b"file")
        await mount.host.kill()
        assert (await mount.operations.getattr(inode, None)).st_size == 5
        assert await mount.walk(b"file") == inode
        assert len(mount.host.guests) == 1


async def test_another_guest_is_started_once_for_all_that_wait() -> None:
    async with opened(honest) as mount:
        inode = await mount.walk(b"file")
        await mount.host.kill()
        answers: list[bytes] = []

        async def one() -> None:
            answers.append(await mount.read(b"file"))

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(one)
        assert answers == [b"hello"] * 40
        assert len(mount.host.guests) == 2
        assert await mount.walk(b"file") == inode


async def test_a_late_complaint_names_the_guest_that_it_is_about() -> None:
    """Its last answer turns out to be malformed when another one has taken its place: that one is not ended for it."""
    slow = honest()
    slow.pause = 5.0
    guests = iter([honest(), slow, honest()])
    async with opened(lambda: next(guests)) as mount:
        await mount.agents.request(Kind.STATFS)
        await mount.host.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.agents.request, Kind.STATFS)  # the second says hello, mounts, and is asked
            await trio.sleep(2.5 * slow.pause)
            with pytest.raises(GuestFault):
                mount.agents.unpack(wire.unpack_statfs, b"malformed")
        assert await mount.read(b"file") == b"hello"
        assert mount.host.blamed == [1]
        assert len(mount.host.guests) == 2


async def test_requests_under_way_are_asked_again() -> None:
    class Dying(Liar):
        def answer(self, request: wire.Frame) -> bytes:
            super().answer(request)
            if self.count(Kind.READ) == 3:
                raise HangUp
            return b"" if request.kind == Kind.READ else super().answer(request)

    guests = iter([Dying(TREE, FILES), honest()])
    async with opened(lambda: next(guests)) as mount:
        await mount.walk(b"file")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(mount.read, b"file")
        assert len(mount.host.guests) == 2
        assert not mount.host.misbehaved


async def test_a_guest_that_always_dies_is_an_error_and_not_a_loop() -> None:
    def dying() -> Liar:
        liar = Liar(TREE)

        def die(body: bytes) -> bytes:
            raise HangUp

        liar.say[Kind.READ] = die
        return liar

    async with opened(dying) as mount:
        async with fails(errno.EIO):
            await mount.read(b"file")
        assert len(mount.host.guests) == 2


async def test_no_guest_to_be_had_is_an_error_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(honest) as mount:
        await mount.host.kill()

        async def none() -> None:
            raise GuestGone("it died three times")

        with monkeypatch.context() as patch:
            patch.setattr(mount.agents, "_readable", replace(mount.agents._readable, get_client=none))
            async with fails(errno.EIO):
                await mount.operations.opendir(ROOT, None)
        assert b"file" in await mount.names()


def saying(**fields: object) -> Liar:
    liar = honest()
    liar.mounted = liar.mounted._replace(**fields)  # type: ignore[arg-type]
    return liar


@pytest.mark.parametrize(
    "other",
    [lambda: saying(fstype=b"vfat"), lambda: saying(state=wire.MountState.SKIPPED)],
    ids=["another type", "another state"],
)
async def test_a_medium_that_mounts_in_another_way_is_not_believed(other: object) -> None:
    guests = iter([honest(), other(), honest()])  # type: ignore[operator]
    async with opened(lambda: next(guests)) as mount:
        await mount.host.kill()
        async with fails(errno.EIO):
            await mount.operations.opendir(ROOT, None)
        assert b"file" in await mount.names()


async def test_a_mount_that_fails_once_is_tried_again() -> None:
    """The new guest lives but has mounted nothing: it must not be asked for files."""

    def refusing() -> Liar:
        liar = honest()

        def refuse(body: bytes) -> bytes:
            raise OSError(errno.EIO, "bad superblock")

        liar.say[Kind.MOUNT] = refuse
        liar.say[Kind.LIST] = lambda _: page(entry(b"not mounted"))
        return liar

    guests = iter([honest(), refusing(), honest()])
    async with opened(lambda: next(guests)) as mount:
        await mount.host.kill()
        async with fails(errno.EIO):
            await mount.operations.opendir(ROOT, None)
        assert b"file" in await mount.names()
        assert len(mount.host.guests) == 3


async def test_a_listing_goes_on_in_another_guest(tmp_path: Path) -> None:
    """The cursor is unknown there: the real agent says ESTALE, and the listing starts anew."""
    for number in range(2500):
        (tmp_path / f"{number:04}").touch()

    class Dying(FolderWorker):
        def answer(self, request: wire.Frame) -> bytes:
            if request.kind == Kind.LIST and wire.unpack_list(request.body)[1]:
                raise HangUp
            return super().answer(request)

    guests = iter([Dying(tmp_path), FolderWorker(tmp_path)])
    async with opened(lambda: next(guests)) as mount:
        assert len(await mount.names()) == 2500
        assert len(mount.host.guests) == 2
        assert mount.incidents.count == 0


async def test_many_who_want_the_same_folder_ask_once() -> None:
    liar = honest()
    async with opened(lambda: liar) as mount:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(mount.names, b"folder")
        assert liar.count(Kind.LIST) == 2


async def test_who_waits_goes_on_when_the_one_who_asked_is_cancelled() -> None:
    class Slow(Liar):
        """Answers the first LIST after something else."""

        held = b""

        def answer(self, request: wire.Frame) -> bytes:
            answer = super().answer(request)
            if request.kind == Kind.LIST and not self.held:
                self.held = answer
                return b""
            return self.held + answer if request.kind == Kind.STATFS and self.held else answer

    liar = Slow(TREE)
    async with opened(lambda: liar) as mount:
        scope = trio.CancelScope()

        async def asks() -> None:
            with scope:
                await mount.names()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(mount.names)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await mount.agents.request(Kind.STATFS)
        assert liar.count(Kind.LIST) == 1


@pytest.mark.parametrize("how", [Silence, lambda: Raw(b"x" * 99)], ids=["silent", "breaks the protocol"])
@pytest.mark.parametrize("guests", [1, 3])
async def test_a_complaint_names_the_guest_it_is_about(how: Callable[[], Exception], guests: int) -> None:
    """Others may have been there before, and another may be there by the time that it is heard."""

    def bad(_: bytes) -> bytes:
        raise how()

    liar = honest()
    async with opened(lambda: liar) as mount:
        for _ in range(guests - 1):
            await mount.host.kill()
            await mount.agents.request(Kind.STATFS)
        liar.say[Kind.READ] = bad
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(failing, mount)
        del liar.say[Kind.READ]
        assert await mount.read(b"file") == b"hello"
        assert mount.host.blamed == [guests]


async def failing(mount: Opened) -> None:
    with pytest.raises(pyfuse3.FUSEError):
        await mount.read(b"file")


async def test_a_malformed_answer_is_blamed_on_who_gave_it() -> None:
    """Not on the guest that is asked by the time that it is reported."""
    liar = honest()
    async with opened(lambda: liar) as mount:
        await mount.host.kill()
        body = await mount.agents.request(Kind.STATFS)
        with pytest.raises(GuestFault):
            mount.agents.unpack(wire.unpack_statfs, body[:-1])
        await mount.agents.request(Kind.STATFS)
        assert mount.host.blamed == [2]
        assert len(mount.host.guests) == 3
