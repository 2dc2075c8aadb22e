"""The first steps with a medium, for a mount and for any other job: how to start a virtual machine, what is there."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from mountsafe.appliance import build
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.appliance.machine import MachineSettings
from mountsafe.errors import DeadlinePassed, ExitCode, MountsafeError, UserError
from mountsafe.incidents import Incidents
from mountsafe.medium.volumes import Volume, checked
from mountsafe.session.machines import Machines
from mountsafe.session.storage import Storage


async def open_storage(storage: Storage) -> None:
    """Open the disk in the medium. Raises UserError (SOURCE if it is the image's fault)."""
    try:
        await storage.open()
    except UserError:
        raise
    except MountsafeError as error:
        raise UserError(str(error), "--verbose shows what it said.", ExitCode.APPLIANCE) from error


@asynccontextmanager
async def greeted(stream: socket.socket, nursery: trio.Nursery) -> AsyncIterator[AgentClient]:
    """Give whom to ask on a stream for once, who has been greeted. Raises what `AgentClient.hello` does."""
    client = AgentClient(stream)
    nursery.start_soon(client.run)
    try:
        await client.hello()
        yield client
    finally:
        client.end(MountsafeError("done"))


async def inspect_medium(machines: Machines, nursery: trio.Nursery) -> list[Volume]:
    """Return what the guest finds on the disk, which is open. Raises UserError (APPLIANCE)."""
    try:
        async with greeted(await machines.stream(machines.storage), nursery) as client:
            untrusted_volumes = await client.probe()
    except (GuestRefused, DeadlinePassed, MountsafeError, OSError) as error:
        raise UserError(str(error), "--verbose shows the virtual machine's console.", ExitCode.APPLIANCE) from error
    return checked(untrusted_volumes, machines.storage.size, Incidents())


@contextmanager
def machine_settings(verbose: bool) -> Iterator[tuple[MachineSettings, Acceleration]]:
    """Say how to start VMs here; meanwhile no newer build removes the appliance, which must have been built."""
    appliance = build.find()
    if appliance is None:
        raise UserError("the appliance is missing", "mountsafe appliance build", ExitCode.DEPENDENCY)
    with appliance.held():
        yield MachineSettings(appliance.path, verbose=verbose), build.acceleration()
