"""`cp`: copy files out of an image without mounting it."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

from mountsafe.cli import completion, screen
from mountsafe.cli.selecting import Problems, Selection, by_image, reading, selecting
from mountsafe.cli.typers import App, argument, option
from mountsafe.errors import ExitCode, UserError
from mountsafe.library.copying import Copy, Hears, Links, Wish
from mountsafe.library.naming import Namer, Names
from mountsafe.library.whole import Whole
from mountsafe.text import shown_path, size

SOON, OFTEN = 1.0, 0.2  # seconds before something is said of how far it is, and between two times
FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def register(app: App) -> None:
    """Add the verb."""
    app.command(
        epilog="Examples: [bold]mountsafe cp disk.img:/etc/hostname .[/bold], "
        "[bold]mountsafe cp -r -p disk.img:/home ~/rescued[/bold], "
        "[bold]mountsafe cp -r stick.img: /tmp/stick --names safe --links none[/bold]"
    )(cp)


class Progress(Hears):
    """Says on the terminal how many bytes were copied, and at what rate, once it takes a while."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._begun = time.monotonic()
        self._said = self._begun + SOON - OFTEN
        self.count = 0

    def failed(self, path: bytes, error: OSError) -> None:
        """Say it: the rest goes on."""
        self._problems.failed(path, error)

    def left_out(self, path: bytes, why: str) -> None:
        """Say it: that is as it should be."""
        screen.note(f"left out: {shown_path(path)}: {why}")

    def copied(self, count: int) -> None:
        """Count, and say it now and then."""
        self.count += count
        now = time.monotonic()
        if now >= self._said + OFTEN:
            self._said = now
            screen.update(f"{size(self.count)}, {size(int(self.count / (now - self._begun)))}/s")


@selecting
def cp(  # noqa: PLR0913  # a parameter for each option, as typer wants it
    *,
    names: Annotated[
        list[str],
        argument(
            metavar="IMAGE:PATH... DEST",
            help="What to copy, and where to.",
            show_default=False,
            autocompletion=completion.images,
        ),
    ],
    recursive: Annotated[bool, option("--recursive", "-r", help="Folders, and all that is in them.")] = False,
    preserve: Annotated[bool, option("--preserve", "-p", help="Keep modes and times; no set-user-ID bits.")] = False,
    resume: Annotated[
        bool,
        option(
            "--resume",
            help="Go on with a copy that was broken off: files of the same size and time are left, others made anew.",
        ),
    ] = False,
    exact: Annotated[
        bool, option("--no-target-directory", "-T", help="DEST is the copy itself, also if it is a folder already.")
    ] = False,
    odd_names: Annotated[
        Names,
        option("--names", help="safe writes %XX for what a terminal or Windows would trip over."),
    ] = Names.KEEP,
    links: Annotated[
        Links, option("--links", help="Symbolic links: those that cannot lead out of the copy; all; or none.")
    ] = Links.CONTAINED,
    selection: Selection,
) -> None:
    """Copy files and folders out of an image or a device, without mounting it.

    Nothing is made outside of DEST, and nothing that is there is overwritten, but for what --resume makes anew. Device
    nodes are left out.
    """
    if len(names) < 2:
        raise UserError("name what to copy, and where to", "mountsafe cp IMAGE:PATH DEST", ExitCode.USAGE)
    *sources, destination = names
    problems = Problems()
    wish = Wish(preserve, resume, odd_names, links)
    images = by_image(sources)
    folder, name = _destination(Path(destination), sum(len(paths) for _, paths in images), exact)
    namer = Namer(odd_names)
    if resume and not name:
        copied = [_called(path, image) for image, paths in images for path in paths]
        _require_begun(folder, set(map(Namer(odd_names).name, copied)))
    try:
        for image, paths in images:
            with reading(image, selection, problems) as whole, screen.progress(not sys.stderr.isatty()):
                copy = Copy(whole, wish, Progress(problems))
                for path in paths:
                    called = name or namer.name(_called(path, image))
                    _copy(copy, whole, folder, path, called, recursive, problems)
    finally:
        os.close(folder)
    problems.end()


def _copy(
    copy: Copy, whole: Whole, folder: int, path: bytes, called: bytes, recursive: bool, problems: Problems
) -> None:
    try:
        found = whole.find(path, follow=not recursive)
    except OSError as error:
        problems.failed(path, error)
        return
    if found.is_folder and not recursive:
        problems.add(f"{shown_path(path)} is a folder: --recursive copies it")
        return
    copy.into(folder, found, called)


def _called(path: bytes, image: Path) -> bytes:
    """Return the name that a copy has in a folder: the last one of its path, or the image's for all that is in it."""
    last = os.path.basename(path.rstrip(b"/"))
    return last if last not in (b"", b".", b"..") else os.fsencode(f"{image.name}.files")


def _require_begun(folder: int, names: set[bytes]) -> None:
    """Raise UserError (TARGET) if a folder has something, but none of what is copied into it: it may itself be the copy
    that is to go on, made where nothing was at first.
    """
    there = {os.fsencode(name) for name in os.listdir(folder)}
    if there and not there & names:
        os.close(folder)
        hint = "With -T, DEST itself is the copy that goes on; without --resume one is begun in it."
        raise UserError("DEST has nothing of an earlier copy in it", hint, ExitCode.TARGET)


def _destination(path: Path, count: int, exact: bool) -> tuple[int, bytes]:
    """Return the folder that is copied into, open, and what the copy is called there; b"" for its own name.

    `exact`: it is no folder to copy into. Raises UserError (TARGET).
    """
    try:
        if path.is_dir() and not exact:
            return os.open(path, FLAGS), b""
        if count == 1 and path.name:
            return os.open(path.parent, FLAGS), os.fsencode(path.name)
    except OSError as error:
        shown = shown_path(path)
        raise UserError(f"cannot copy to {shown}: {error.strerror}", "Name a folder.", ExitCode.TARGET) from error
    raise UserError(f"{shown_path(path)} is no folder", "Several are copied into one.", ExitCode.TARGET)
