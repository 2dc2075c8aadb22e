"""Broken rules, counted and logged. A hostile image must be noticed, and must not fill the log."""

import logging

from mountsafe.limits import MAX_INCIDENTS_LOGGED
from mountsafe.text import printable

log = logging.getLogger("mountsafe.incident")


class Incidents:
    """Counts every incident, logs the first `MAX_INCIDENTS_LOGGED`."""

    def __init__(self) -> None:
        self.count = 0

    def report(self, what: str, untrusted_where: bytes = b"") -> None:
        """Record that a rule was broken; `untrusted_where` is a path on the medium."""
        self.count += 1
        if self.count <= MAX_INCIDENTS_LOGGED:
            log.warning(
                "incident %d: %s%s", self.count, what, f" at {printable(untrusted_where)}" * bool(untrusted_where)
            )
            if self.count == MAX_INCIDENTS_LOGGED:
                log.warning("further incidents are counted but not logged")
