"""How often a process that keeps ending may be restarted before it is given up for a while."""

import time
from collections import deque

from mountsafe.errors import GuestGone
from mountsafe.limits import DEATHS, DEATHS_WINDOW


class RestartLimit:
    """The latest ends of what is called `what`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._when: deque[float] = deque(maxlen=DEATHS)
        self._wasted = 0.0

    def _now(self) -> float:
        return time.monotonic() - self._wasted

    def note(self, wasted: float = 0.0) -> None:
        """It has ended now. `wasted`: seconds for which it was started in vain; they do not count as time between."""
        self._wasted += wasted
        self._when.append(self._now())

    def check(self) -> None:
        """Raise GuestGone if it ended too often to be started again."""
        if len(self._when) == DEATHS and self._now() - self._when[0] < DEATHS_WINDOW:
            raise GuestGone(f"{self._what} ended {DEATHS} times within {DEATHS_WINDOW:.0f} s")
