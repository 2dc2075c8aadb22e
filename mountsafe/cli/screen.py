"""What a person sees: progress, tables, errors. Everything from a medium has gone through `text.printable` before."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mountsafe.errors import UserError

# A pipe has no width: a line stays a line there.
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 1 << 16)
err = Console(stderr=True, soft_wrap=True, highlight=False)
_programs_read = False


def for_programs(wanted: bool) -> bool:
    """Take note of --json: an error is then an object on stdout as well. A callback of the option."""
    global _programs_read  # as long-lived as stdout itself
    _programs_read = wanted
    return wanted


def print_json(value: Any) -> None:
    """Print a value for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def say(line: str) -> None:
    """Print a line for people."""
    out.print(Text(line))


def warn(line: str) -> None:
    """Print a warning."""
    err.print(Text("warning: ", style="yellow").append(line, style="default"))


def fail(error: UserError) -> NoReturn:
    """Print an error as one sentence and a hint, for programs as an object too, and leave with its code."""
    err.print(Text("mountsafe: ", style="bold red").append(error.message, style="default"))
    if error.hint:
        err.print(Text(error.hint, style="dim"))
    if _programs_read:
        print_json({"error": {"message": error.message, "hint": error.hint, "code": int(error.code)}})
    raise SystemExit(int(error.code))


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being done: a spinner on a terminal, a line each elsewhere, nothing if `quiet`."""
    if quiet:
        yield lambda _: None
    elif err.is_terminal:
        with err.status("") as status:
            yield lambda what: status.update(Text(f"{what} …"))
    else:
        yield lambda what: err.print(Text(f"{what} ..."))


def table(headings: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    out.print(shown)
