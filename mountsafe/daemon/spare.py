"""A supervisor with a virtual machine that waits for the next medium."""

import logging
from collections.abc import Callable
from functools import partial

import trio

from mountsafe.daemon.aside import aside, quietly
from mountsafe.session.start import Starting
from mountsafe.system.units import Unit

log = logging.getLogger(__name__)
START_DEADLINE = 60.0  # seconds: programs are read from the system's disk
END_DEADLINE = 60.0
REST = 2.0  # seconds after a medium before the next spare is made: that one is to be shown first


class Spare:
    """Gives out supervisors. `wanted`: keep one ready, at the price of a virtual machine's memory.

    `unit` returns the one that each runs in.
    """

    def __init__(self, wanted: bool, unit: Callable[[], Unit]) -> None:
        self._wanted = wanted
        self._unit = unit
        self._ready: Starting | None = None
        self._taken = trio.Event()

    async def take(self) -> Starting:
        """Return a supervisor to give an order to: the spare one if it lives, else a new one."""
        ready, self._ready = self._ready, None
        self._taken.set()
        if ready is not None and ready.alive:
            return ready
        return await aside(lambda: Starting(unit=self._unit()), START_DEADLINE, undo=Starting.end)

    async def run(self) -> None:
        """Keep one ready, until cancelled."""
        if not self._wanted:
            return
        try:
            while True:
                self._taken = trio.Event()
                await self._start()
                await self._taken.wait()
                await trio.sleep(REST)
        finally:
            if self._ready is not None:
                await quietly(self._ready.end, "ending the spare supervisor", END_DEADLINE)

    async def _start(self) -> None:
        try:
            start = partial(Starting, spare=True, unit=self._unit())
            self._ready = await aside(start, START_DEADLINE, undo=Starting.end)
        except OSError as error:  # no memory, no process: the next medium starts its own, or says why not
            log.warning("there is no spare supervisor: %s", error)
