"""One virtual machine, used for long: what it lends must come back."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from mountsafe import trios
from mountsafe.appliance.client import AgentClient
from mountsafe.appliance.machine import Machine
from mountsafe.errors import MountsafeError
from mountsafe.limits import MAX_MOUNTS
from mountsafe.medium.source import open_medium
from mountsafe.session.ahead import started_ahead
from mountsafe.session.finding import machine_settings
from mountsafe.session.machines import Listener, started
from tests.vm.sight import Looking

STREAMS = 70  # more than twice what it has ports for
PLUGS = 3
BURSTS = 4  # of as many streams as a medium can have at a time


async def _greet(machine: Machine, nursery: trio.Nursery) -> int:
    """Ask over a new stream what is plugged in, and end the stream; return how many volumes were found."""
    client = AgentClient(await machine.open_stream())
    nursery.start_soon(client.run)
    await client.hello()
    found = len(await client.probe())
    client.end(MountsafeError("done"))
    return found


def test_streams_and_media_that_went_leave_room_for_others(looking: Looking, image: Callable[[str], Path]) -> None:
    async def main() -> None:
        with machine_settings(False) as (settings, acceleration):
            async with trio.open_nursery() as nursery:
                machine = await started(settings, acceleration, nursery, Listener())
                try:
                    for _ in range(PLUGS):
                        medium = open_medium(image("romfs"))
                        await machine.attach(medium.fd)
                        os.close(medium.fd)
                        for _ in range(STREAMS // PLUGS):
                            assert await _greet(machine, nursery) == 1
                        await machine.detach()
                finally:
                    await machine.stop()
                nursery.cancel_scope.cancel()

    trios.run(main)


def test_a_stream_that_was_opened_before_there_is_a_disk_finds_it(
    looking: Looking, image: Callable[[str], Path]
) -> None:
    """It is the one that is given first; one that nobody took ends with the machine."""

    async def main() -> None:
        with machine_settings(False) as (settings, acceleration):
            async with trio.open_nursery() as nursery:
                machine = await started_ahead(partial(started, settings, acceleration, nursery, Listener()))
                try:
                    opened = machine._ahead
                    assert opened is not None
                    medium = open_medium(image("romfs"))
                    await machine.attach(medium.fd)
                    os.close(medium.fd)
                    assert await _greet(machine, nursery) == 1
                    assert opened.fileno() == -1  # it was that one
                    assert await _greet(machine, nursery) == 1
                    await machine.open_ahead()
                finally:
                    left = machine._ahead
                    await machine.stop()
                assert left is not None
                assert left.fileno() == -1
                nursery.cancel_scope.cancel()

    trios.run(main)


async def _lost(machine: Machine, nursery: trio.Nursery) -> list[str]:
    """Open as many streams as a medium may need, as fast as it goes, ask over each, then end all of them at once.

    Return why those had no answer that had none.
    """
    clients = [AgentClient(await machine.open_stream()) for _ in range(MAX_MOUNTS + 1)]
    lost = []

    async def ask(client: AgentClient) -> None:
        try:
            await client.hello()
        except MountsafeError as error:
            lost.append(str(error))

    async with trio.open_nursery() as asking:
        for client in clients:
            nursery.start_soon(client.run)
            asking.start_soon(ask, client)
    for client in clients:
        client.end(MountsafeError("done"))
    return lost


def test_each_of_many_streams_that_are_opened_at_once_is_answered(looking: Looking) -> None:
    async def main() -> None:
        with machine_settings(False) as (settings, acceleration):
            async with trio.open_nursery() as nursery:
                machine = await started(settings, acceleration, nursery, Listener())
                try:
                    for _ in range(BURSTS):
                        assert await _lost(machine, nursery) == []
                finally:
                    await machine.stop()
                nursery.cancel_scope.cancel()

    trios.run(main)
