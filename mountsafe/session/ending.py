"""How the mounts of a medium end: what was changed is saved in parallel, and a signal ends all of them."""

import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any

import trio

from mountsafe.errors import UserError
from mountsafe.session.served import ServedVolume

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def save_all(volumes: Sequence[ServedVolume], deadline: float, force: bool) -> None:
    """Have all save what was changed. Raises UserError if one does not, unless by `force`."""
    failures: list[UserError] = []

    async def save(served: ServedVolume) -> None:
        try:
            await served.save(deadline, force)
        except UserError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for served in volumes:
            nursery.start_soon(save, served)
    if failures:
        raise failures[0]


async def settle_all(volumes: Sequence[ServedVolume], deadline: float) -> None:
    """Have all save what they have, and end."""
    async with trio.open_nursery() as nursery:
        for served in volumes:
            nursery.start_soon(served.settled, deadline)


class Ending:
    """How all of it is ended by a signal: at once, unless `gently` ends it, because something is to be saved."""

    def __init__(self, everything: trio.CancelScope) -> None:
        self._everything = everything
        self.gently: Callable[[], bool] = lambda: False

    async def on_signal(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Wait for signals."""
        with trio.open_signal_receiver(*SIGNALS) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            task_status.started()
            async for number in signals:
                log.info("ended by signal %d", number)
                if not self.gently():
                    self._everything.cancel()
