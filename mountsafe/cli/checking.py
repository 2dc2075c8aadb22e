"""`check`: whether the file systems of a medium have errors, by their own checkers inside the virtual machine."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from mountsafe.cli import screen
from mountsafe.cli.inspecting import Shown
from mountsafe.cli.opening import prepared
from mountsafe.cli.options import (
    Format,
    FormatOption,
    FsType,
    Json,
    Offset,
    SectorSize,
    SizeLimit,
    Source,
    Verbose,
    named,
)
from mountsafe.cli.sizes import checked_part
from mountsafe.cli.typers import App, option
from mountsafe.cli.unlocking import BigMemory, Header, Hidden, KeyFd, KeyFile, Keys, Pim, RecoveryKey, unlocker
from mountsafe.errors import ExitCode, UserError
from mountsafe.jobs.checking import Approve, Wish, checked
from mountsafe.jobs.checks import Checks, Outcome, Result
from mountsafe.limits import CHECK_SECONDS
from mountsafe.medium.exclusive import open_for_writing
from mountsafe.medium.options import checked_sectors, checked_type
from mountsafe.medium.source import Medium, explained, open_medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.wrappers import NOTHING_FOUND
from mountsafe.session.start import Unlock

LINES = 20  # of a checker's that a person is shown
WORDS = {
    Outcome.CLEAN: "no errors",
    Outcome.ERRORS: "has errors",
    Outcome.REPAIRED: "had errors, which were repaired",
}


def register(app: App) -> None:
    """Add the verb."""
    app.command(
        epilog="Examples: [bold]mountsafe check disk.img[/bold], "
        "[bold]sudo mountsafe check /dev/sdb -p 1 --repair[/bold], [bold]mountsafe check disk.img --json[/bold]"
    )(check)


def check(  # noqa: PLR0913  # a parameter for each option, as typer wants it
    source: Source,
    partition: Annotated[
        str | None,
        option("--partition", "-p", metavar="NUMBER|NAME", help="Check this one only, as inspect calls it."),
    ] = None,
    fstype: FsType = None,
    format_: FormatOption = Format.AUTO,
    sector_size: SectorSize = None,
    offset: Offset = None,
    sizelimit: SizeLimit = None,
    key_file: KeyFile = None,
    key_fd: KeyFd = None,
    recovery_key: RecoveryKey = False,
    header: Header = None,
    pim: Pim = 0,
    hidden: Hidden = False,
    big_memory: BigMemory = False,
    time_limit: Annotated[
        int,
        option("--time-limit", min=1, max=1_000_000, metavar="SECONDS", help="For each file system."),
    ] = CHECK_SECONDS,
    repair: Annotated[
        bool, option("--repair", help="Then repair what has errors, on the medium; asks before it writes.")
    ] = False,
    yes: Annotated[bool, option("--yes", "-y", help="Repair without asking.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Look for errors in the file systems of an image or a device. Nothing is written to it without --repair.

    Each type's own checker (e2fsck, fsck.fat, xfs_repair and so on) looks, inside the virtual machine.
    """
    if repair and not yes and (json or not sys.stdin.isatty()):
        raise UserError("nobody can be asked whether to repair", "--yes repairs without asking.", ExitCode.USAGE)
    fstype = checked_type(fstype, partition)
    keys = Keys(tuple(key_file or ()), key_fd, recovery_key, header, pim, hidden, big_memory)
    keys.check()
    part = checked_part(offset, sizelimit)
    medium = open_medium(source, named(format_), checked_sectors(sector_size), part)
    nothing = explained(medium, UserError(f"{NOTHING_FOUND} on {medium.name}"))  # it is closed when it was looked at
    if repair:
        medium = replace(medium, writable_fd=open_for_writing(medium, "Without --repair it is only looked at."))
    wish = Wish(partition, fstype, time_limit, verbose, repair)
    try:
        found = _find(medium, wish, json or verbose, unlocker(keys), partial(_approved, medium, yes))
    except UserError as error:
        raise (nothing if nothing.hint and error.message.startswith(NOTHING_FOUND) else error) from error
    if json:
        facts = {"source": str(medium.path), "format": medium.format, "offset": part.offset, "size": found.size}
        screen.print_json(facts | found.facts())
    else:
        _tell(medium, found, verbose)
    if code := found.code():
        raise typer.Exit(int(code))


def _approved(medium: Medium, yes: bool, volumes: Sequence[Volume]) -> bool:
    """Ask whether file systems with errors are to be repaired."""
    if yes:
        return True
    with screen.paused():
        for volume in volumes:
            screen.note(f"{volume.describe()}: has errors")
        screen.note("A repair changes it, and can lose files that are damaged. No copy is made before.")
        return typer.confirm(f"Write to {medium.name}?", err=True)


def _find(medium: Medium, wish: Wish, quiet: bool, unlock: Unlock, approve: Approve) -> Checks:
    with prepared(medium, quiet) as progress:
        progress("starting the virtual machine")
        return checked(medium, wish, Shown(progress), unlock, approve)


def _tell(medium: Medium, found: Checks, verbose: bool) -> None:
    for result in found.results:
        screen.say(f"{medium.name}: {result.volume.describe()}: {WORDS.get(result.outcome) or 'not checked'}")
        for words in filter(None, (result.why, result.note)):
            screen.say(f"  {words}")
        if result.words and (verbose or result.outcome is not Outcome.CLEAN):
            _tell_words(result, verbose)
    for missing in found.missing:
        screen.warn(missing.message)


def _tell_words(result: Result, verbose: bool) -> None:
    screen.say(f"  {result.checker} says:")
    shown = result.words if verbose else result.words[:LINES]
    for line in shown:
        screen.say(f"    {line}")
    if len(shown) < len(result.words):
        screen.say(f"    {len(result.words) - len(shown)} more lines: --verbose or --json shows them")
