"""`mount` and `unmount`."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mountsafe.cli import already, completion, screen
from mountsafe.cli.opening import begin
from mountsafe.cli.options import (
    Force,
    Format,
    FormatOption,
    FsType,
    Json,
    MountOption,
    Offset,
    Partition,
    SectorSize,
    SizeLimit,
    Source,
    Timezone,
    Verbose,
    Write,
    named,
)
from mountsafe.cli.shown import ShownMedium, shown
from mountsafe.cli.sizes import checked_part
from mountsafe.cli.typers import App, argument, option
from mountsafe.cli.unlocking import BigMemory, Header, Hidden, KeyFd, KeyFile, Keys, Pim, RecoveryKey, unlocker
from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import IDLE, INDEX_ENTRIES
from mountsafe.medium.exclusive import open_for_writing
from mountsafe.medium.options import checked_options, checked_sectors, checked_type
from mountsafe.medium.source import open_medium
from mountsafe.session import running
from mountsafe.session.order import MountOptions
from mountsafe.session.record import READ_ONLY, Record
from mountsafe.session.start import Starting
from mountsafe.system import zones
from mountsafe.text import shown_path

MISSING_SHOWN = 10  # file systems of a medium that a person is told of one by one


class Owner(StrEnum):
    """Whose the files appear to be."""

    USER = "user"
    IMAGE = "image"


class Links(StrEnum):
    """What symbolic links do."""

    NOFOLLOW = "nofollow"
    CONTAINED = "contained"
    FOLLOW = "follow"


def register(app: App) -> None:
    """Add the verbs."""
    app.command(epilog=_MOUNT_EXAMPLES)(mount)
    app.command(epilog="Examples: [bold]mountsafe unmount ~/mnt[/bold], [bold]mountsafe unmount --all[/bold]")(unmount)


_MOUNT_EXAMPLES = (
    "Examples: [bold]mountsafe mount suspicious.img ~/mnt[/bold], "
    "[bold]mountsafe mount disk.img ~/mnt --partition 2[/bold], "
    "[bold]mountsafe mount floppy.adf ~/mnt --type affs[/bold], "
    "[bold]mountsafe mount machine.vmdk ~/mnt[/bold], "
    "[bold]mountsafe mount odd.img ~/mnt --format raw[/bold], "
    "[bold]mountsafe mount copy.img ~/mnt --sector-size 4096[/bold], "
    "[bold]mountsafe mount dump.bin ~/mnt --offset 1MiB --sizelimit 512MiB[/bold], "
    "[bold]mountsafe mount card.img ~/mnt --timezone Asia/Tokyo[/bold], "
    "[bold]mountsafe mount disc.iso ~/mnt -o map=off[/bold], "
    "[bold]mountsafe mount --write disk.img ~/mnt[/bold], "
    "[bold]mountsafe mount luks.img ~/mnt --key-file secret[/bold], "
    "[bold]mountsafe mount container.hc ~/mnt --type veracrypt[/bold], "
    "[bold]sudo mountsafe mount /dev/sdb[/bold]"
)


def mount(  # noqa: PLR0913  # a parameter for each option, as typer wants it
    source: Source,
    directory: Annotated[
        Path | None,
        argument(
            metavar="[DIR]",
            help="An empty or new folder; without it, one is made in ~/mountsafe.",
            show_default=False,
            readable=False,
        ),
    ] = None,
    partition: Partition = None,
    fstype: FsType = None,
    format_: FormatOption = Format.AUTO,
    sector_size: SectorSize = None,
    offset: Offset = None,
    sizelimit: SizeLimit = None,
    mount_option: MountOption = None,
    write: Write = False,
    key_file: KeyFile = None,
    key_fd: KeyFd = None,
    recovery_key: RecoveryKey = False,
    header: Header = None,
    pim: Pim = 0,
    hidden: Hidden = False,
    big_memory: BigMemory = False,
    owner: Annotated[Owner, option(help="Show the files as yours, or as the image says.")] = Owner.USER,
    links: Annotated[
        Links,
        option(
            help="Symbolic links: not followed where the kernel supports that, and never out of the mount; "
            "followed inside the mount; or followed anywhere."
        ),
    ] = Links.NOFOLLOW,
    idle: Annotated[
        float,
        option(min=0, metavar="SECONDS", help="Stop the virtual machine after so long without use; 0 for never."),
    ] = IDLE,
    entries: Annotated[
        int,
        option(min=1000, metavar="NUMBER", help="How many of the tree's entries to remember, at about 1 KiB each."),
    ] = INDEX_ENTRIES,
    timezone: Timezone = "",
    foreground: Annotated[bool, option("--foreground", help="Stay until Ctrl-C, then unmount.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Mount an image or a device through a virtual machine: read-only, unless --write says otherwise.

    A source with several file systems mounts each in a folder of its own under DIR, unless --partition chooses.
    What the policy refuses is left out: mountsafe policy explain SOURCE names the rule.
    """
    fstype = checked_type(fstype, partition)
    keys = Keys(tuple(key_file or ()), key_fd, recovery_key, header, pim, hidden, big_memory)
    keys.check()
    zones.rules_of(timezone)  # or an error, before anything is done
    options = MountOptions(
        *(partition, fstype, owner.value, links.value, verbose, foreground, idle, entries),
        judged=True,
        timezone=timezone,
        mount_options=checked_options(mount_option or [], fstype),
        unlock=True,
        write=write,
        key_named=keys.named(fstype),
    )
    kind, sectors, part = named(format_), checked_sectors(sector_size), checked_part(offset, sizelimit)
    if (there := shown(source) or already.mounted(source, options, kind, sectors, part)) is not None:
        _already(there, partition, json, write)
        return
    medium = open_medium(source, kind, sectors, part, already.lent(source))
    if write:
        medium = replace(medium, writable_fd=open_for_writing(medium))
    starting, record = begin(medium, directory, options, json, unlocker(keys))
    if json:
        screen.print_json(record.facts())
    else:
        _tell(record)
    for mounted in record.mounts:
        if mounted.read_only:
            screen.warn(mounted.read_only)
    tell_missing(record)
    if foreground:
        _stay(starting, quiet=json)
    if record.missing:
        raise typer.Exit(int(ExitCode.PARTIAL))


