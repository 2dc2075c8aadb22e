"""Where the daemon's log goes: the journal, with fields that can be searched for, or stderr.

`journalctl MOUNTSAFE_VERDICT=refuse` shows what was refused, `-o json` all fields of an entry.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from mountsafe.text import Printable

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
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def _stderr_is_the_journal() -> bool:
    """Compare as systemd.exec(5) wants it: the variable is inherited by whoever has another stderr as well."""
    status = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
