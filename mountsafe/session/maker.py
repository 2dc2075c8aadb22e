"""A boxed process that makes a disk of a medium, restarted when it dies.

Whoever was connected to it notices, and asks for the disk again.
"""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from mountsafe.errors import GuestFault
from mountsafe.session.restarts import RestartLimit

log = logging.getLogger(__name__)


class DiskServer(Protocol):
    """The process: `mountsafe.container.opened.Container`, or `mountsafe.encrypted.serving.Plaintext`."""

    @property
    def pid(self) -> int:
        """The process id of its box."""

    async def opened(self) -> int:
        """Wait until the disk is there; return its size in bytes. Raises UserError, GuestGone, DeadlinePassed."""

    async def connect(self, relayed: bool) -> socket.socket:
        """Return a socket at whose other end the disk is served by NBD, `relayed` to QEMU."""

    async def log_words(self) -> None:
        """Log what it says until it ends."""

    async def wait(self) -> int:
        """Wait until it has ended; return its code."""

    async def stop(self) -> None:
        """End it, and wait until every process of its box is gone."""


class Maker:
    """The process of one disk: at most one at a time.

    Any task may call any method. `_starting` is held wherever `_server` and `number` change; who holds it waits for no
    other lock but those of `start`. A caller that is cancelled stops the process that it was starting.
    `size`: of the disk, in bytes, if that is known before it is opened.
    """

    def __init__(
        self, what: str, start: Callable[[], Awaitable[DiskServer]], nursery: trio.Nursery, size: int = 0
    ) -> None:
        self.number = 0  # how many processes there were
        self._what = what
        self._start = start
        self._nursery = nursery
        self._server: DiskServer | None = None
        self._size = size
        self._starting = trio.Lock()
        self._restarts = RestartLimit(what)
        self._lost = trio.Event()

    @property
    def pid(self) -> int | None:
        """The process id of its box, if there is one."""
        return self._server.pid if self._server else None

    async def open(self) -> int:
        """Start it; return the size of its disk in bytes. Raises UserError, GuestGone, DeadlinePassed."""
        async with self._starting:
            self._server, self._size = await self._started()
            return self._size

    async def _started(self) -> tuple[DiskServer, int]:
        server = await self._start()
        self._nursery.start_soon(server.log_words)
        try:
            size = await server.opened()
        except BaseException:
            await server.stop()
            raise
        self.number += 1
        self._lost = trio.Event()
        self._nursery.start_soon(self._watch, server)
        return server, size

    @asynccontextmanager
    async def lent(self, to_qemu: bool) -> AsyncIterator[int]:
        """Give a descriptor to pass on: a socket at whose end the disk is served. Raises MountsafeError if none is."""
        async with self._starting:
            if self._server is None:
                self._restarts.check()
                server, size = await self._started()
                self._server = server
                if size != self._size:
                    await self._bury(server, "the image has another size than before")
                    raise GuestFault("the image has another size than before")
            with await self._server.connect(to_qemu) as sock:
                yield sock.fileno()

    async def lost(self, number: int) -> None:
        """Return when the process of that number has ended: what is connected to it is of no use any more."""
        if self.number == number:
            await self._lost.wait()

    async def replace(self, number: int) -> None:
        """End the process, which does not answer, if it is still the one of that number."""
        async with self._starting:
            if self._server is not None and self.number == number:
                await self._bury(self._server, "it does not answer")

    async def _watch(self, server: DiskServer) -> None:
        code = await server.wait()
        async with self._starting:
            await self._bury(server, f"it ended ({code})")

    async def _bury(self, server: DiskServer, why: str) -> None:
        if self._server is server:
            self._server = None
            self._restarts.note()
            self._lost.set()
            log.warning("%s is lost: %s", self._what, why)
            await server.stop()

    async def rest(self) -> None:
        """End the process, which nobody needs now: it does not count as one that died."""
        async with self._starting:
            server, self._server = self._server, None
            if server is not None:
                self._lost.set()
                await server.stop()

    async def close(self) -> None:
        """End the process."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
