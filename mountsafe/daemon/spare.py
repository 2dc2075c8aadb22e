"""A supervisor with a virtual machine that waits for the next medium."""

from collections.abc import Callable

import trio

from mountsafe.session.start import Starting

REST = 2.0  # seconds after a medium before the next spare is made: that one is to be shown first


class Spare:
    """Gives out supervisors. `wanted`: keep one ready, at the price of a virtual machine's memory.

    `scope` returns the words before their command, as `mountsafe.system.scope` has them.
    """

    def __init__(self, wanted: bool, scope: Callable[[], list[str]]) -> None:
        self._wanted = wanted
        self._scope = scope
        self._ready: Starting | None = None
        self._taken = trio.Event()

    def take(self) -> Starting:
        """Return a supervisor to give an order to: the spare one if it lives, else a new one."""
        ready, self._ready = self._ready, None
        self._taken.set()
        if ready is not None and ready.alive:
            return ready
        return Starting(scope=self._scope())

    async def run(self) -> None:
        """Keep one ready, until cancelled."""
        if not self._wanted:
            return
        try:
            while True:
                self._taken = trio.Event()
                self._ready = Starting(spare=True, scope=self._scope())
                await self._taken.wait()
                await trio.sleep(REST)
        finally:
            if self._ready is not None:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._ready.end)
