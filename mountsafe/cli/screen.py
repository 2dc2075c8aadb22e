"""What a person sees: progress, tables, errors.

Everything that is printed for people goes through `shown` here, even if it was escaped before: a path, an argument or a
label may contain what rewrites the terminal, and escaping twice changes nothing. Nothing is interpreted as markup.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NoReturn

from rich.console import Console
from rich.status import Status
from rich.text import Text

from mountsafe.errors import UserError
from mountsafe.text import printable

# A pipe has no width: a line stays a line there.
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 1 << 16)
err = Console(stderr=True, soft_wrap=True, highlight=False)
_programs_read = False
_status: Status | None = None
GAP = "  "  # between two columns
MOST = 1 << 16  # characters of a line; no word of ours is as long, and no path


def shown(line: str, style: str = "") -> Text:
    """Return a line as it may reach a terminal."""
    return Text(printable(line, MOST), style=style)


def for_programs(wanted: bool) -> bool:
    """Take note of --json: an error is then an object on stdout as well. A callback of the option."""
    global _programs_read  # as long-lived as stdout itself
    _programs_read = wanted
    return wanted


def print_json(value: Any) -> None:
    """Print a value for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_event(value: Any) -> None:
    """Print a value for programs that read line by line, now."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Print a line for people."""
    out.print(shown(line))


def document(text: str) -> None:
    """Print a text of several lines, which is ours: a line break in it is one."""
    for line in text.split("\n"):
        out.print(Text("\t").join(shown(part) for part in line.split("\t")))


def note(line: str) -> None:
    """Print a line for people beside what programs read."""
    err.print(shown(line))


def warn(line: str) -> None:
    """Print a warning."""
    err.print(Text("warning: ", style="yellow").append_text(shown(line, "default")))


def usage(text: str) -> None:
    """Print a help text, which typer has made."""
    err.print(Text(text))


def fail(error: UserError) -> NoReturn:
    """Print an error as one sentence and a hint, for programs as an object too, and leave with its code."""
    err.print(Text("mountsafe: ", style="bold red").append_text(shown(error.message, "default")))
    if error.hint:
        err.print(shown(error.hint, "dim"))
    if _programs_read:
        print_json({"error": {"message": error.message, "hint": error.hint, "code": int(error.code)}})
    raise SystemExit(int(error.code))


@contextmanager
def paused() -> Iterator[None]:
    """Leave the terminal to somebody else for a while: no progress is shown."""
    if _status is None:
        yield
        return
    _status.stop()
    try:
        yield
    finally:
        _status.start()


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being done: a spinner on a terminal, a line each elsewhere, nothing if `quiet`."""
    if quiet:
        yield lambda _: None
    elif err.is_terminal:
        global _status  # there is one terminal
        with err.status("") as _status:
            status = _status
            yield lambda what: status.update(shown(f"{what} …"))
        _status = None
    else:
        yield lambda what: err.print(shown(f"{what} ..."))


def update(what: str) -> None:
    """Show how far it is, within `progress` and on a terminal; nothing elsewhere."""
    if _status is not None:
        _status.update(shown(what))


def table(headings: list[str], rows: Sequence[Sequence[str | Sequence[str]]]) -> None:
    """Print a table, or where that is too wide a line for each cell. A cell of several lines is a list of them.

    No line is broken: it may be a path or a command, which somebody copies.
    """
    cells = [[[cell] if isinstance(cell, str) else [*filter(None, cell)] for cell in row] for row in rows]
    lines = [line for row in cells for line in zip_longest(*row, fillvalue="")]
    printed = [[shown(cell) for cell in line] for line in lines]
    head = [Text(heading, style="bold") for heading in headings]
    widths = [max(each.cell_len for each in column) for column in zip(head, *printed, strict=True)]
    if sum(widths) + len(GAP) * (len(widths) - 1) <= out.width:
        for texts in (head, *printed):
            out.print(_padded(texts, widths))
        return
    for number, row in enumerate(cells):
        if number:
            say("")
        for heading, cell in zip(headings, row, strict=True):
            for line in filter(None, cell):
                say(f"{heading}: {line}" if heading else line)


def _padded(line: Sequence[Text], widths: Sequence[int]) -> Text:
    """Return the cells of a line, each as wide as its column; nothing stands after the last one that is not empty."""
    filled = [number for number, cell in enumerate(line) if cell]
    last = filled[-1] if filled else -1
    made = Text()
    for number, cell in enumerate(line[: last + 1]):
        made.append_text(cell)
        if number < last:
            made.append(" " * (widths[number] - cell.cell_len) + GAP)
    return made
