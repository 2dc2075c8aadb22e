"""Times that a medium stores as local time: which moment that was depends on a time zone.

The guest's own zone is UTC, so a driver takes such a time for UTC. The host is told the time that it was in the zone
that the host names, by the rules that this zone had on that date.
"""

import os
import time

# What Linux's drivers convert by the kernel's one time zone, or would for exFAT's entries without an offset.
LOCAL = frozenset({"vfat", "msdos", "exfat", "hfs", "affs", "hpfs"})
# Their root folders have no times, or those of their driver.
ROOT_WITHOUT = frozenset({"vfat", "msdos", "exfat"})
# Of those, whose drivers write the time of the kernel's clock as it is. exFAT's writes how far it is from UTC as well.
STAMPED = frozenset({"vfat", "msdos"})
AHEAD = "/run/mountsafe/clock-ahead"  # by how many ns the guest's clock is set ahead for them
SECOND = 1_000_000_000
QUARTER = 900  # seconds: zones change at such times of the local clock
MOST_KEPT = 4096
TZIF = b"TZif"


class LocalTimes:
    """Times of the clock in one zone: a TZif file's bytes (RFC 8536), or a rule as POSIX's TZ has it.

    The C library knows one zone for each process.
    """

    def __init__(self, zone: bytes, place: str) -> None:
        """`place`: where such a file may be put."""
        self._offsets: dict[int, int] = {}
        named = zone.decode("ascii", "replace")
        if zone.startswith(TZIF):
            with open(place, "wb") as file:
                file.write(zone)
            named = f":{place}"
        os.environ["TZ"] = named
        time.tzset()

    def utc(self, told: int) -> int:
        """Return when it was, in ns since the epoch; `told` is what it would be if the clock had shown UTC."""
        quarter = told // (QUARTER * SECOND)
        if quarter not in self._offsets:
            if len(self._offsets) >= MOST_KEPT:
                self._offsets.clear()
            self._offsets[quarter] = self._offset(quarter * QUARTER)
        return told - self._offsets[quarter] * SECOND

    def local(self, at: int) -> int:
        """Return what the clock showed at that time, as if it had shown UTC: `utc` the other way round."""
        try:
            return at + time.localtime(at // SECOND).tm_gmtoff * SECOND
        except (OverflowError, ValueError, OSError):
            return at

    @staticmethod
    def _offset(seconds: int) -> int:
        """Return how much the clock was ahead of UTC. Of an hour that came twice it is the C library's choice."""
        try:
            return seconds - int(time.mktime((*time.gmtime(seconds)[:8], -1)))
        except (OverflowError, ValueError, OSError):  # a year that it cannot count to
            return 0


def clock_ahead() -> int:
    """Return by how many ns the guest's clock is to be ahead of UTC."""
    try:
        with open(AHEAD, encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def set_clock(now: int) -> None:
    """Set the guest's clock; `now` is in ns since the epoch."""
    time.clock_settime_ns(time.CLOCK_REALTIME, now + clock_ahead())


def set_clock_ahead(times: LocalTimes) -> None:
    """From now on this virtual machine's clock shows what one on the wall does: so its drivers write local times."""
    now = time.time_ns() - clock_ahead()
    with open(AHEAD, "w", encoding="ascii") as file:
        file.write(str(times.local(now) - now))
    set_clock(now)
