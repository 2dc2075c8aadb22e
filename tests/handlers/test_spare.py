"""The supervisor that waits for the next medium: given out once, seen off and replaced when it dies, not forgotten."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
import trio

from mountsafe import trios
from mountsafe.daemon import spare as spares
from mountsafe.daemon.spare import Spare
from mountsafe.system.units import Unit

PATIENCE = 20.0


class StandInStarting:
    """A process that waits, as a supervisor does. `made`: all of them. Starting one waits for `may_start`."""

    made: list["StandInStarting"]
    begun: int
    may_start: threading.Event

    def __init__(self, spare: bool = False, unit: Unit | None = None) -> None:
        type(self).begun += 1
        self.may_start.wait(PATIENCE)
        self.spare = spare
        self.ended = 0
        self._process = subprocess.Popen(["sleep", "infinity"])
        self.pid = self._process.pid
        self.made.append(self)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self.ended += 1
        self._process.kill()
        self._process.wait()


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StandInStarting]]:
    StandInStarting.made, StandInStarting.begun, StandInStarting.may_start = [], 0, threading.Event()
    StandInStarting.may_start.set()
    monkeypatch.setattr(spares, "Starting", StandInStarting)
    monkeypatch.setattr(spares, "REST", 0.01)
    yield StandInStarting.made
    assert [each.spare for each in StandInStarting.made if each.alive] == []


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await trio.sleep(0.01)


def kept(play: Callable[[Spare], object]) -> None:
    """Keep a spare one while `play`, an async function, does something with it."""

    async def run() -> None:
        spare = Spare(True, Unit)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spare.run)
            with trio.fail_after(PATIENCE):
                await play(spare)  # type: ignore[misc]
            nursery.cancel_scope.cancel()

    trios.run(run)


def test_each_is_given_to_one_medium_and_replaced(made: list[StandInStarting]) -> None:
    async def play(spare: Spare) -> None:
        for number in range(3):
            await until(lambda: len(made) > number and spare._ready is not None)  # noqa: B023  # called at once
            taken = await spare.take()
            assert taken.pid == made[number].pid
            assert made[number].spare
            taken.end()
        await until(lambda: spare._ready is not None)

    kept(play)
    assert [each.ended for each in made] == [1] * 4


def test_one_that_dies_while_it_waits_is_seen_off_and_replaced(made: list[StandInStarting]) -> None:
    async def play(spare: Spare) -> None:
        await until(lambda: spare._ready is not None)
        os.kill(made[0].pid, signal.SIGKILL)
        await until(lambda: len(made) == 2 and spare._ready is not None)
        taken = await spare.take()
        assert taken.pid == made[1].pid
        taken.end()

    kept(play)
    assert made[0].ended == 1


def test_one_that_is_dead_already_is_not_given_out(made: list[StandInStarting]) -> None:
    async def play(spare: Spare) -> None:
        await until(lambda: spare._ready is not None)
        os.kill(made[0].pid, signal.SIGKILL)
        made[0]._process.wait()  # and nothing is awaited, so nobody has noticed
        taken = await spare.take()
        assert taken.pid != made[0].pid
        assert taken.alive
        taken.end()

    kept(play)
    assert made[0].ended == 1


def test_a_medium_that_comes_while_one_is_started_costs_none(made: list[StandInStarting]) -> None:
    """It gets one of its own; the one that was being started is ready for the next medium, and no third is made."""

    async def play(spare: Spare) -> None:
        StandInStarting.may_start.clear()
        await until(lambda: StandInStarting.begun == 1)
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                (await spare.take()).end()

            nursery.start_soon(take)
            await until(lambda: StandInStarting.begun == 2)
            StandInStarting.may_start.set()
        await until(lambda: spare._ready is not None)
        ready = spare._ready
        await trio.sleep(20 * spares.REST)
        assert spare._ready is ready
        assert len(made) == 2

    kept(play)


def test_none_is_left_when_the_daemon_ends(made: list[StandInStarting]) -> None:
    async def play(spare: Spare) -> None:
        await until(lambda: spare._ready is not None)

    kept(play)
    assert [each.ended for each in made] == [1]
