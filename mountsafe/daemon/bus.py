"""A connection to a D-Bus bus whose failures have one name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from jeepney.io.trio import DBusRouter, open_dbus_router

from mountsafe.errors import MountsafeError


class BusGone(MountsafeError):
    """The bus cannot be reached, or has ended."""


@asynccontextmanager
async def connected(bus: str) -> AsyncIterator[DBusRouter]:
    """Be connected to "SYSTEM" or "SESSION". Raises BusGone.

    jeepney fails in many ways when a bus goes, and also when it is cancelled: its receiver ends before those who wait
    for it, and takes its tables along. In the second case only the cancellation leaves here.
    """
    try:
        async with open_dbus_router(bus=bus) as router:
            yield router
    except MountsafeError:
        raise
    except (Exception, BaseExceptionGroup) as error:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise BusGone(str(error) or type(error).__name__) from error
