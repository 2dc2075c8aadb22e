"""The two ends of a supervisor's channels: what is told arrives, and no descriptor is left with nobody to close it."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing

from mountsafe import channel, trios
from mountsafe.errors import GuestGone
from mountsafe.session.conversation import GIVEN, Disk, Given, Stream, WantDisk, WantStream
from mountsafe.session.messages import REPORTS, Progress
from mountsafe.session.reporter import Reporter
from mountsafe.session.server import Parent

Ends = tuple[socket.socket, socket.socket]
BOUND = 30.0


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = channel.pair()
    with ours, theirs:
        yield ours, theirs


def answer(sock: socket.socket, what: Given) -> socket.socket:
    """Answer with one end of a stream; return the other."""
    given, kept = socket.socketpair()
    with given:
        channel.send(sock, GIVEN.told(what), [given.fileno()])
    return kept


def closed(kept: socket.socket) -> bool:
    """Whether nobody has the other end."""
    with suppress(BlockingIOError):
        return kept.recv(1, socket.MSG_DONTWAIT) == b""
    return False


# --- questions ------------------------------------------------------------------------------------------------------
async def give_up(parent: Parent, theirs: socket.socket) -> None:
    """Ask, and give up when the question has arrived."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parent.ask, WantStream())
        await trio.lowlevel.wait_readable(theirs)
        await trio.testing.wait_all_tasks_blocked()
        assert channel.receive(theirs) == ({"want-stream": False}, [])
        nursery.cancel_scope.cancel()


def test_the_answer_to_a_question_that_was_given_up_is_closed(ends: Ends) -> None:
    async def scene() -> None:
        await give_up(Parent(ends[0]), ends[1])
        kept = answer(ends[1], Stream(1))
        with trio.fail_after(BOUND), kept:
            await trio.lowlevel.wait_readable(kept)  # the end of it
            assert closed(kept)

    trios.run(scene)


@pytest.mark.parametrize("given_up", [1, 3])
def test_the_next_question_gets_its_own_answer(ends: Ends, given_up: int) -> None:
    ours, theirs = ends

    async def scene() -> None:
        parent = Parent(ours)
        late = []
        for number in range(given_up):
            await give_up(parent, theirs)
            late.append(answer(theirs, Stream(number)))
        async with trio.open_nursery() as nursery:
            got = []

            async def ask() -> None:
                got.append(await parent.ask(WantDisk(None)))

            nursery.start_soon(ask)
            with trio.fail_after(BOUND):
                await trio.lowlevel.wait_readable(theirs)
            assert channel.receive(theirs) == ({"want-disk": None}, [])
            kept = answer(theirs, Disk(7))
        [(message, [fd])] = got
        assert message == Disk(7)
        with socket.socket(fileno=fd) as stream, kept:
            stream.send(b"x")
            assert kept.recv(1) == b"x"
        assert all(map(closed, late))
        for each in late:
            each.close()

    trios.run(scene)


def test_a_parent_that_is_gone_after_a_question_was_given_up(ends: Ends) -> None:
    async def scene() -> None:
        parent = Parent(ends[0])
        await give_up(parent, ends[1])
        ends[1].close()
        with pytest.raises((GuestGone, OSError)):
            await parent.ask(WantStream())

    trios.run(scene)


# --- the report -----------------------------------------------------------------------------------------------------
MANY = 2000


def read_all(sock: socket.socket, number: int) -> list[channel.Message]:
    sock.settimeout(BOUND)
    return [received[0] for _ in range(number) if (received := channel.receive(sock))]


def test_an_idle_listener_misses_nothing(ends: Ends) -> None:
    """The loop goes on meanwhile: who listens may be stopped."""
    ours, theirs = ends
    told = [Progress(f"{number:200}") for number in range(MANY)]

    async def scene() -> list[channel.Message]:
        reporter = Reporter(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reporter.gone)
            await trio.testing.wait_all_tasks_blocked()
            for message in told:
                reporter.tell(message)
            heard = await trio.to_thread.run_sync(read_all, theirs, MANY)
            nursery.cancel_scope.cancel()
        return heard

    assert [REPORTS.read(message) for message in trios.run(scene)] == told
    assert os.get_blocking(ours.fileno())


def test_the_last_words_wait_for_room(ends: Ends) -> None:
    """What did not fit when the loop ended is sent then."""
    ours, theirs = ends
    reporter = Reporter(ours)

    async def scene() -> None:
        for number in range(MANY):
            reporter.tell(Progress(f"{number:200}"))

    trios.run(scene)

    async def ending() -> list[channel.Message]:
        heard: list[channel.Message] = []

        async def hear() -> None:
            heard.extend(await trio.to_thread.run_sync(read_all, theirs, MANY))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await trio.to_thread.run_sync(reporter.finish)
        return heard

    assert [int(message["progress"]) for message in trios.run(ending)] == list(range(MANY))


def test_nobody_listens(ends: Ends) -> None:
    ends[1].close()

    async def scene() -> None:
        reporter = Reporter(ends[0])
        for _ in range(MANY):
            reporter.progress("on the way")
        with trio.fail_after(BOUND):
            await reporter.gone()
        reporter.finish()

    trios.run(scene)
