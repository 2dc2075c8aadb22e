"""A passphrase asked for by other programs: real small ones on PATH, which speak as pinentry, zenity and kdialog do."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from mountsafe import trios
from mountsafe.desktop import prompts
from mountsafe.desktop.prompts import NoProgram, Question, plain

QUESTION = Question("Unlock PHOTOS (LUKS2)", "PHOTOS is encrypted: 100% <b>\n&x", "wrong\tkey")
START = f"""#!{sys.executable}
import json, os, sys, time
told = {{"argv": sys.argv[1:], "environ": dict(os.environ), "lines": []}}
def tell():
    with open({{log!r}}, "a") as log:
        log.write(json.dumps(told) + "\\n")
"""
PINENTRY = (
    START
    + """
def say(line):
    sys.stdout.buffer.write(line + b"\\n"); sys.stdout.buffer.flush()
say(b"OK Pleased to meet you")
for line in sys.stdin:
    told["lines"].append(line.rstrip("\\n"))
    if line.startswith("SETTIMEOUT"):
        say(b"ERR 536871187 Unknown IPC command")
    elif line.startswith("GETPIN"):
        tell()
        {answer}
    else:
        say(b"OK")
"""
)
DIALOG = (
    START
    + """
tell()
{answer}
"""
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "X")
    monkeypatch.setattr(prompts, "piped", list)
    return folder


def put(folder: Path, name: str, text: str, answer: str) -> None:
    file = folder / name
    file.write_text(text.replace("{log!r}", repr(str(folder / f"{name}.log"))).replace("{answer}", answer))
    file.chmod(0o755)


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    log = folder / f"{name}.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def asked(question: Question = QUESTION) -> bytes | None:
    return trios.run(partial(prompts.ask, question))


# --- pinentry --------------------------------------------------------------------------------------------------------
SAYS = 'say(b"D " + {!r}); say(b"OK")'


@pytest.mark.parametrize(
    ("data", "secret"),
    [
        (b"correct horse", b"correct horse"),
        (b"100%25%0Aplus%2Bplus", b"100%\nplus+plus"),
        ("schl\u00fcssel".encode(), "schl\u00fcssel".encode()),
        (b"a", b"a"),
        (b"", b""),
        (b"x" * 900, b"x" * 900),
    ],
)
def test_a_passphrase_by_pinentry(path: Path, data: bytes, secret: bytes) -> None:
    put(path, "pinentry-gnome3", PINENTRY, SAYS.format(data))
    assert asked() == secret
    (heard,) = told(path, "pinentry-gnome3")
    assert heard["argv"] == []
    lines = dict(line.partition(" ")[::2] for line in heard["lines"])
    assert lines["SETTITLE"] == "Unlock PHOTOS %28LUKS2%29"
    assert lines["SETDESC"] == "PHOTOS is encrypted%3A 100%25 _b_%5Cn_x", "one line, and no markup"
    assert lines["SETERROR"] == "wrong%5Ctkey"


def test_data_in_several_lines_is_one_secret(path: Path) -> None:
    put(
        path,
        "pinentry-qt",
        PINENTRY,
        'say(b"S BUTTON_INFO close"); say(b"D one"); say(b"D "); say(b"D two"); say(b"OK")',
    )
    assert asked() == b"onetwo"


@pytest.mark.parametrize("code", [83886179, 83886194, 83886142, 83886278])
def test_who_turns_away_is_asked_by_no_other_program(path: Path, code: int) -> None:
    put(path, "pinentry-gnome3", PINENTRY, f'say(b"ERR {code} Operation cancelled <Pinentry>")')
    put(path, "zenity", DIALOG, "print('other')")
    assert asked() is None
    assert told(path, "zenity") == []


@pytest.mark.parametrize(
    "answer",
    [
        'say(b"ERR 83886340 No screen")',
        "sys.exit(2)",
        'say(b"D " + b"x" * 3000); say(b"D " + b"x" * 3000); say(b"OK")',
        'sys.stdout.buffer.write(b"x" * 100000); sys.stdout.buffer.flush(); sys.exit(0)',
        'say(b"\\xff\\xfe"); sys.exit(1)',
    ],
)
def test_a_program_that_cannot_ask_gives_way_to_the_next(path: Path, answer: str) -> None:
    put(path, "pinentry-gnome3", PINENTRY, answer)
    put(path, "zenity", DIALOG, "print('other')")
    assert asked() == b"other"


# --- zenity and kdialog ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["zenity", "kdialog"])
@pytest.mark.parametrize(
    ("answer", "secret"),
    [
        ("print('correct horse')", b"correct horse"),
        ("print(' two\\\\n', end='')", b" two\\n"),
        ("print()", b""),
        ("sys.exit(1)", None),
    ],
)
def test_a_passphrase_by_a_dialog(path: Path, name: str, answer: str, secret: bytes | None) -> None:
    put(path, name, DIALOG, answer)
    assert asked() == secret
    (heard,) = told(path, name)
    assert "--password" in " ".join(heard["argv"])
    assert any("wrong" in each for each in heard["argv"]), "it says why it asks again"
    assert not any("<" in each or "&" in each for each in heard["argv"])


def test_kde_is_asked_by_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, "kdialog", DIALOG, "print('kdialog')")
    put(path, "zenity", DIALOG, "print('zenity')")
    assert asked() == b"zenity"
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "KDE")
    assert asked() == b"kdialog"


@pytest.mark.usefixtures("path")
def test_where_nothing_asks_that_is_said() -> None:
    with pytest.raises(NoProgram, match="no program here"):
        asked()


@pytest.mark.parametrize(("name", "text"), [("pinentry-gnome3", PINENTRY), ("zenity", DIALOG)])
def test_a_prompt_that_nobody_needs_any_more_goes(path: Path, name: str, text: str) -> None:
    put(path, name, text, "told['pid'] = os.getpid(); tell(); time.sleep(100)")

    async def run() -> None:
        with trio.move_on_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(prompts.ask, QUESTION)
                while not any("pid" in each for each in told(path, name)):  # noqa: ASYNC110  # nothing tells of it
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()

    trios.run(run)
    pid = told(path, name)[-1]["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_who_does_not_type_is_not_waited_for_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "PATIENCE", 0.2)
    monkeypatch.setattr(prompts, "GRACE", 0.2)
    put(path, "zenity", DIALOG, "time.sleep(100)")
    with pytest.raises(NoProgram):
        asked()


@pytest.mark.parametrize("words", ["<b>x</b>", "a & b", "\x1b[2J", "x\ny", "\u202eevil"])
def test_no_word_is_markup_or_moves_the_others(words: str) -> None:
    assert not set("<>&\x1b\n\u202e") & set(plain(words))


# --- what is asked, and what becomes of it ----------------------------------------------------------------------------
MEDIUM = {
    "device": "sdb",
    "label": "PHOTOS",
    "model": "Stick",
    "fstype": "crypto_LUKS",
    "locked": "LUKS2",
    "locked_hint": "",
    "locked_uuid": "77",
    "mounts": [],
}
Given = Callable[[str, Any, int], None]


def unlocked(monkeypatch: pytest.MonkeyPatch, give: Given, medium: dict[str, Any] = MEDIUM) -> bool:
    from mountsafe.daemon import client
    from mountsafe.desktop import keys

    monkeypatch.setattr(client, "unlock", give)
    return trios.run(partial(keys.unlock, medium))


def test_what_is_typed_goes_through_a_pipe_to_the_daemon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, "zenity", DIALOG, "print('correct horse')")
    given: list[Any] = []
    assert unlocked(monkeypatch, lambda device, form, fd: given.append((device, str(form), os.read(fd, 100))))
    assert given == [("sdb", "passphrase", b"correct horse")]
    (heard,) = told(path, "zenity")
    assert "correct horse" not in json.dumps(heard)
    assert "Unlock PHOTOS (LUKS2)" in heard["argv"][1]


def test_a_wrong_one_is_asked_for_again_and_no_more_than_thrice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mountsafe.daemon.client import WrongKey

    put(path, "zenity", DIALOG, "print('wrong')")
    count = 0

    def give(*_: object) -> None:
        nonlocal count
        count += 1
        raise WrongKey("that is not the passphrase")

    with pytest.raises(WrongKey):
        unlocked(monkeypatch, give)
    assert count == 3
    said = ["not the passphrase" in " ".join(each["argv"]) for each in told(path, "zenity")]
    assert said == [False, True, True]


def test_who_turns_away_gives_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, "zenity", DIALOG, "sys.exit(1)")
    assert not unlocked(monkeypatch, lambda *_: pytest.fail("nothing was typed"))


def test_a_recovery_key_is_one_by_its_digits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "-".join(["123456"] * 8)
    put(path, "zenity", DIALOG, f"print('{key}')")
    forms: list[str] = []
    for kind in ("BitLocker", "LUKS2"):
        unlocked(monkeypatch, lambda _, form, __: forms.append(str(form)), {**MEDIUM, "locked": kind})
    assert forms == ["recovery-key", "passphrase"]
