"""Where a medium's log goes: a bounded file, and with --verbose the terminal until the mount is there."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from mountsafe.limits import LOG_BYTES
from mountsafe.text import Printable

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class BoundedLog(logging.StreamHandler[Any]):
    """Writes at most `LOG_BYTES`: the guest's console and a hostile image speak through the log."""

    written = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if there is room for it."""
        self.written += len(record.getMessage()) + 40
        if self.written < LOG_BYTES:
            super().emit(record)


def start(verbose: bool, path: Path) -> None:
    """Log to the file at `path`; with `verbose` also, and more, to the terminal."""
    handlers: list[logging.Handler] = [BoundedLog(open(path, "w", encoding="utf-8"))]  # noqa: SIM115  # until the end
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
