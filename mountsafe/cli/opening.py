"""An open medium becomes a mount: what that needs is looked for, the supervisor is started and followed."""

import re
import signal
import threading
from pathlib import Path

from mountsafe import sandbox
from mountsafe.appliance import build
from mountsafe.cli import screen
from mountsafe.cli.judging import judge_of
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.formats import Format
from mountsafe.medium.source import Medium, explained
from mountsafe.session.messages import MountOptions, Record
from mountsafe.session.mounter import require_fuse
from mountsafe.session.start import Starting, Unlock
from mountsafe.session.targets import prepare_target


def begin(
    medium: Medium, directory: Path | None, options: MountOptions, quiet: bool, unlock: Unlock | None = None
) -> tuple[Starting, Record]:
    """Mount what the policy lets be shown; return the supervisor and the record when it is there. Raises UserError.

    Without a `directory` one is made. Interrupted, it leaves nothing; `quiet`: nothing is said of how far it is.
    `unlock` has keys, if that is among the options.
    """
    sandbox.require()
    require_formats(medium)
    require_fuse()
    with screen.progress(quiet or options.verbose) as progress:
        build.ensure(progress)
        target = prepare_target(directory or default_target(medium))
        starting = Starting(options.verbose)
        starting.order(medium, target, options)
        try:
            record = starting.follow(progress, screen.warn, judge_of(medium), unlock)
            if not options.foreground and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the mount is there: Ctrl-C comes too late
        except KeyboardInterrupt:
            starting.abandon()
            if target.created:
                target.remove()  # unless the supervisor was faster
            raise
        except UserError as error:
            if target.created:
                target.remove()  # unless the supervisor was faster
            raise explained(medium, error) from error
    return starting, record


def require_formats(medium: Medium) -> None:
    """Raise UserError if what opens the medium's format is missing."""
    if medium.format is not Format.RAW:
        from mountsafe.container import opened  # with trio

        opened.require()


def default_target(medium: Medium) -> Path:
    """Return a new folder for a medium in ~/mountsafe, numbered if its name is taken."""
    parent = Path.home() / "mountsafe"
    parent.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.+-]+", "_", medium.path.stem).strip("._-") or "medium"
    for number in range(1, 1000):
        target = parent / (name if number == 1 else f"{name}-{number}")
        if not target.exists():
            return target
    raise UserError(f"{parent} is full of mounts", "Name a folder.", ExitCode.TARGET)
