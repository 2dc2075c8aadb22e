"""A virtual machine that is started before there is a disk for it, while something else takes its time.

One that was started has a stream too: to open one takes a good part of the time that it takes to look at a disk.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from mountsafe.appliance.machine import Machine
from mountsafe.errors import MountsafeError

log = logging.getLogger(__name__)


async def started_ahead(start: Callable[[], Awaitable[Machine]]) -> Machine:
    """Return a virtual machine that has a stream already. Raises GuestGone or DeadlinePassed."""
    machine = await start()
    try:
        await machine.open_ahead()
    except BaseException:
        with trio.CancelScope(shield=True):
            await machine.stop()
        raise
    return machine


class Ahead:
    """At most one virtual machine, `ready` if it runs already. It is whoever's took it; `end` ends it if nobody did.

    One task at a time calls `begin`, `taken` and `end`.
    """

    def __init__(
        self, start: Callable[[], Awaitable[Machine]], nursery: trio.Nursery, ready: Machine | None = None
    ) -> None:
        self._start = start
        self._nursery = nursery
        self._machine = ready
        self._starting: trio.CancelScope | None = None
        self._over = trio.Event()

    def begin(self) -> None:
        """Start it. Nothing happens if that was done."""
        if self._starting is None:
            self._starting, self._over = trio.CancelScope(), trio.Event()
            self._nursery.start_soon(self._run, self._starting)

    async def _run(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                self._machine = await started_ahead(self._start)
        except MountsafeError as error:
            log.warning("no virtual machine ahead: %s", error)
        finally:
            self._over.set()

    async def taken(self) -> Machine | None:
        """Return it, as soon as it runs; None if none was begun, or it did not start."""
        if self._starting is not None:
            await self._over.wait()
        self._starting = None
        machine, self._machine = self._machine, None
        return machine

    async def end(self) -> None:
        """End it if nobody took it; it may be begun again."""
        with trio.CancelScope(shield=True):
            if self._starting is not None:
                self._starting.cancel()
            machine = await self.taken()
            if machine is not None:
                await machine.stop()
