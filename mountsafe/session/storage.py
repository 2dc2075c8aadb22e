"""The disk in a medium: the medium itself if it is raw, else what a container process makes of it.

A container process is started anew when it died: who was connected to it notices, and asks for the disk again.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from mountsafe.container.opened import Container
from mountsafe.errors import GuestFault
from mountsafe.medium.formats import Format
from mountsafe.medium.part import UNIT, WHOLE, Part
from mountsafe.medium.source import Medium
from mountsafe.medium.swapped import Exchanged, is_same
from mountsafe.session.restarts import RestartLimit

log = logging.getLogger(__name__)


class Storage:
    """Lends descriptors from which the disk is read. `open` first.

    `part`: what counts of the disk, and its `size` in bytes; `reach`: what a reader must know of the disk, in bytes.
    Any task may call any method. `_starting` is held wherever `_container` and `number` change; who holds it waits for
    no other lock. A caller that is cancelled stops the process that it was starting.
    """

    def __init__(self, medium: Medium, nursery: trio.Nursery) -> None:
        self.medium = medium
        self.part = medium.part
        self.size = self.reach = medium.size
        if self.raw:
            self._measure(medium.size)
        self.number = 0  # how many container processes there were
        self._nursery = nursery
        self._container: Container | None = None
        self._starting = trio.Lock()
        self._restarts = RestartLimit("the container process")
        self._lost = trio.Event()

    @property
    def raw(self) -> bool:
        """Whether the disk is read from the medium's own descriptor."""
        return self.medium.format is Format.RAW

    @property
    def pid(self) -> int | None:
        """The process id of the container process's box, if there is one."""
        return self._container.pid if self._container else None

    def _measure(self, whole: int) -> None:
        """Learn how large the disk is. A file is read up to the part's end; who serves a disk has all of it."""
        part = self.medium.part
        self._whole = whole
        self.size = part.within(whole, f"the disk in {self.medium.name}")
        self.reach = part.offset + self.size if self.raw else whole
        self.part = Part(part.offset, None if self.size % UNIT or part == WHOLE else self.size)

    async def open(self) -> None:
        """Start what opens the medium. Raises UserError (SOURCE, USAGE), GuestGone, DeadlinePassed."""
        if not self.raw:
            async with self._starting:
                self._container, whole = await self._started()
                self._measure(whole)

    async def _started(self) -> tuple[Container, int]:
        container = Container.start(self.medium)
        self._nursery.start_soon(container.log_words)
        try:
            size = await container.opened()
        except BaseException:
            await container.stop()
            raise
        self.number += 1
        self._lost = trio.Event()
        self._nursery.start_soon(self._watch, container)
        return container, size

    @asynccontextmanager
    async def lent(self, to_qemu: bool) -> AsyncIterator[int]:
        """Give a descriptor to pass on: the medium, or a socket of one's own at whose end the disk is served by NBD.

        `to_qemu`: to a virtual machine. Raises MountsafeError if there is none to be had.
        """
        if not is_same(self.medium.fd, self.medium.sequence):
            raise Exchanged("another medium is in its place")
        if self.raw:
            yield self.medium.fd
            return
        async with self._starting:
            if self._container is None:
                self._restarts.check()
                container, size = await self._started()
                self._container = container
                if size != self._whole:
                    await self._bury(container, "the image has another size than before")
                    raise GuestFault("the image has another size than before")
            with await self._container.connect(to_qemu) as sock:
                yield sock.fileno()

    async def lost(self, number: int) -> None:
        """Return when the container process of that number has ended: what is connected to it is of no use any more."""
        if self.raw:
            await trio.sleep_forever()
        if self.number == number:
            await self._lost.wait()

    async def replace(self, number: int) -> None:
        """End the container process, which does not answer, if it is still the one of that number."""
        async with self._starting:
            if self._container is not None and self.number == number:
                await self._bury(self._container, "it does not answer")

    async def _watch(self, container: Container) -> None:
        code = await container.wait()
        async with self._starting:
            await self._bury(container, f"it ended ({code})")

    async def _bury(self, container: Container, why: str) -> None:
        if self._container is container:
            self._container = None
            self._restarts.note()
            self._lost.set()
            log.warning("the container process is lost: %s", why)
            await container.stop()

    async def close(self) -> None:
        """End the process, and let go of the medium."""
        container, self._container = self._container, None
        if container is not None:
            await container.stop()
        os.close(self.medium.fd)
