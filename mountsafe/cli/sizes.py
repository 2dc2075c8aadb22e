"""`--offset` and `--sizelimit`: which part of a disk counts."""

import re

from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.part import UNIT, Part
from mountsafe.text import printable

MOST = (1 << 63) - 1  # bytes of a file, and what our processes tell each other
_NUMBER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19}) *([a-zA-Z]*)")
# As those of util-linux and coreutils: K and KiB are 1024, KB is 1000; s are sectors, as parted prints them.
_UNITS: dict[str, int] = {"": 1, "b": 1, "s": UNIT} | {
    letter + end: int(base**power)
    for power, letter in enumerate("kmgtpe", 1)
    for end, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def bytes_of(option: str, words: str) -> int:
    """Return the number of bytes that an option says: 1048576, 0x100000, 1MiB, 2048s. Raises UserError (USAGE)."""
    found = _NUMBER.fullmatch(words.strip())
    if found is None or found[3].lower() not in _UNITS:
        hint = "For example 1048576, 0x100000, 1MiB or 2048s (sectors of 512 bytes)."
        raise UserError(f"{option}: {printable(words) or 'nothing'} is no number of bytes", hint, ExitCode.USAGE)
    if found[1] == "-":
        raise UserError(f"{option}: {words.strip()} is negative", "It counts from the beginning.", ExitCode.USAGE)
    number = int(found[2], 16 if found[2][:2].lower() == "0x" else 10)
    if (count := number * _UNITS[found[3].lower()]) > MOST:
        raise UserError(f"{option}: {words.strip()} is more than any disk has", "It counts bytes.", ExitCode.USAGE)
    return count


def checked_part(offset: str | None, sizelimit: str | None) -> Part:
    """Return what `--offset` and `--sizelimit` say. Raises UserError (USAGE); what is beyond the end shows later."""
    start = 0 if offset is None else bytes_of("--offset", offset)
    return Part.checked(start, None if sizelimit is None else bytes_of("--sizelimit", sizelimit))
