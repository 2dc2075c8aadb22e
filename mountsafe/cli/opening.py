"""From an open medium to a mount: check that everything needed is there, start the supervisor and follow it."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mountsafe.cli import interrupts, screen
from mountsafe.errors import ExitCode, UserError
from mountsafe.jobs.judging import judge_of
from mountsafe.jobs.preparing import prepare
from mountsafe.medium.source import Medium, explained
from mountsafe.session.mounter import require_fuse
from mountsafe.session.order import MountOptions
from mountsafe.session.record import Record
from mountsafe.session.start import Starting, Unlock
from mountsafe.session.targets import prepare_target


def begin(
    medium: Medium, directory: Path | None, options: MountOptions, quiet: bool, unlock: Unlock | None = None
) -> tuple[Starting, Record]:
    """Mount what the policy lets be shown; return the supervisor and the record when it is there. Raises UserError.

    Without a `directory` one is made. Interrupted, it leaves nothing; `quiet`: nothing is said of how far it is.
    `unlock` has keys, if that is among the options.
    """
    require_fuse()
    with (
        prepared(medium, quiet or options.verbose) as progress,
        interrupts.Held() as held,
        closing(prepare_target(directory or default_target(medium))) as target,
    ):
        try:
            starting = Starting(options.verbose)
            starting.order(medium, target, options)
            try:
                with held.lifted():
                    record = starting.follow(progress, screen.warn, judge_of(medium, screen.warn), unlock)
                if not options.foreground:
                    interrupts.ignore()  # the mount is there: it comes too late
            except KeyboardInterrupt:
                starting.abandon()
                raise
        except BaseException as error:
            if target.created:
                target.remove()  # unless the supervisor was faster
            if isinstance(error, UserError):
                raise explained(medium, error) from error
            raise
    return starting, record


@contextmanager
def prepared(medium: Medium, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Make sure that what opens a medium in a virtual machine is there; yield what shows progress. Raises UserError.

    `quiet`: no progress is shown.
    """
    with screen.progress(quiet) as progress:
        prepare(medium, progress)
        yield progress


def default_target(medium: Medium) -> Path:
    """Return a new folder for a medium in ~/mountsafe, numbered if its name is taken. Raises UserError (TARGET)."""
    try:
        parent = Path.home() / "mountsafe"
    except RuntimeError as error:
        raise UserError("you have no home folder to mount in", "Name a folder.", ExitCode.TARGET) from error
    parent.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.+-]+", "_", medium.path.stem).strip("._-") or "medium"
    for number in range(1, 1000):
        target = parent / (name if number == 1 else f"{name}-{number}")
        if not target.exists():
            return target
    raise UserError(f"{parent} is full of mounts", "Name a folder.", ExitCode.TARGET)
