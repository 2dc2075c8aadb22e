"""Find out what is on a medium."""

from dataclasses import dataclass

import trio

from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import MachineSettings
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.session.finding import inspect_medium, machine_settings, open_storage
from mountsafe.session.machines import Listener, Machines
from mountsafe.session.storage import Storage
from mountsafe.trios import run


@dataclass(frozen=True, slots=True)
class Found:
    """What is on a medium; `size` is that of the disk in it, in bytes."""

    size: int
    volumes: list[Volume]


def inspected(medium: Medium, verbose: bool = False, listener: Listener | None = None) -> Found:
    """Return what a virtual machine finds on a medium, which is closed then. Blocks. Raises UserError.

    `listener` hears what is being done, and what is worse than it might be.
    """
    return run(_find, medium, verbose, listener)


async def _find(medium: Medium, verbose: bool, listener: Listener | None) -> Found:
    with machine_settings(verbose) as (settings, acceleration):
        return await _find_with(medium, settings, acceleration, listener)


async def _find_with(
    medium: Medium, settings: MachineSettings, acceleration: Acceleration, listener: Listener | None
) -> Found:
    async with trio.open_nursery() as nursery:
        storage = Storage(medium, nursery)
        machines = Machines(settings, acceleration, storage, nursery, listener)
        try:
            await open_storage(storage)
            return Found(storage.size, await inspect_medium(machines, nursery))
        finally:
            await machines.close()
            nursery.cancel_scope.cancel()
