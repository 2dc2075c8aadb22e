"""`daemon`: the system service, in the foreground."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

from mountsafe import sandbox
from mountsafe.appliance import build
from mountsafe.cli import screen
from mountsafe.cli.policies import Rules
from mountsafe.cli.typers import App, option
from mountsafe.daemon import journal
from mountsafe.errors import ExitCode, NoRight, UserError
from mountsafe.limits import IDLE, MAX_MEDIA, MEDIUM_CPU_PERCENT, MEDIUM_MEMORY_MIB, MEDIUM_PROCESSES
from mountsafe.policy import files
from mountsafe.session.mounter import require_fuse

HIDDEN = "/run/mountsafe/hidden"  # desktops show what is mounted in /run/media, /media and the user's home


def register(app: App) -> None:
    """Add the verb."""
    app.command(epilog="Example: [bold]sudo mountsafe daemon --user alice[/bold] (without systemd-logind)")(daemon)


def daemon(  # noqa: PLR0913  # a parameter for each option, as typer wants it
    rules: Rules = files.FOLDER,
    user: Annotated[
        str | None,
        option(metavar="NAME", help="Show media to this user, not to the one at the seat.", show_default=False),
    ] = None,
    media: Annotated[Path, option(metavar="DIR", help="Show them in a folder of the user in here.")] = Path(
        "/run/media"
    ),
    most: Annotated[int, option(min=1, metavar="NUMBER", help="Keep so many media at a time.")] = MAX_MEDIA,
    idle: Annotated[
        float, option(min=0, metavar="SECONDS", help="End an unused virtual machine after; 0 for never.")
    ] = IDLE,
    spare: Annotated[
        bool, option("--spare", help="Keep a virtual machine ready for the next medium: faster, for its memory.")
    ] = False,
    memory: Annotated[
        int, option(min=512, metavar="MIB", help="Memory of a medium's processes (with systemd).")
    ] = MEDIUM_MEMORY_MIB,
    cpu: Annotated[
        int, option(min=10, metavar="PERCENT", help="Their processors' time; 100 is one (with systemd).")
    ] = MEDIUM_CPU_PERCENT,
) -> None:
    """Claim media when they are plugged in, and show their files to the user at the seat.

    It stays in the foreground and logs to stderr, as systemd likes it. SIGHUP reads the rules anew.
    """
    if os.geteuid() != 0:
        raise NoRight("the daemon needs root's rights")
    sandbox.require()
    require_fuse()
    journal.start()
    with screen.progress(quiet=False) as progress:
        build.ensure(progress)
    from mountsafe.daemon import person
    from mountsafe.daemon.service import Service
    from mountsafe.daemon.showing import DisplaySettings
    from mountsafe.daemon.spare import Spare
    from mountsafe.system.units import for_medium
    from mountsafe.trios import run

    try:
        found = None if user is None else person.by_name(user)
    except KeyError as error:
        raise UserError(f"there is no user {user}", "Name one of this machine.", ExitCode.USAGE) from error
    who = person.at_seat if found is None else lambda: found
    supervisors = Spare(spare, partial(for_medium, memory, cpu, MEDIUM_PROCESSES))
    run(Service(rules, DisplaySettings(who, str(media), HIDDEN, idle, supervisors), most).run)
