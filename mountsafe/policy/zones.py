"""How time zones are spelled: names of the tz database, and offsets from UTC.

Pure: whether a name is known is asked elsewhere (`mountsafe.system.zones`).
"""

import re

HINT = "A name such as Europe/Berlin (timedatectl list-timezones), or an offset such as +05:30."
_NAME = re.compile(r"(?=.{1,64}\Z)[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,3}")
_OFFSET = re.compile(r"([+-])([01]\d|2[0-3]):([0-5]\d)")


def is_zone(text: str) -> bool:
    """Whether a text can be a zone."""
    return bool(_NAME.fullmatch(text) or _OFFSET.fullmatch(text))


def fixed(text: str) -> str:
    """Return an offset as POSIX's TZ has it, where west is ahead; "" if it is none."""
    if (found := _OFFSET.fullmatch(text)) is None:
        return ""
    sign, hours, minutes = found.groups()
    return f"<{sign}{hours}{minutes}>{'-' if sign == '+' else '+'}{hours}:{minutes}"
