"""Find out what is on a medium."""

from dataclasses import dataclass

import trio

from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import MachineSettings
from mountsafe.encrypted.description import Description
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.windows import why_read_only
from mountsafe.session.finding import inspect_medium, machine_settings, open_storage
from mountsafe.session.machines import Listener, Machines
from mountsafe.session.storage import Storage
from mountsafe.session.unlocking import key_process
from mountsafe.trios import run


@dataclass(frozen=True, slots=True)
class Found:
    """What is on a medium; `size` is that of the disk in it, in bytes.

    `encrypted`: what is known of encrypted volumes without a key, by their names, or why nothing is. `read_only`: of
    each file system, by its name, why `mount --write` cannot have it changed, or "".
    """

    size: int
    volumes: list[Volume]
    encrypted: dict[str, Description | UserError]
    read_only: dict[str, str]


def inspected(medium: Medium, verbose: bool = False, listener: Listener | None = None) -> Found:
    """Return what a virtual machine finds on a medium, which is closed then. Blocks. Raises UserError.

    `listener` hears what is being done, and what is worse than it might be.
    """
    return run(_find, medium, verbose, listener)


async def _find(medium: Medium, verbose: bool, listener: Listener | None) -> Found:
    with machine_settings(verbose) as (settings, acceleration):
        return await _find_with(medium, settings, acceleration, listener)


async def _described(storage: Storage, volume: Volume) -> Description | UserError:
    try:
        async with key_process(storage, volume) as process:
            return await process.describe()
    except UserError as error:
        return error
    except MountsafeError as error:
        return UserError(f"its header cannot be read: {error}", "--verbose shows more.", ExitCode.APPLIANCE)


async def _find_with(
    medium: Medium, settings: MachineSettings, acceleration: Acceleration, listener: Listener | None
) -> Found:
    async with trio.open_nursery() as nursery:
        storage = Storage(medium, nursery)
        machines = Machines(settings, acceleration, storage, nursery, listener)
        try:
            await open_storage(storage)
            volumes = await inspect_medium(machines, nursery)
            encrypted = {volume.name: await _described(storage, volume) for volume in volumes if volume.encrypted}
            mountable = [volume for volume in volumes if volume.mountable]
            read_only = {each.name: why_read_only(each, volumes, storage.size, medium) for each in mountable}
            return Found(storage.size, volumes, encrypted, read_only)
        finally:
            await machines.close()
            nursery.cancel_scope.cancel()
