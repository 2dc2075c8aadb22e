"""What a copy of a medium's files is called, where the names on it are not fit for all that is done with them."""

import re
from enum import StrEnum

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = re.compile(rb"(con|prn|aux|nul|conin\$|conout\$|com[1-9]|lpt[1-9])", re.IGNORECASE)
_NOT_FOR_WINDOWS = frozenset(b'<>:"|?*\\%')
MAX_NAME = 255


class Names(StrEnum):
    """What becomes of names."""

    KEEP = "keep"  # they are the medium's, byte for byte
    SAFE = "safe"  # what a terminal, a script or Windows would trip over is %XX; those alike but for case get a number


def safe(name: bytes) -> bytes:
    """Return a name that is harmless anywhere: text without control characters that Windows takes, 255 bytes long.

    What cannot stay is %XX, its bytes in hexadecimal digits, and so is "%": two names do not become one but by length.
    """
    try:
        made = "".join(map(_safe, name.decode())).encode()
    except UnicodeDecodeError:
        made = b"".join(map(_escaped, name))
    stem, dot, rest = made.partition(b".")
    if _RESERVED.fullmatch(stem.rstrip(b" ")):
        made = _percent(stem[:1]) + stem[1:] + dot + rest
    if made[-1:] in (b".", b" "):
        made = made[:-1] + _percent(made[-1:])
    if made[:1] in (b"-", b" ", b"~"):
        made = _percent(made[:1]) + made[1:]
    return made if len(made) <= MAX_NAME else _shortened(made, MAX_NAME - 8) + b"%cut"


def _safe(char: str) -> str:
    data = char.encode()
    if not char.isprintable() or (len(data) == 1 and data[0] in _NOT_FOR_WINDOWS):
        return _percent(data).decode()
    return char


def _escaped(byte: int) -> bytes:
    return bytes([byte]) if 0x20 <= byte < 0x7F and byte not in _NOT_FOR_WINDOWS else _percent(bytes([byte]))


def _percent(data: bytes) -> bytes:
    return b"".join(b"%%%02X" % each for each in data)


def _shortened(text: bytes, length: int) -> bytes:
    """Return the begin of a text, without half a character at its end."""
    return text[:length].decode(errors="ignore").encode()


class Namer:
    """Names the copies in one folder: with SAFE, none is called as another one, nor alike but for case."""

    def __init__(self, how: Names) -> None:
        self._how = how
        self._taken: set[str] = set()

    def name(self, original: bytes) -> bytes:
        """Return what the copy of something is called."""
        if self._how is Names.KEEP:
            return original
        first = made = safe(original)
        number = 1
        while made.decode().casefold() in self._taken:
            number += 1
            stem, dot, ending = first.rpartition(b".") if b"." in first[1:] else (first, b"", b"")
            made = _shortened(stem, MAX_NAME - 16 - len(ending)) + b"~%d" % number + dot + ending
        self._taken.add(made.decode().casefold())
        return made
