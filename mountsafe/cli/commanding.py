"""`run`: a command that sees an image's files, and a mount that lasts as long as it."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mountsafe.cli.mounting import tell_missing
from mountsafe.cli.opening import begin
from mountsafe.cli.options import Source
from mountsafe.cli.selecting import Selection, selected, selecting
from mountsafe.cli.typers import App, argument
from mountsafe.errors import ExitCode, UserError

FOLDER = "MOUNTSAFE_DIR"
PLACE = "{}"
NOT_FOUND, NOT_RUN = 127, 126  # as shells have it


def register(app: App) -> None:
    """Add the verb."""
    app.command(
        epilog="Examples: [bold]mountsafe run disk.img -- ls -lR {}[/bold], "
        "[bold]mountsafe run stick.img -- clamscan -r {}[/bold], "
        "[bold]mountsafe run stick.img -- sh -c 'du -s \"$MOUNTSAFE_DIR\"'[/bold]"
    )(run)


@selecting
def run(
    *,
    source: Source,
    command: Annotated[
        list[str],
        argument(metavar="-- COMMAND...", help="{} in it is the folder.", show_default=False),
    ],
    selection: Selection,
) -> None:
    """Mount an image or a device read-only, run a command, unmount it; the exit code is the command's.

    The folder is in MOUNTSAFE_DIR, and in the place of {}. It is unmounted however the command, or this, ends.
    """
    medium, options, unlock = selected(source, selection)
    wanted = replace(options, owner="user", stream=False)
    # Made by who mounts, and removed by the supervisor, also if nobody else is left to do so.
    target = Path(tempfile.gettempdir()) / f"mountsafe-run-{secrets.token_hex(8)}"
    starting, record = begin(medium, target, wanted, not sys.stderr.isatty(), unlock)
    try:
        tell_missing(record)
        code = _ran([word.replace(PLACE, os.fspath(target)) for word in command], target)
    finally:
        starting.end()
    if code or record.missing:
        raise typer.Exit(code or int(ExitCode.PARTIAL))


def _ran(command: list[str], target: Path) -> int:
    """Run a command, and return its exit code, as a shell would tell it. Raises UserError if it cannot be run."""
    try:
        with _left_to_the_command():
            ended = subprocess.run(command, env={**os.environ, FOLDER: os.fspath(target)}, check=False)
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUN
        hint = "It is what stands after --, and is looked for as the shell would."
        raise CannotRun(f"cannot run {command[0]}: {error.strerror}", hint, code) from error
    return 128 - ended.returncode if ended.returncode < 0 else ended.returncode


class CannotRun(UserError):
    """The command cannot be run: the code is that of a shell."""

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint)
        self.code = code  # type: ignore[assignment]  # one of the command's


@contextmanager
def _left_to_the_command() -> Iterator[None]:
    """Leave Ctrl-C to the command, which has it from the terminal as well: what it leads to is its business."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
