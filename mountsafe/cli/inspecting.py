"""`inspect`: what is on a medium, found inside the virtual machine."""

from collections.abc import Callable
from typing import Any

from mountsafe import codec
from mountsafe.cli import screen
from mountsafe.cli.opening import prepared
from mountsafe.cli.options import (
    Format,
    FormatOption,
    Json,
    Offset,
    SectorSize,
    SizeLimit,
    Source,
    Verbose,
    named,
)
from mountsafe.cli.sizes import checked_part
from mountsafe.cli.typers import App
from mountsafe.encrypted.description import words
from mountsafe.errors import UserError
from mountsafe.jobs.inspection import Found, inspected
from mountsafe.medium import formats
from mountsafe.medium.options import checked_sectors
from mountsafe.medium.source import Medium, explained, open_medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.wrappers import NOTHING_FOUND
from mountsafe.session.machines import Listener
from mountsafe.text import size


def register(app: App) -> None:
    """Add the verb."""
    app.command(
        epilog="Examples: [bold]mountsafe inspect disk.img --json[/bold], [bold]mountsafe inspect machine.vhdx[/bold], "
        "[bold]mountsafe inspect dump.bin --offset 1MiB[/bold]"
    )(inspect)


def inspect(
    source: Source,
    format_: FormatOption = Format.AUTO,
    sector_size: SectorSize = None,
    offset: Offset = None,
    sizelimit: SizeLimit = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show the partitions and file systems of an image or a device, and how risky each type is to mount."""
    part = checked_part(offset, sizelimit)
    medium = open_medium(source, named(format_), checked_sectors(sector_size), part)
    nothing = explained(medium, UserError(f"{NOTHING_FOUND} on {medium.name}"))  # it is closed when it was looked at
    found = find(medium, json or verbose, verbose)
    empty = not any(volume.fstype or volume.table for volume in found.volumes)
    note = ". ".join(filter(None, (nothing.message, nothing.hint))) if empty else ""
    if json:
        facts = {"source": str(medium.path), "format": medium.format, "offset": part.offset, "size": found.size}
        screen.print_json(facts | {"volumes": [_facts(volume, found) for volume in found.volumes], "note": note})
    else:
        _tell(medium, found)
        if note:
            screen.say(note)


def find(medium: Medium, quiet: bool, verbose: bool = False) -> Found:
    """Return what a virtual machine finds on a medium; `quiet`: no progress is shown."""
    with prepared(medium, quiet) as progress:
        progress("starting the virtual machine")
        return inspected(medium, verbose, Shown(progress))


class Shown(Listener):
    """Tells the person at the terminal."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def progress(self, what: str) -> None:
        """Show what is being done now."""
        super().progress(what)
        self._show(what)

    def warn(self, what: str) -> None:
        """Show what is worse than it might be."""
        super().warn(what)
        screen.warn(what)


def _tell(medium: Medium, found: Found) -> None:
    what = "" if medium.format is formats.Format.RAW else f"{medium.format}, a disk of "
    where = f", from byte {medium.part.offset} on" if medium.part.offset else ""
    screen.say(f"{medium.name}: {what}{size(found.size)}{where}")
    layered = any(volume.layers for volume in found.volumes)
    rows = []
    for volume in found.volumes:
        facts = volume.facts()
        what = volume.fstype or (f"{volume.table} table" if volume.table else "-")
        part = volume.kind if volume.kind == "disk" else volume.name
        risk = f"{facts['risk']}: {facts['risk_reason']}" if volume.mountable else ""
        if volume.encrypted:
            risk = "encrypted: what is inside cannot be seen"
        rows.append([part, *([" > ".join(volume.layers)] if layered else []), what, volume.label, volume.uuid])
        rows[-1] += [size(volume.size), risk]
    screen.table(["PART", *(["IN"] if layered else []), "TYPE", "LABEL", "UUID", "SIZE", "RISK"], rows)
    for volume in found.volumes:
        if volume.condition:
            screen.say(f"{volume.title}: {volume.condition}")
        if (about := found.encrypted.get(volume.name)) is not None:
            for line in [about.message] if isinstance(about, UserError) else words(about):
                screen.say(f"{volume.title}: {line}")


def _facts(volume: Volume, found: Found) -> dict[str, Any]:
    about, why = found.encrypted.get(volume.name), found.read_only.get(volume.name)
    if about is None:
        return volume.facts() | ({} if why is None else {"writable": not why, "read_only": why})
    told = {"error": about.message, "hint": about.hint} if isinstance(about, UserError) else codec.plain(about)
    return volume.facts() | {"encryption": told}
