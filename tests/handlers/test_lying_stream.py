"""A guest that breaks the protocol, stops answering or hangs up: every caller gets an errno, and the guest is ended."""

import errno
from collections.abc import Callable

import pytest
import trio

from mountsafe import wire
from mountsafe.appliance.client import GuestRefused
from mountsafe.errors import DeadlinePassed, GuestFault, GuestGone, MountsafeError
from mountsafe.filesystem.index import ROOT
from mountsafe.limits import REQUEST_DEADLINE
from mountsafe.wire import Kind
from tests.guest import HangUp, Liar, Raw, Silence, entry, page
from tests.handlers.opened import Host, fails, opened

TREE = {b"": [entry(b"file", 12, size=5)]}


def raising(error: Exception) -> Callable[[bytes], bytes]:
    def say(body: bytes) -> bytes:
        raise error

    return say


def listing(say: Callable[[bytes], bytes]) -> Liar:
    """A guest that mounts, and answers the first LIST as `say` does."""
    liar = Liar(TREE)
    liar.say[Kind.LIST] = say
    return liar


FRAME = wire.frame(3, Kind.LIST, page())
BROKEN = {
    "an id that nobody used": Raw(wire.frame(99, Kind.LIST, page())),
    "another kind": Raw(wire.frame(4, Kind.READ, b"")),
    "an unknown kind": Raw(wire.frame(4, 200, b"")),
    "too large a frame": Raw(wire.HEADER.pack(wire.MAX_BODY + 1, 4, Kind.LIST)),
    "the largest length there is": Raw(b"\xff" * 9),
    "an answer twice": Raw(wire.frame(4, Kind.LIST, b"") * 2),
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_rule_is_an_error_and_ends_the_guest(raw: Raw) -> None:
    async with opened(lambda: listing(raising(raw))) as mount:
        async with fails(errno.EIO):
            await mount.operations.opendir(ROOT, None)
        async with fails(errno.EIO):
            await mount.operations.opendir(ROOT, None)  # by another guest, which does the same
        assert mount.host.misbehaved
        assert all(isinstance(error, GuestFault) for error in mount.host.misbehaved)
        assert len(mount.host.guests) == 2


BODIES = {
    "cut": page(entry(b"file"))[:-1],
    "empty": b"",
    "longer": page() + b"x",
    "a name over the limit": page(entry(b"n" * 256)),
    "more entries than allowed": b"\0" * 8 + b"\xff\xff",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_malformed_answer_is_an_error_and_ends_the_guest(body: bytes) -> None:
    guests = iter([listing(lambda _: body), Liar(TREE)])
    async with opened(lambda: next(guests)) as mount:
        async with fails(errno.EIO):
            await mount.operations.opendir(ROOT, None)
        assert await mount.names() == [b"file"]
        assert len(mount.host.misbehaved) == 1
        assert len(mount.host.guests) == 2


async def test_silence_is_a_timeout_and_ends_the_guest() -> None:
    guests = iter([listing(raising(Silence())), Liar(TREE)])
    async with opened(lambda: next(guests)) as mount:
        started = trio.current_time()
        async with fails(errno.ETIMEDOUT):
            await mount.operations.opendir(ROOT, None)
        assert trio.current_time() - started == pytest.approx(REQUEST_DEADLINE)
        assert isinstance(mount.host.misbehaved[0], DeadlinePassed)
        assert await mount.names() == [b"file"]


@pytest.mark.parametrize("part", [b"", b"\0", FRAME[:5], FRAME[:-1]], ids=["none", "a byte", "a header", "all but one"])
async def test_an_answer_that_never_ends_is_a_timeout(part: bytes) -> None:
    async with opened(lambda: listing(raising(Raw(part)))) as mount, fails(errno.ETIMEDOUT):
        await mount.operations.opendir(ROOT, None)


@pytest.mark.parametrize("part", [b"", FRAME[:5], FRAME[:-1]], ids=["none", "a header", "all but one"])
async def test_an_end_in_the_middle_asks_another_guest(part: bytes) -> None:
    class Breaking(Liar):
        def answer(self, request: wire.Frame) -> bytes:
            if self.count(Kind.LIST):
                raise HangUp
            return super().answer(request)

    def first() -> Liar:
        liar = Breaking(TREE)
        liar.say[Kind.LIST] = raising(HangUp() if not part else Raw(part))
        return liar

    guests = iter([first(), Liar(TREE)])
    async with opened(lambda: next(guests)) as mount:
        handle_opened = trio.Event()

        async def list_it() -> None:
            assert await mount.names() == [b"file"]
            handle_opened.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(list_it)
            with trio.move_on_after(1):
                await handle_opened.wait()
            await_end = not handle_opened.is_set()
            if await_end:  # part of a frame, and then the machine dies
                await mount.host.kill()
        assert handle_opened.is_set()
        assert len(mount.host.guests) == 2
        assert not mount.host.misbehaved


@pytest.mark.parametrize(
    ("told", "given"),
    [
        (errno.ENOENT, errno.ENOENT),
        (errno.EACCES, errno.EACCES),
        (0, errno.EIO),
        (255, errno.EIO),
        (512, errno.EIO),
        (65535, errno.EIO),
        (errno.ENOSYS, errno.EIO),  # the kernel would never ask again, for the whole mount
        (errno.EINTR, errno.EIO),
    ],
)
async def test_an_errno_is_passed_on_if_it_is_a_harmless_one(told: int, given: int) -> None:
    async with opened(lambda: listing(raising(OSError(told, "")))) as mount:
        async with fails(given):
            await mount.operations.opendir(ROOT, None)
        assert not mount.host.misbehaved


async def test_an_error_frame_that_is_none_ends_the_guest() -> None:
    async with opened(lambda: listing(raising(Raw(wire.frame(4, Kind.ERROR, b"\0"))))) as mount:
        async with fails(errno.EIO):
            await mount.operations.opendir(ROOT, None)
        assert len(mount.host.misbehaved) == 1


# --- before anything is mounted ------------------------------------------------------------------------------------
REFUSALS = {
    "an older version": (Kind.HELLO, lambda _: wire.pack_hello(wire.VERSION + 1, b"6.1"), GuestFault),
    "no hello": (Kind.HELLO, lambda _: b"", GuestFault),
    "a refusal": (Kind.MOUNT, raising(OSError(22, "bad")), GuestRefused),
    "a malformed mount": (Kind.MOUNT, lambda _: b"\0", GuestFault),
    "a hang-up": (Kind.MOUNT, raising(HangUp()), GuestGone),
    "silence": (Kind.MOUNT, raising(Silence()), DeadlinePassed),
    "malformed figures": (Kind.STATFS, lambda _: b"\0" * 63, GuestFault),
}


@pytest.mark.parametrize(("kind", "say", "error"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_guest_that_does_not_mount(
    kind: int, say: Callable[[bytes], bytes], error: type[MountsafeError]
) -> None:
    liar = Liar(TREE)
    liar.say[kind] = say
    with pytest.raises(error):
        async with opened(lambda: liar):
            pass


@pytest.mark.parametrize("count", [0, 1, wire.MAX_VOLUMES + 1])
async def test_volumes_are_bounded(count: int) -> None:
    liar = Liar()
    volume = wire.Volume(b"sdx", 1, 0, 0, 512, b"", b"", b"", b"", b"", b"")
    liar.say[Kind.PROBE] = lambda _: wire.pack_volumes([volume] * count)
    async with trio.open_nursery() as nursery:
        client = await Host(nursery, lambda: liar).client()
        if count > wire.MAX_VOLUMES:
            with pytest.raises(GuestFault):
                await client.probe()
        else:
            assert len(await client.probe()) == count
        client.end(GuestGone("done"))


# --- many at a time ------------------------------------------------------------------------------------------------
async def test_answers_may_come_in_any_order() -> None:
    class Backwards(Liar):
        """Answers every second request, and the one before it after that."""

        held = b""

        def answer(self, request: wire.Frame) -> bytes:
            answer = super().answer(request)
            if request.kind != Kind.READ:
                return answer
            if not self.held:
                self.held = answer
                return b""
            answer, self.held = answer + self.held, b""
            return answer

    content = bytes(range(200))
    liar = Backwards({b"": [entry(b"file", 12, size=200)]}, {b"file": content})
    async with opened(lambda: liar) as mount:
        read: dict[int, bytes] = {}

        async def one(offset: int) -> None:
            read[offset] = await mount.read(b"file", offset, 10)

        async with trio.open_nursery() as nursery:
            for offset in range(0, 200, 10):
                nursery.start_soon(one, offset)
        assert b"".join(read[offset] for offset in sorted(read)) == content


async def test_a_cancelled_request_ends_nothing() -> None:
    liar = Liar(TREE)
    held: list[bytes] = []

    class Slow(Liar):
        def answer(self, request: wire.Frame) -> bytes:
            if request.kind == Kind.XATTRS and not held:
                held.append(super().answer(request))
                return b""
            return (
                b"".join([*held, super().answer(request)]) if request.kind == Kind.XATTRS else super().answer(request)
            )

    liar = Slow(TREE)
    async with opened(lambda: liar) as mount:
        inode = await mount.walk(b"file")
        with trio.move_on_after(1) as scope:
            await mount.operations.listxattr(inode, None)
        assert scope.cancelled_caught
        assert await mount.operations.listxattr(inode, None) == []
        assert len(mount.host.guests) == 1
        assert not mount.host.misbehaved


async def test_a_fault_reaches_everybody_who_waits_and_is_reported_once() -> None:
    class Gathering(Liar):
        """Says nothing until five requests are there, then something wrong."""

        def answer(self, request: wire.Frame) -> bytes:
            answer = super().answer(request)
            if request.kind != Kind.READ:
                return answer
            return wire.frame(77, Kind.READ) if self.count(Kind.READ) == 5 else b""

    guests = iter([Gathering(TREE, {b"file": b"hello"}), Liar(TREE, {b"file": b"hello"})])
    async with opened(lambda: next(guests)) as mount:
        failed = 0

        async def one() -> None:
            nonlocal failed
            async with fails(errno.EIO):
                await mount.read(b"file")
            failed += 1

        await mount.walk(b"file")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert failed == 5
        assert len(mount.host.misbehaved) == 1
        assert await mount.read(b"file") == b"hello"
