"""One virtual machine, used for long: what it lends must come back."""

import os
from collections.abc import Callable
from pathlib import Path

import trio

from mountsafe import trios
from mountsafe.appliance.client import AgentClient
from mountsafe.appliance.machine import Machine
from mountsafe.errors import MountsafeError
from mountsafe.medium.source import open_medium
from mountsafe.session.machines import Listener, started
from mountsafe.session.supervisor import machine_settings
from tests.vm.sight import Looking

STREAMS = 70  # more than twice what it has ports for
PLUGS = 3


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
