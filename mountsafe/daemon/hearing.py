"""What a supervisor tells once a medium is shown, heard until the supervisor ends."""

import math
from collections.abc import Callable

import trio

from mountsafe.daemon.aside import aside
from mountsafe.daemon.writes import SAVE_UNSAID, Writes
from mountsafe.session.messages import Report
from mountsafe.session.start import Starting

LOOK_PATIENCE = 20.0  # seconds until a look at what is mounted is left behind


class Hearing:
    """Gives `take` each report. `saving` is called where it saves what is unmounted already, and takes a while."""

    def __init__(
        self, starting: Starting, writes: Writes, take: Callable[[Report], None], saving: Callable[[], None]
    ) -> None:
        self._starting = starting
        self._writes = writes
        self._take = take
        self._saving = saving
        self._overheard: list[Report | None] = []  # what was told when nobody waited for it any more

    async def run(self) -> None:
        """Hear what is written, and what goes wrong, until the supervisor ends."""
        await self._news()
        # In a thread: of a longer message there may be a piece, and its sender be stopped.
        while (told := await aside(self._starting.heard, undo=self._overheard.append)) is not None:
            self._take(told)
            await self._news()

    async def _news(self) -> None:
        told = False
        while not told:
            with trio.move_on_after(SAVE_UNSAID if self._writes.changing else math.inf):
                await trio.lowlevel.wait_readable(self._starting.report)
                told = True
            if not told and await aside(self._writes.left, LOOK_PATIENCE):
                self._saving()

    def rest(self) -> None:
        """Hear what is left, after the supervisor's end."""
        for report in (*self._overheard, *self._starting.unheard):
            if report is not None:
                self._take(report)
        self._overheard.clear()
