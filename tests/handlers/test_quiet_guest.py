"""What happens while nobody asks: the tree is learned ahead, and a guest that is not needed is let go."""

import pytest
import trio

from mountsafe import wire
from mountsafe.errors import GuestFault
from mountsafe.filesystem.prefetch import prefetch
from mountsafe.wire import Extent, ExtentKind, Kind
from tests.guest import Liar, entry, folder, layout, page
from tests.handlers.opened import opened

TREE = {
    b"": [folder(b"a", 10), entry(b"file", 12, size=5)],
    b"a": [folder(b"b", 11)],
    b"a/b": [entry(b"deep", 13, size=5)],
}
FILES = {b"file": b"hello", b"a/b/deep": b"hello"}
IDLE = 60.0


def honest() -> Liar:
    return Liar(TREE, FILES)


# --- learning ahead ------------------------------------------------------------------------------------------------
async def test_what_was_learned_ahead_needs_no_guest() -> None:
    hole = Extent(0, 0, 5, ExtentKind.ZERO)
    liar = Liar(TREE)
    liar.say[Kind.LAYOUT] = lambda body: layout(*[([hole], False)] * len(wire.unpack_layout_request(body)[1]))
    async with opened(lambda: liar) as mount:
        await prefetch(mount.agents, mount.index, mount.reader)
        await mount.host.kill()
        assert await mount.names(b"a/b") == [b"deep"]
        assert await mount.read(b"a/b/deep") == bytes(5)
        assert len(mount.host.guests) == 1


async def test_a_tree_without_end_is_learned_up_to_a_limit() -> None:
    liar = Liar()
    liar.say[Kind.LIST] = lambda _: page(*(folder(b"%d" % number) for number in range(10)))
    async with opened(lambda: liar) as mount:
        await prefetch(mount.agents, mount.index, mount.reader, limit=100)
        assert liar.count(Kind.LIST) <= 11


@pytest.mark.parametrize("failure", [GuestFault("lies"), OSError(5, "no"), ZeroDivisionError()])
async def test_no_failure_of_it_ends_the_mount(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(honest) as mount:

        async def fail(node: object) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(mount.reader, "open", fail)
            await prefetch(mount.agents, mount.index, mount.reader)
        assert await mount.read(b"file") == b"hello"


def bad_block(body: bytes) -> bytes:
    raise OSError(5, "bad block")


async def test_a_folder_that_cannot_be_read_keeps_nothing_else_from_being_learned() -> None:
    tree = {
        b"": [*(folder(b"bad%d" % number, 20 + number) for number in range(3)), folder(b"good", 10)],
        b"good": [entry(b"deep", 13, size=5)],
    }
    liar = Liar(tree)
    hole = Extent(0, 0, 5, ExtentKind.ZERO)
    liar.say[Kind.LIST] = lambda body: bad_block(body) if body.endswith(b"bad1") else liar._list(body)
    liar.say[Kind.LAYOUT] = lambda body: layout(*[([hole], False)] * len(wire.unpack_layout_request(body)[1]))
    async with opened(lambda: liar) as mount:
        await prefetch(mount.agents, mount.index, mount.reader)
        await mount.host.kill()
        assert await mount.read(b"good/deep") == bytes(5)
        assert len(mount.host.guests) == 1


async def test_learning_ahead_ends_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    liar = Liar({b"": [folder(b"%d" % number, 10 + number) for number in range(9)]})
    async with opened(lambda: liar) as mount:
        await mount.names()
        monkeypatch.setattr("mountsafe.filesystem.index.MAX_INDEX_ENTRIES", 0)
        mount.index._limit = 0
        liar.say[Kind.LIST] = lambda _: page(entry(b"x", 99))
        asked = liar.count(Kind.LIST)
        await prefetch(mount.agents, mount.index, mount.reader)
        assert liar.count(Kind.LIST) == asked + 1


async def test_a_huge_folder_waits_for_a_quiet_moment_unless_it_is_needed() -> None:
    liar = Liar()
    liar.say[Kind.LIST] = lambda body: page(
        entry(b"%d" % wire.unpack_list(body)[1]), cursor=(wire.unpack_list(body)[1] + 1) % 20
    )
    async with opened(lambda: liar) as mount:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, mount.agents, mount.index, mount.reader)
            await trio.testing.wait_all_tasks_blocked()
            assert len(await mount.names()) == 20
        assert liar.count(Kind.LIST) == 20


# --- letting go ----------------------------------------------------------------------------------------------------
async def test_an_idle_guest_is_let_go_and_another_comes_when_it_is_needed() -> None:
    async with opened(honest) as mount:
        rested = trio.Event()

        async def resting() -> None:
            rested.set()

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.agents.rest_when_idle, IDLE, resting)
            await rested.wait()
            assert trio.current_time() - started >= IDLE
            assert await mount.read(b"file") == b"hello"
            assert len(mount.host.guests) == 2
            nursery.cancel_scope.cancel()
        assert not mount.host.misbehaved


async def test_a_guest_that_is_asked_now_and_then_is_not_let_go() -> None:
    async with opened(honest) as mount, trio.open_nursery() as nursery:

        async def resting() -> None:
            raise AssertionError

        nursery.start_soon(mount.agents.rest_when_idle, IDLE, resting)
        for _ in range(10):
            await trio.sleep(IDLE * 0.9)
            await mount.agents.request(Kind.STATFS)
        nursery.cancel_scope.cancel()


async def test_a_guest_that_is_answering_is_not_let_go() -> None:
    class Slow(Liar):
        """Answers READ after something else."""

        held = b""

        def answer(self, request: wire.Frame) -> bytes:
            answer = super().answer(request)
            if request.kind == Kind.READ:
                self.held = answer
                return b""
            return self.held + answer

    async with opened(lambda: Slow(TREE, FILES)) as mount, trio.open_nursery() as nursery:

        async def resting() -> None:
            raise AssertionError

        async def read() -> None:
            assert await mount.read(b"file") == b"hello"
            nursery.cancel_scope.cancel()

        await mount.walk(b"file")
        nursery.start_soon(mount.agents.rest_when_idle, 10.0, resting)
        nursery.start_soon(read)
        await trio.sleep(25.0)
        await mount.agents.request(Kind.STATFS)
