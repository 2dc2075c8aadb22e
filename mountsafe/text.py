"""The only way for text from a medium to reach a terminal, a log or a notification."""

import logging
import os
import unicodedata
from typing import Any

# Cc control, Cf format (bidi overrides, zero width), Cs surrogates (undecodable bytes), Co private,
# Zl/Zp line and paragraph separators: each can rewrite or hide what a terminal shows.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

LOG_ENTRY = 1 << 16  # characters; what is longer is cut


def printable(untrusted_text: str | bytes, limit: int = 255) -> str:
    r"""Return `untrusted_text` with everything that is not plainly visible escaped, at most `limit` characters.

    Bytes are read as UTF-8; what is not valid UTF-8 shows as \xNN. Backslashes stay as they are:
    the result is for eyes, not for parsing.
    """
    if isinstance(untrusted_text, bytes):
        untrusted_text = untrusted_text.decode("utf-8", "surrogateescape")
    shown = [_visible(char) for char in untrusted_text[: limit + 1]]
    length = sum(map(len, shown))
    if length <= limit:
        return "".join(shown)
    while length >= limit:
        length -= len(shown.pop())
    return "".join(shown) + "…"


def shown_path(path: str | bytes | os.PathLike[str], limit: int = 500) -> str:
    """Return a path of the host or a medium as `printable` shows it: its names may be no text, and are somebody's."""
    return printable(os.fsencode(path), limit)


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _ESCAPED_CATEGORIES:
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


class Printable(logging.Formatter):
    """Formats an entry of a log so that it is one line, whatever is in it; a traceback has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the entry without its traceback."""
        record.message = printable(record.message, LOG_ENTRY)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Return a traceback, whose exceptions may have names in them."""
        return "\n".join(printable(line, LOG_ENTRY) for line in super().formatException(ei).split("\n"))


def size(count: int) -> str:
    """Return a number of bytes as people write it: `size(1536)` is "1.5 KiB"."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} EiB"
