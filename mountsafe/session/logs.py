"""Where a medium's log goes: a bounded file, and with --verbose the terminal until the mount is there.

A guest's console and a hostile image speak through the log, and may do so without end: what each kind of box says has a
share of its own, and a rate. What mountsafe itself has to say always finds room, if need be that of its oldest words.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from mountsafe.limits import LOG_BURST, LOG_BYTES, LOG_RATE, LOG_SHARE
from mountsafe.process import SAID
from mountsafe.text import Printable

FORMAT = "%(asctime)s %(levelname)s %(message)s"
INCIDENT = ": WARNING: incident "  # of a session process, in the words of `mountsafe.incidents`


class Share:
    """What a kind of box may fill of a log: `LOG_BURST` bytes at once, then `LOG_RATE` a second, `LOG_SHARE` in all."""

    def __init__(self) -> None:
        self._left = LOG_SHARE
        self._at_once = float(LOG_BURST)
        self._since = time.monotonic()
        self.dropped = 0  # lines, since the last that was taken

    def takes(self, size: int) -> bool:
        """Whether there is room for a line of so many bytes, which is then used up."""
        now = time.monotonic()
        self._at_once = min(LOG_BURST, self._at_once + LOG_RATE * (now - self._since))
        self._since = now
        if size > min(self._left, self._at_once):
            self.dropped += 1
            return False
        self._left -= size
        self._at_once -= size
        return True


class BoundedLog(logging.StreamHandler[Any]):
    """Writes `LOG_BYTES` at most, to a file that can be read as well, or to a terminal."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._written = 0
        self._shares: dict[str, Share] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if its speaker's share has room for it."""
        size = len(self.format(record).encode("utf-8", "replace")) + 1
        if record.name.startswith(SAID):
            kind = "incidents" if INCIDENT in record.getMessage() else record.name.removeprefix(SAID)
            share = self._shares.setdefault(kind, Share())
            if not share.takes(size):
                return
            if share.dropped:
                self._write(self._left_out(record, kind, share.dropped), size)
                share.dropped = 0
        self._write(record, size)

    @staticmethod
    def _left_out(record: logging.LogRecord, kind: str, lines: int) -> logging.LogRecord:
        words = f"{kind}: {lines} lines before this one are left out: they were too many"
        return logging.LogRecord(record.name, logging.WARNING, record.pathname, record.lineno, words, None, None)

    def _write(self, record: logging.LogRecord, size: int) -> None:
        if self._written + size > LOG_BYTES and not self._make_room():
            return
        self._written += size
        super().emit(record)

    def _make_room(self) -> bool:
        """Drop the older half of a file; False if it is none."""
        try:
            self.flush()
            fd = self.stream.fileno()
            kept = os.pread(fd, LOG_BYTES // 2, max(0, os.fstat(fd).st_size - LOG_BYTES // 2))
            _, _, kept = kept.partition(b"\n")
            os.ftruncate(fd, 0)
            self._written = os.write(fd, b"... what was older is left out\n" + kept)
        except (OSError, ValueError):  # a terminal, a pipe
            return False
        return True


def start(verbose: bool, path: Path) -> None:
    """Log to the file at `path`; with `verbose` also, and more, to the terminal."""
    file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115  # until the end
    file.truncate(0)
    handlers: list[logging.Handler] = [BoundedLog(file)]
    if verbose:
        handlers.append(BoundedLog(sys.stderr))
    for handler in handlers:
        handler.setFormatter(Printable(FORMAT))
    logging.basicConfig(handlers=handlers, level=logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)


def leave_terminal() -> None:
    """Let go of the terminal, so that whoever waits for the end of our output need not wait for the unmount."""
    for handler in logging.getLogger().handlers[1:]:
        logging.getLogger().removeHandler(handler)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 2)
    os.close(nowhere)
