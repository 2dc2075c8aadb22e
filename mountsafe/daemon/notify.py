"""Words to the service manager, as sd_notify(3) describes them."""

import os
import socket
from contextlib import suppress

import trio


def tell(state: str) -> None:
    """Send a state such as "READY=1"; nothing happens where no manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    place = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(place)
        sock.send(state.encode())


async def keep_watchdog_quiet() -> None:
    """Tell the manager that we live, twice in each of its periods; return at once if it does not ask."""
    period = os.environ.get("WATCHDOG_USEC", "")
    if not period.isdecimal():
        return
    while True:
        tell("WATCHDOG=1")
        await trio.sleep(int(period) / 1e6 / 2)
