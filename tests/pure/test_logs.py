"""A medium's log: whoever talks without end, what went wrong is found in it, and it stays small."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountsafe import limits
from mountsafe.process import said_by
from mountsafe.session import logs
from mountsafe.session.logs import BoundedLog

own = logging.getLogger("mountsafe.session.machines")
LINE = "x" * 99
LOG_BYTES = 256 << 10
LOG_SHARE, LOG_BURST, LOG_RATE = LOG_BYTES // 9, 16 << 10, 64  # as in `limits`, a sixteenth of it


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


@pytest.fixture
def log(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A log as a supervisor has it."""
    for name, value in ("BYTES", LOG_BYTES), ("SHARE", LOG_SHARE), ("BURST", LOG_BURST), ("RATE", LOG_RATE):
        monkeypatch.setattr(logs, f"LOG_{name}", value)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    path = tmp_path / "log"
    logs.start(False, path)
    (handler,) = root.handlers
    assert isinstance(handler, BoundedLog)
    yield path
    handler.stream.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize("speaker", ["guest", "session", "container"])
def test_whoever_floods_it_hides_no_incident(log: Path, clock: list[float], speaker: str) -> None:
    say = said_by(speaker)
    for number in range(50):
        for _ in range(LOG_BYTES // len(LINE) // 10):
            say(f"{speaker}: {LINE}")
        clock[0] += 60.0
        own.warning("the virtual machine is lost: %d", number)
        said_by("session")(f"session: WARNING: incident {number}: a name with a slash")
    text = log.read_text()
    assert len(text) <= LOG_BYTES
    for number in range(50):
        assert f"the virtual machine is lost: {number}\n" in text
        assert f"incident {number}: a name" in text
    assert text.count(LINE) * len(LINE) < LOG_SHARE


def test_all_of_them_together_leave_room() -> None:
    kinds = 4  # guest, session, container, incidents
    assert kinds * limits.LOG_SHARE <= limits.LOG_BYTES // 2
    assert limits.LOG_BURST < limits.LOG_SHARE


def test_how_many_lines_were_left_out_is_said(log: Path, clock: list[float]) -> None:
    say = said_by("guest")
    for _ in range(LOG_BURST // len(LINE) + 100):
        say(f"guest: {LINE}")
    kept = log.read_text().count(LINE)
    assert kept * len(LINE) < LOG_BURST
    clock[0] += 1.0
    say("guest: later")
    lines = log.read_text().splitlines()
    assert lines[-1].endswith("guest: later")
    assert f"guest: {LOG_BURST // len(LINE) + 100 - kept} lines before this one are left out" in lines[-2]
    assert sum("left out" in line for line in lines) == 1


def test_who_was_quiet_for_long_is_heard_again_until_the_share_is_used_up(log: Path, clock: list[float]) -> None:
    say = said_by("guest")
    for _ in range(2 * LOG_SHARE // LOG_BURST):
        for _ in range(LOG_BURST // len(LINE)):
            say(f"guest: {LINE}")
        clock[0] += LOG_BURST / LOG_RATE
    assert LOG_SHARE - 1000 < len(log.read_bytes()) < LOG_SHARE + 1000
    say("guest: now")
    assert "now" not in log.read_text()


def test_one_who_talks_takes_no_room_of_another(log: Path) -> None:
    for _ in range(LOG_BYTES // len(LINE)):
        said_by("guest")(f"guest: {LINE}")
    said_by("session")("session: INFO: hello")
    said_by("container")("container: hello")
    own.info("hello")
    assert [line.split()[-1] for line in log.read_text().splitlines()[-3:]] == ["hello"] * 3


def test_its_own_words_make_room_by_dropping_the_oldest(log: Path) -> None:
    for number in range(3 * LOG_BYTES // len(LINE)):
        own.info("%d %s", number, LINE)
    text = log.read_text()
    assert len(text) <= LOG_BYTES
    lines = text.splitlines()
    assert lines[0] == "... what was older is left out"
    numbers = [int(line.split("INFO ")[1].split()[0]) for line in lines[1:]]
    assert numbers == list(range(numbers[0], 3 * LOG_BYTES // len(LINE)))
    assert len(text) >= LOG_BYTES // 2 - 1000


def test_a_traceback_and_letters_of_many_bytes_count_as_what_they_are(log: Path) -> None:
    for _ in range(200):
        said_by("guest")("guest: " + "\U0001f4be" * 4000)
    assert log.stat().st_size <= LOG_BURST
    for _ in range(3 * LOG_BYTES // 4000):
        try:
            raise ValueError("y" * 4000)
        except ValueError:
            own.exception("a bug")
    assert LOG_BYTES // 2 < log.stat().st_size <= LOG_BYTES


def test_a_terminal_is_not_flooded(log: Path) -> None:
    """It cannot be cut, so it gets no more than a file."""

    class Terminal:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

        def fileno(self) -> int:
            raise OSError

    terminal = Terminal()
    handler = BoundedLog(terminal)
    for _ in range(2 * LOG_BYTES // len(LINE)):
        handler.emit(logging.LogRecord("mountsafe", logging.INFO, "", 0, LINE, None, None))
    assert len(terminal.text) <= LOG_BYTES


def test_a_disk_that_is_full_is_no_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    [handler] = [each for each in logging.getLogger().handlers if isinstance(each, BoundedLog)]

    def full(text: str) -> int:
        raise OSError(28, "No space left on device")

    stream, handler.stream = handler.stream, type("Full", (), {"write": full, "flush": lambda self: None})()
    own.warning("lost")
    handler.stream = stream
    own.warning("found")
    assert "found" in log.read_text()
