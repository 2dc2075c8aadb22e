"""`inspect`: what is on a medium, found inside the virtual machine."""

import trio
import typer

from mountsafe import sandbox
from mountsafe.appliance import build
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import MachineSettings
from mountsafe.cli import screen
from mountsafe.cli.mounting import Json, Source, Verbose
from mountsafe.medium.source import Medium, open_medium
from mountsafe.medium.volumes import Volume
from mountsafe.session.machines import Machines
from mountsafe.session.supervisor import inspect_medium, machine_settings
from mountsafe.text import size


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(epilog="Example: [bold]mountsafe inspect disk.img --json[/bold]")(inspect)


def inspect(source: Source, json: Json = False, verbose: Verbose = False) -> None:
    """Show the partitions and file systems of an image or a device, and how risky each type is to mount."""
    medium = open_medium(source)
    volumes = find(medium, json or verbose, verbose)
    if json:
        facts = {"source": str(medium.path), "size": medium.size, "volumes": [volume.facts() for volume in volumes]}
        screen.print_json(facts)
    else:
        _tell(medium, volumes)


def find(medium: Medium, quiet: bool, verbose: bool = False) -> list[Volume]:
    """Return what a virtual machine finds on a medium; `quiet`: no progress is shown."""
    sandbox.require()
    with screen.progress(quiet) as progress:
        build.ensure(progress)
        progress("starting the virtual machine")
        return trio.run(_find, medium, verbose)


async def _find(medium: Medium, verbose: bool) -> list[Volume]:
    with machine_settings(verbose) as (settings, acceleration):
        return await _find_with(medium, settings, acceleration)


async def _find_with(medium: Medium, settings: MachineSettings, acceleration: Acceleration) -> list[Volume]:
    async with trio.open_nursery() as nursery:
        machines = Machines(settings, acceleration, medium, nursery)
        try:
            return await inspect_medium(machines, medium, nursery)
        finally:
            await machines.close()
            nursery.cancel_scope.cancel()


def _tell(medium: Medium, volumes: list[Volume]) -> None:
    screen.say(f"{medium.name}: {size(medium.size)}")
    rows = []
    for volume in volumes:
        facts = volume.facts()
        what = volume.fstype or (f"{volume.table} table" if volume.table else "-")
        number = str(volume.number) if volume.kind == "partition" else volume.kind
        risk = f"{facts['risk']}: {facts['risk_reason']}" if volume.mountable else ""
        if volume.encrypted:
            risk = "encrypted: what is inside cannot be seen"
        rows.append([number, what, volume.label, volume.uuid, size(volume.size), risk])
    screen.table(["PART", "TYPE", "LABEL", "UUID", "SIZE", "RISK"], rows)
