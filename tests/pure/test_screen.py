"""Nothing that mountsafe prints for people can rewrite the terminal, whoever put it into a name or an argument."""

import ast
import io
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from mountsafe.cli import main, screen
from mountsafe.errors import ExitCode, UserError
from mountsafe.text import Printable
from tests.pure.test_text import plainly_visible

NASTY = "\x1b]0;title\x07\nforged\r\u202egpj.exe\x9b31m\udcff[bold red]x[/bold red][link=http://x]y[/link]"
MARKUP = "[bold red]x[/bold red][link=http://x]y[/link]"


def assert_visible(words: str) -> None:
    assert words
    assert all(plainly_visible(line) for line in words.split("\n"))
    assert not any(line.startswith("forged") for line in words.split("\n"))


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(screen, "_programs_read", False)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)  # a command that is over leaves it to the kernel


WAYS: dict[str, Any] = {
    "say": screen.say,
    "note": screen.note,
    "warn": screen.warn,
    "table": lambda text: screen.table(["X"], [[text]]),
    "table, lines": lambda text: screen.table(["X"], [[[text, text]]]),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_what_is_printed_for_people_is_visible(capsys: pytest.CaptureFixture[str], way: Any) -> None:
    way(NASTY)
    words = "".join(capsys.readouterr())
    assert_visible(words)
    assert MARKUP in words.replace("\n", "")


def test_progress_is_visible(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.progress(quiet=False) as progress:
        progress(NASTY)
    assert_visible(capsys.readouterr().err)


@pytest.mark.usefixtures("program")
def test_errors_and_hints_are_visible(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        screen.fail(UserError(NASTY, NASTY))
    assert_visible(capsys.readouterr().err)


def test_a_document_keeps_its_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    screen.document("a\n\tb\x1b[2Jc\n")
    assert capsys.readouterr().out == "a\n        b\\x1b[2Jc\n\n"


def test_a_log_entry_is_one_visible_line() -> None:
    try:
        raise ValueError(NASTY)
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "x", 1, "%s", (NASTY,), sys.exc_info())
    words = Printable("%(levelname)s %(message)s").format(record)
    first, *traceback = words.split("\n")
    assert plainly_visible(first)
    assert "forged" in first
    assert all(plainly_visible(line) for line in traceback)


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*words, name))
        else:
            yield (*words, name)


EVERY = list(commands(typer.main.get_command(main.commands())))


def test_each_verb_is_where_the_table_has_it() -> None:
    """Where it is called, its module alone is imported: a verb that is missing there would not be known."""
    together = typer.main.get_command(main.commands()).commands
    assert set(together) == set(main.VERBS)
    for verb in main.VERBS:
        assert verb in typer.main.get_command(main.commands(verb)).commands


def test_mounting_does_not_wait_for_what_it_does_not_use() -> None:
    words = "from mountsafe.cli import main; main.commands('mount'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert not {"trio", "tarfile", "mountsafe.cli.checking"} & set(done.stdout.split())


SURPLUS = ["x"] * 3  # more than most commands take: none of them does anything


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("arguments", [[*SURPLUS, NASTY], [f"--{NASTY}"]], ids=["argument", "option"])
@pytest.mark.parametrize("command", [(), *EVERY], ids=" ".join)
def test_no_argument_reaches_the_terminal_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mountsafe", *command, *(arguments if command else arguments[-1:])])
    with pytest.raises(SystemExit) as left:
        main.run()
    # Some take any number of images or places: there are none of these names.
    assert left.value.code in (ExitCode.USAGE, ExitCode.SOURCE, ExitCode.TARGET, ExitCode.NOT_MOUNTED)
    assert_visible("".join(capsys.readouterr()))


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("command", [("mount",), ("inspect",), ("unmount",), ("policy", "test")], ids=" ".join)
def test_no_path_reaches_the_terminal_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mountsafe", *command, str(tmp_path / NASTY.replace("/", ""))])
    with pytest.raises(SystemExit):
        main.run()
    assert_visible("".join(capsys.readouterr()))


def prints(tree: ast.AST) -> Iterator[str]:
    """What prints past `screen`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func)
            if words in ("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write") or (
                words.endswith((".out.print", ".err.print"))
            ):
                yield words


@pytest.mark.parametrize("room", ["cli", "desktop", "daemon"])
def test_only_the_screen_prints(repository: Path, room: str) -> None:
    for path in sorted((repository / "mountsafe" / room).glob("*.py")):
        if path.name != "screen.py":
            assert list(prints(ast.parse(path.read_text()))) == [], path


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--no-such-option", 2)])
def test_input_output_and_errors_may_be_closed(closed: str, argument: str, code: int) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "mountsafe", argument]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_no_line_of_a_table_is_broken_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too wide for a table is a line for each cell."""
    path, uuid = "/run/media/somebody/" + "a long name " * 8 + "end", "01234567-89ab-cdef-0123-456789abcdef"
    for width, lines in ((40, 4), (400, 4)):
        made = io.StringIO()
        monkeypatch.setattr(screen, "out", Console(file=made, width=width, soft_wrap=True, highlight=False))
        screen.table(["SOURCE", "UUID", "DO"], [[path, uuid, ["sudo mountsafe policy install", "or nothing", ""]]])
        assert path in made.getvalue()
        assert uuid in made.getvalue()
        assert "sudo mountsafe policy install" in made.getvalue()
        assert made.getvalue().count("\n") <= lines


def test_a_table_that_is_piped_has_nothing_after_its_last_cell(capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody cuts it into columns: no trailing space, no line broken, and wide characters count as they are shown."""
    path = "/run/media/somebody/" + "x" * 300
    screen.table(["SOURCE", "LABEL", "DO"], [[path, "日本", ["one", "", "two"]], ["/a", "", ""], ["/b", "B", "three"]])
    lines = capsys.readouterr().out.splitlines()
    width = len(path)
    assert lines == [
        f"{'SOURCE':{width}}  LABEL  DO",
        f"{path}  日本   one",
        f"{'':{width}}         two",
        "/a",
        f"{'/b':{width}}  B      three",
    ]
