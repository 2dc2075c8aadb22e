"""A virtual machine that is started before there is a disk for it."""

from typing import Any

import pytest
import trio
import trio.testing

from mountsafe.errors import GuestGone
from mountsafe.session.ahead import Ahead
from tests.handlers.test_machines import FakeMachine


class Starter:
    """Starts machines when it is let."""

    def __init__(self) -> None:
        self.may = trio.Event()
        self.error: Exception | None = None
        self.refuses = ""
        self.begun = 0
        self.made: list[Any] = []

    async def start(self) -> Any:
        self.begun += 1
        await self.may.wait()
        if self.error is not None:
            raise self.error
        self.made.append(FakeMachine(self.refuses))
        return self.made[-1]


async def test_it_is_had_as_soon_as_it_runs() -> None:
    async with trio.open_nursery() as nursery:
        starter = Starter()
        ahead = Ahead(starter.start, nursery)
        ahead.begin()
        ahead.begin()
        await trio.testing.wait_all_tasks_blocked()
        starter.may.set()
        assert await ahead.taken() is starter.made[0]
        assert starter.begun == 1
        await ahead.end()
        assert not starter.made[0].dead.is_set()
        assert await ahead.taken() is None


async def test_who_does_not_begin_it_has_none() -> None:
    async with trio.open_nursery() as nursery:
        assert await Ahead(Starter().start, nursery).taken() is None


async def test_one_that_does_not_start_is_none() -> None:
    async with trio.open_nursery() as nursery:
        starter = Starter()
        starter.error = GuestGone("no")
        starter.may.set()
        ahead = Ahead(starter.start, nursery)
        ahead.begin()
        assert await ahead.taken() is None


async def test_one_that_gives_no_stream_is_ended() -> None:
    async with trio.open_nursery() as nursery:
        starter = Starter()
        starter.refuses = "stream"
        starter.may.set()
        ahead = Ahead(starter.start, nursery)
        ahead.begin()
        assert await ahead.taken() is None
        assert starter.made[0].dead.is_set()


@pytest.mark.parametrize("runs", [False, True])
async def test_one_that_nobody_takes_is_ended_and_another_can_be_begun(runs: bool) -> None:
    async with trio.open_nursery() as nursery:
        starter = Starter()
        ahead = Ahead(starter.start, nursery)
        for number in range(2):
            starter.may = trio.Event()
            ahead.begin()
            await trio.testing.wait_all_tasks_blocked()
            if runs:
                starter.may.set()
                await trio.testing.wait_all_tasks_blocked()
            await ahead.end()
            assert [machine.dead.is_set() for machine in starter.made] == [True] * (number + 1 if runs else 0)
        assert starter.begun == 2


async def test_one_that_runs_already_is_taken_or_ended() -> None:
    async with trio.open_nursery() as nursery:
        for taken in (True, False):
            machine: Any = FakeMachine()
            ahead = Ahead(Starter().start, nursery, machine)
            if taken:
                assert await ahead.taken() is machine
            await ahead.end()
            assert machine.dead.is_set() is not taken
