"""Ask for a passphrase with whichever program is there for that: a flavour of pinentry, zenity or kdialog.

The secret comes out of the program's standard output, a pipe, and is in no argument and no environment variable. What
we tell the program is in its arguments, and some programs interpret markup: so nothing from a medium may look like
markup.
"""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

import trio

from mountsafe.distribution import install
from mountsafe.encrypted import secrecy
from mountsafe.errors import ExitCode, UserError
from mountsafe.system.units import piped
from mountsafe.text import printable

log = logging.getLogger(__name__)
PATIENCE = 300  # seconds for somebody to type
GRACE = 30.0  # seconds more for a program that is to end by itself
MOST = 4096  # bytes of an answer: programs take less of a passphrase
# pinentry(1): gpg-error.h has the numbers, of which the low half tells what it is.
_TURNED_AWAY = {62, 99, 114, 198}  # timeout, cancelled, not confirmed, fully cancelled
_CODE = 0xFFFF


class NoProgram(UserError):
    """Nothing here asks for a passphrase."""

    def __init__(self) -> None:
        hint = f"{install('zenity')} (pinentry and kdialog do as well); in a terminal mountsafe unlock asks."
        super().__init__("no program here asks for a passphrase", hint, ExitCode.DEPENDENCY)


class Unfit(Exception):
    """A program that cannot ask now: another one may."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `error`: why the last answer did not do."""

    title: str
    words: str
    error: str = ""


def plain(words: str) -> str:
    """Return words in which nothing is markup to anybody."""
    return re.sub("[<>&]", "_", printable(words, 500))


async def ask(question: Question) -> bytes | None:
    """Return what somebody types, of which nothing is kept here; None if they do not want to. Raises NoProgram."""
    asked = Question(plain(question.title), plain(question.words), plain(question.error))
    for name in _in_order(os.environ.get("XDG_CURRENT_DESKTOP", "")):
        if (path := shutil.which(name)) is None:
            continue
        try:
            with trio.fail_after(PATIENCE + GRACE):
                if name.startswith("pinentry"):
                    return await _by_pinentry(path, asked)
                return await _by_dialog([path, *DIALOGS[name](asked)])
        except (Unfit, OSError, trio.TooSlowError) as error:
            log.warning("%s does not ask: %s", name, str(error) or type(error).__name__)
    raise NoProgram


def _zenity(question: Question) -> list[str]:
    """It has no place for words but the title."""
    title = f"{question.error}. {question.title}" if question.error else question.title
    return ["--password", f"--title={title}", f"--timeout={PATIENCE}"]


def _kdialog(question: Question) -> list[str]:
    words = f"{question.error}. {question.words}" if question.error else question.words
    return ["--title", question.title, "--password", words]


DIALOGS: dict[str, Callable[[Question], list[str]]] = {"zenity": _zenity, "kdialog": _kdialog}
_OF_KDE = ("pinentry-qt", "pinentry-qt5", "kdialog")
_OF_OTHERS = ("pinentry-gnome3", "pinentry-gtk-2", "pinentry-gtk", "pinentry-fltk", "zenity", "pinentry-x11")


def _in_order(desktop: str) -> Sequence[str]:
    first, last = (_OF_KDE, _OF_OTHERS) if "KDE" in desktop.upper().split(":") else (_OF_OTHERS, _OF_KDE)
    return (*first, *last)


@asynccontextmanager
async def _started(command: Sequence[str]) -> AsyncIterator[trio.Process]:
    """Start a program that asks; it ends with this."""
    process = await trio.lowlevel.open_process(
        [*piped(), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


async def _by_dialog(command: Sequence[str]) -> bytes | None:
    """Ask by a program that writes the answer and a line break, and tells by its exit code whether there is one."""
    async with _started(command) as process:
        assert process.stdout is not None
        answer = await _read_all(process.stdout)
        code = await process.wait()
    if code == 0:
        return _without_break(answer)
    secrecy.wipe(answer)
    if code in (1, 5):  # cancelled, too late
        return None
    raise Unfit(f"it ended with {code}")


async def _read_all(stream: trio.abc.ReceiveStream) -> bytes:
    answer = b""
    while piece := bytes(await stream.receive_some(MOST)):
        before, answer = answer, answer + piece
        secrecy.wipe(before)
        if len(answer) > MOST:
            raise Unfit("it says more than a passphrase")
    return answer


def _without_break(answer: bytes) -> bytes:
    line = answer.removesuffix(b"\n")
    if line is not answer:
        secrecy.wipe(answer)
    return line


async def _by_pinentry(path: str, question: Question) -> bytes | None:
    """Ask by pinentry's protocol (Assuan): a line each, answered by OK or ERR."""
    wishes = {"SETTITLE": question.title, "SETDESC": question.words, "SETPROMPT": "Passphrase:"}
    if question.error:
        wishes["SETERROR"] = question.error
    async with _started([path]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = _Lines(process.stdout)
        await _answered(lines)
        for command, words in wishes.items():
            await process.stdin.send_all(f"{command} {quote(words, safe=' ')}\n".encode())
            await _answered(lines)
        await process.stdin.send_all(f"SETTIMEOUT {PATIENCE}\n".encode())
        with suppress(_Refusal):  # some flavours know fewer commands
            await _answered(lines)
        await process.stdin.send_all(b"GETPIN\n")
        try:
            return await _answered(lines)
        except _Refusal as refusal:
            if refusal.code in _TURNED_AWAY:
                return None
            raise


class _Refusal(Unfit):
    def __init__(self, line: bytes) -> None:
        super().__init__(printable(line, 200))
        number = re.match(rb"ERR (\d{1,12})", line)
        self.code = int(number[1]) & _CODE if number else 0


class _Lines:
    """What pinentry says, line by line."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._rest = b""

    async def next(self) -> bytes:
        """Return the next line. Raises Unfit at the end."""
        while b"\n" not in self._rest:
            piece = bytes(await self._stream.receive_some(MOST))
            if not piece or len(self._rest) > MOST:
                raise Unfit("it ended, or says what nobody asked")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


async def _answered(lines: _Lines) -> bytes:
    """Return the data of an answer. Raises _Refusal, Unfit."""
    data = b""
    while True:
        line = await lines.next()
        if line == b"OK" or line.startswith(b"OK "):
            return data
        if line.startswith(b"ERR "):
            raise _Refusal(line)
        if line.startswith(b"D "):
            before, data = data, b"".join((data, unquote_to_bytes(line[2:])))
            secrecy.wipe(line)
            if data is not before:
                secrecy.wipe(before)
        if len(data) > MOST:
            raise Unfit("it says more than a passphrase")
