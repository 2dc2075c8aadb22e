"""Where the daemon's log goes: the journal, with fields that can be searched for, or stderr.

`journalctl MOUNTSAFE_VERDICT=refuse` shows what was refused, `-o json` all fields of an entry.
"""

import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from mountsafe.text import Printable

BURST, RATE = 200, 2.0  # entries of a source: so many at once, and so many a second in the long run
SOURCES = 256  # that are remembered
MAX_ENTRY = 4096  # characters; a traceback comes on top

# Fields of an entry -> what a medium tells of itself.
FIELDS = {
    "MOUNTSAFE_DEVICE": "device",
    "MOUNTSAFE_VERDICT": "verdict",
    "MOUNTSAFE_RULE": "rule",
    "MOUNTSAFE_STATE": "state",
}


class MediumLog(logging.LoggerAdapter[logging.Logger]):
    """A log whose entries are about one medium. `told` says what it is at that moment."""

    def __init__(self, log: logging.Logger, told: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__(log)
        self._told = told

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the fields."""
        told = self._told()
        return msg, {**kwargs, "extra": {field: told[key] for field, key in FIELDS.items()}}


class Flood(logging.Filter):
    """Limits what one source may log: a caller or a medium that makes us log endlessly fills no disk.

    A source is a medium, or a module where an entry is about none. How many of its entries were dropped is said in the
    next one that comes through.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._sources: OrderedDict[str, tuple[float, float, int]] = OrderedDict()  # entries left, since when, dropped

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether an entry is written."""
        source = str(record.__dict__.get("MOUNTSAFE_DEVICE") or record.name)
        now = self._now()
        left, since, dropped = self._sources.pop(source, (float(BURST), now, 0))
        left = min(left + (now - since) * RATE, float(BURST))
        passes = left >= 1
        self._sources[source] = (left - 1, now, 0) if passes else (left, now, dropped + 1)
        if len(self._sources) > SOURCES:
            self._sources.popitem(last=False)
        words = record.getMessage()
        if passes and (dropped or len(words) > MAX_ENTRY):
            before = f"[{dropped} entries of {source} were dropped] " if dropped else ""
            record.msg, record.args = f"{before}{words[:MAX_ENTRY]}", ()
        return passes


def about(device: str) -> dict[str, str]:
    """Return the fields of an entry about a device that is not kept."""
    return {"MOUNTSAFE_DEVICE": device}


def start() -> None:
    """Log to the journal if stderr is connected to it and Debian's python3-systemd is there, to stderr otherwise."""
    handler: logging.Handler = logging.StreamHandler()
    if _stderr_is_the_journal():
        try:
            from systemd.journal import JournalHandler
        except ImportError:
            pass
        else:
            handler = JournalHandler(SYSLOG_IDENTIFIER="mountsafe")
    handler.addFilter(Flood())
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def _stderr_is_the_journal() -> bool:
    """Compare as systemd.exec(5) wants it: the variable is inherited by whoever has another stderr as well."""
    status = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
