"""Messages to the service manager, as sd_notify(3) describes them."""

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from mountsafe.daemon.aside import FOR_EVER, aside

log = logging.getLogger(__name__)
MOMENT = 40.0  # seconds: the longest look at udev's database that is waited for, and some


def tell(state: str) -> None:
    """Send a state such as "READY=1"; nothing happens where no manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    place = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(place)
        sock.send(state.encode())


class Pulse:
    """Whether the daemon does what it is for: its loop turns, events are taken, and a thread can be had for a device.

    A device that does not answer is none of this: whoever waits for it has been left behind.
    """

    def __init__(self) -> None:
        self._works_until = FOR_EVER

    def works(self) -> None:
        """Say that there are events, which take a moment."""
        self._works_until = trio.current_time() + MOMENT

    def waits(self) -> None:
        """Say that they have been taken."""
        self._works_until = FOR_EVER

    async def beats(self) -> bool:
        """Try it."""
        with suppress(OSError):
            return await aside(lambda: True, MOMENT) and trio.current_time() < self._works_until
        return False


async def keep_watchdog_quiet(alive: Callable[[], Awaitable[bool]]) -> None:
    """Tell the manager that we live, twice in each of its periods; return at once if it does not ask."""
    period = os.environ.get("WATCHDOG_USEC", "")
    if not period.isdecimal():
        return
    while True:
        if await alive():
            tell("WATCHDOG=1")
        else:
            log.error("events are not taken any more, or no thread can be had")
        await trio.sleep(int(period) / 1e6 / 2)
