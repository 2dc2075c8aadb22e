"""A supervisor with a virtual machine that waits for the next medium."""

import logging
from collections.abc import Callable
from functools import partial

import trio

from mountsafe.daemon.aside import aside, quietly
from mountsafe.process import ended
from mountsafe.session.start import Starting
from mountsafe.system.units import Unit

log = logging.getLogger(__name__)
START_DEADLINE = 60.0  # seconds: programs are read from the system's disk
END_DEADLINE = 60.0
REST = 2.0  # seconds after a medium before the next spare is made: that one is to be shown first
LONGEST_REST = 300.0  # where one after the other dies, or cannot be started


class Spare:
    """Gives out supervisors. `wanted`: keep one ready, at the price of a virtual machine's memory.

    `unit` returns the one that each runs in. `run` alone makes the one that is `_ready`; `take` takes it away. One that
    dies while it waits is seen off and replaced by `run`. It may die in the moment in which it is given out: whoever
    has it is told by `Starting.follow`.
    """

    def __init__(self, wanted: bool, unit: Callable[[], Unit]) -> None:
        self._wanted = wanted
        self._unit = unit
        self._ready: Starting | None = None
        self._taken = trio.Event()

    async def take(self) -> Starting:
        """Return a supervisor to give an order to: the spare one if it lives, else a new one."""
        ready = self._ready
        if ready is not None and ready.alive:
            self._ready = None
            self._taken.set()
            return ready
        return await aside(lambda: Starting(unit=self._unit()), START_DEADLINE, undo=Starting.end)

    async def run(self) -> None:
        """Keep one ready, until cancelled."""
        pause = REST
        while self._wanted:
            ready = await self._start()
            given = ready is not None and await self._given(ready)
            pause = REST if given else min(2 * pause, LONGEST_REST)
            await trio.sleep(pause)

    async def _given(self, ready: Starting) -> bool:
        """Keep it until it is given to a medium: True. One that has died is seen off: False."""
        self._ready, self._taken = ready, trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notice_end, ready, nursery.cancel_scope)
                await self._taken.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._ready is ready:
                self._ready = None
                await quietly(ready.end, "ending the spare supervisor", END_DEADLINE)
        return self._taken.is_set()

    async def _notice_end(self, ready: Starting, waiting: trio.CancelScope) -> None:
        await ended(ready.pid)
        if self._ready is ready:
            log.warning("the spare supervisor has ended: another one is started")
        waiting.cancel()

    async def _start(self) -> Starting | None:
        try:
            return await aside(partial(Starting, spare=True, unit=self._unit()), START_DEADLINE, undo=Starting.end)
        except OSError as error:  # no memory, no process: the next medium starts its own, or says why not
            log.warning("there is no spare supervisor: %s", error)
            return None