def _tell(record: Record) -> None:
    for mounted in record.mounts:
        label = f' "{mounted.label}"' if mounted.label else ""
        where = f", unlocked from {mounted.encryption}" if mounted.encryption else ""
        screen.say(f"mounted {mounted.fstype}{label}{where} on {shown_path(mounted.target)} ({mounted.access})")
        if mounted.note:
            screen.warn(mounted.note)


def tell_missing(record: Record) -> None:
    """Say which file systems are not there, and why: on stderr, so for programs too."""
    for one in record.missing[:MISSING_SHOWN]:
        screen.warn(one.message)
    if len(record.missing) > MISSING_SHOWN:
        screen.warn("more are missing: mountsafe list --json shows them")


def _stay(starting: Starting, quiet: bool) -> None:
    if not quiet:
        screen.note("Ctrl-C unmounts")
    try:
        starting.wait()
    except KeyboardInterrupt:
        starting.end()


def _already(medium: ShownMedium | Record, partition: str | None, json: bool, write: bool) -> None:
    """Say where a medium is that is mounted already, or the part of it that is asked for. Raises UserError (TARGET)."""
    if write and isinstance(medium, ShownMedium):
        hint = "mountsafe eject lets go of it; then it can be mounted with --write."
        raise UserError(f"{medium.source} is shown by the daemon, {READ_ONLY}", hint, ExitCode.TARGET)
    if json:
        screen.print_json(medium.facts())
    elif isinstance(medium, ShownMedium):
        for folder in medium.folders:
            screen.say(f"{medium.source} is already shown on {folder.target}, by the daemon")
    else:
        for mounted in [each for each in medium.mounts if each.name == partition] or medium.mounts:
            screen.say(f"{shown_path(medium.source)} is already mounted on {shown_path(mounted.target)}")
    if isinstance(medium, Record) and medium.missing and partition is None:
        tell_missing(medium)
        raise typer.Exit(int(ExitCode.PARTIAL))


def unmount(
    # Text, for typer looks at a path, and whoever looks at a mount waits for its process.
    names: Annotated[
        list[str] | None,
        argument(
            metavar="[DIR|SOURCE]...",
            help="Mount points or sources.",
            show_default=False,
            autocompletion=completion.mounts,
        ),
    ] = None,
    everything: Annotated[bool, option("--all", "-a", help="Unmount everything that is yours.")] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Unmount, and return when the virtual machine and all its processes are gone."""
    if (not names) == (not everything):
        raise UserError("name a mount point or source, or use --all", "mountsafe list shows them.", ExitCode.USAGE)
    gone: list[str] = []
    failed: list[UserError] = []
    if everything:
        gone = running.unmount_all(force, screen.note)
    for name in names or []:
        try:
            gone.append(running.unmount_one(Path(name), force, screen.note))
        except UserError as error:  # the others have nothing to do with it
            failed.append(error)
    if json and not failed:
        screen.print_json({"unmounted": gone})
    elif not json:
        for source in gone:
            screen.say(f"unmounted {shown_path(source)}")
    if failed:
        for other in failed[1:]:
            screen.warn(f"{other.message}. {other.hint}")
        raise failed[0]
