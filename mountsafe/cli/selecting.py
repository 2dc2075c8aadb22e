"""What the verbs that read a medium without a mount have in common: IMAGE:PATH, and which options say what is read.

The options are those of `mount`, by the same words.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import typer

from mountsafe.cli import already, completion, screen
from mountsafe.cli.options import (
    Format,
    FormatOption,
    FsType,
    MountOption,
    Offset,
    Partition,
    SectorSize,
    SizeLimit,
    Timezone,
    Verbose,
    named,
)
from mountsafe.cli.sizes import checked_part
from mountsafe.cli.typers import argument
from mountsafe.cli.unlocking import BigMemory, Header, Hidden, KeyFd, KeyFile, Keys, Pim, RecoveryKey, unlocker
from mountsafe.errors import ExitCode, UserError
from mountsafe.library.image import Image, Person, opened_image, stream_options
from mountsafe.library.whole import Found, Whole
from mountsafe.medium.options import checked_sectors
from mountsafe.medium.source import Medium, open_medium
from mountsafe.session.order import MountOptions
from mountsafe.session.start import Unlock
from mountsafe.text import shown_path

Command = TypeVar("Command", bound=Callable[..., Any])
ImagePath = Annotated[
    str,
    argument(
        metavar="IMAGE[:PATH]",
        help="An image file or a block device, and a path in it; without one its root.",
        show_default=False,
        autocompletion=completion.images,
    ),
]


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a source is read, and how: each field is an option."""

    partition: Partition = None
    fstype: FsType = None
    format_: FormatOption = Format.AUTO
    sector_size: SectorSize = None
    offset: Offset = None
    sizelimit: SizeLimit = None
    mount_option: MountOption = None
    timezone: Timezone = ""
    key_file: KeyFile = None
    key_fd: KeyFd = None
    recovery_key: RecoveryKey = False
    header: Header = None
    pim: Pim = 0
    hidden: Hidden = False
    big_memory: BigMemory = False
    verbose: Verbose = False


def selecting(command: Command) -> Command:
    """Give a command the options of `Selection` in the place of its parameter `selection`.

    A letter that the command has a use of its own for is that. All of the command's parameters are named ones.
    """
    own = inspect.signature(command)
    taken = {word for each in own.parameters.values() for word in _words(each.annotation)}
    hints = get_type_hints(Selection, include_extras=True)
    added = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=_without(hints[each.name], taken),
        )
        for each in fields(Selection)
    ]

    @wraps(command)
    def with_options(**settings: Any) -> Any:
        selected = {each.name: settings.pop(each.name) for each in added}
        return command(**settings, selection=Selection(**selected))

    kept = [each for each in own.parameters.values() if each.name != "selection"]
    with_options.__signature__ = own.replace(parameters=kept + added)  # type: ignore[attr-defined]
    return cast(Command, with_options)


def _words(annotation: Any) -> tuple[str, ...]:
    """Return the words of an option."""
    return tuple(word for each in get_args(annotation)[1:] for word in getattr(each, "param_decls", None) or ())


def _without(annotation: Any, taken: set[str]) -> Any:
    """Return an option without those of its words that are taken."""
    if not taken.intersection(_words(annotation)):
        return annotation
    kind, info = get_args(annotation)
    info = copy(info)
    info.param_decls = tuple(word for word in info.param_decls if word not in taken)
    return Annotated[kind, info]


def split(words: str) -> tuple[Path, bytes]:
    """Return the image and the path in it that IMAGE[:PATH] means.

    A file that has all of it as its name is the image. Otherwise the longest name before a colon that is a file's is
    one; if there is none, what is before the first colon, which then does not exist.
    """
    if os.path.exists(words):
        return Path(words), b"/"
    at = len(words)
    while (at := words.rfind(":", 0, at)) > 0:
        if os.path.exists(words[:at]):
            return Path(words[:at]), _inside(words[at + 1 :])
    image, _, path = words.partition(":")
    return Path(image), _inside(path)


def _inside(path: str) -> bytes:
    return os.fsencode(path) or b"/"


def by_image(words: list[str]) -> list[tuple[Path, list[bytes]]]:
    """Return each image that is named, with the paths in it, in the order in which they came."""
    found: dict[Path, list[bytes]] = {}
    for image, path in map(split, words):
        found.setdefault(image, []).append(path)
    return list(found.items())


class Problems:
    """What could not be read, which does not stop the rest: said as it comes, and in the exit code."""

    def __init__(self) -> None:
        self.count = 0

    def failed(self, path: bytes, error: OSError) -> None:
        """Say that something could not be read."""
        self.add(f"{shown_path(path)}: {error.strerror or error}")

    def add(self, words: str) -> None:
        """Say that something could not be done."""
        self.count += 1
        screen.warn(words)

    def end(self) -> None:
        """Leave with the code for what is partly done, if anything failed."""
        if self.count:
            raise typer.Exit(int(ExitCode.PARTIAL))


@contextmanager
def reading(source: Path, selection: Selection, problems: Problems) -> Iterator[Whole]:
    """Open an image and give all that is shown of it; its end is waited for. Raises UserError."""
    image = opened(source, selection)
    with image:
        for missing in image.missing:
            problems.add(missing.message)
        yield Whole(image.filesystems)


def found_at(whole: Whole, path: bytes, follow: bool) -> Found:
    """Return what somebody has named. Raises UserError (FAILURE) if it cannot be had."""
    try:
        return whole.find(path, follow)
    except OSError as error:
        raise UserError(f"{shown_path(path)}: {error.strerror}", "mountsafe ls shows what there is.") from error


def opened(source: Path, selection: Selection) -> Image:
    """Open what is selected of a source. Raises UserError."""
    medium, options, unlock = selected(source, selection)
    with screen.progress(selection.verbose or not sys.stderr.isatty()) as progress:
        return opened_image(medium, options, Person(progress, screen.warn, unlock))


def selected(source: Path, selection: Selection) -> tuple[Medium, MountOptions, Unlock]:
    """Return a medium that is open, what is ordered of it, and who has keys. Raises UserError."""
    options = stream_options(
        selection.partition, selection.fstype, selection.timezone, selection.mount_option or [], selection.verbose
    )
    keys = Keys(
        tuple(selection.key_file or ()),
        selection.key_fd,
        selection.recovery_key,
        selection.header,
        selection.pim,
        selection.hidden,
        selection.big_memory,
    )
    keys.check()
    options = replace(options, key_named=keys.named(options.fstype))
    part = checked_part(selection.offset, selection.sizelimit)
    sectors = checked_sectors(selection.sector_size)
    medium = open_medium(source, named(selection.format_), sectors, part, already.lent(source))
    return medium, options, unlocker(keys)
