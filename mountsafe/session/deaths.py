"""How often a process that is started again and again may end before it is given up for a while."""

import time
from collections import deque

from mountsafe.errors import GuestGone
from mountsafe.limits import DEATHS, DEATHS_WINDOW


class Deaths:
    """The latest ends of what is called `what`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._when: deque[float] = deque(maxlen=DEATHS)

    def note(self) -> None:
        """It has ended now."""
        self._when.append(time.monotonic())

    def check(self) -> None:
        """Raise GuestGone if it ended too often to be started again."""
        if len(self._when) == DEATHS and time.monotonic() - self._when[0] < DEATHS_WINDOW:
            raise GuestGone(f"{self._what} ended {DEATHS} times within {DEATHS_WINDOW:.0f} s")
