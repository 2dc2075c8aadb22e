"""The time zone of the camera clock whose local times a medium holds: the one that is named, or the machine's.

What is returned goes to the guest, which converts (`mountsafe.agent.localtimes`).
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.policy import zones
from mountsafe.text import printable
from mountsafe.wire import MAX_ZONE

MACHINES = Path("/etc/localtime")
# As zoneinfo has it where the environment (PYTHONTZPATH) names no other places, which are not looked at here.
PLACES = tuple(map(Path, ("/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo")))
UTC = b"UTC0"
_POSIX = re.compile(r"([A-Za-z]{3,10}|<[A-Za-z0-9+-]{3,10}>)[+-]?\d[A-Za-z0-9<>:,./+-]{0,60}")


def rules_of(zone: str) -> bytes:
    """Return a zone's rules: a TZif file's bytes, or a rule as POSIX's TZ has it. "" is the machine's own zone.

    Raises UserError (USAGE) for one that is not known.
    """
    if not zone:
        return _environments() or _file(MACHINES) or UTC
    if rule := zones.fixed(zone):
        return rule.encode()
    if zones.is_zone(zone) and (found := _named(zone)):
        return found
    raise UserError(f"{printable(zone)} is no time zone", zones.HINT, ExitCode.USAGE)


def _environments() -> bytes:
    """Return what TZ says, as for any program that shows times: a name, or a rule. A path is not followed."""
    told = os.environ.get("TZ", "").removeprefix(":")
    if zones.is_zone(told) and (found := _named(told)):
        return found
    return told.encode() if _POSIX.fullmatch(told) else b""


def _named(name: str) -> bytes:
    return next(filter(None, (_file(folder / name) for folder in PLACES)), b"")


def _file(path: Path) -> bytes:
    """Return a file's content if that is a zone's; else nothing."""
    with suppress(OSError), path.open("rb") as file:
        content = file.read(MAX_ZONE + 1)
        if content.startswith(b"TZif") and len(content) <= MAX_ZONE:
            return content
    return b""
