"""A disk that virtual machines and session processes read: the medium itself if it is raw, or what is made of it."""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from mountsafe.container.opened import Container
from mountsafe.medium.encryption import Stack
from mountsafe.medium.formats import Format
from mountsafe.medium.part import UNIT, WHOLE, Part
from mountsafe.medium.source import Medium
from mountsafe.medium.swapped import Exchanged, is_same
from mountsafe.session.maker import Maker


class Lender(Protocol):
    """What virtual machines have a disk of, and session processes its bytes: `Storage`, or `unlocked.Unlocked`.

    Or what virtual machines alone have, and may write to: `writable.Writable`.
    `size`, in bytes; `part`: what counts of the disk that a virtual machine is lent; `model`: what it is called there.
    """

    size: int
    part: Part

    @property
    def writable(self) -> bool:
        """Whether virtual machines may write to it."""

    @property
    def model(self) -> str:
        """As `mountsafe.medium.source.Medium.model` has it."""

    @property
    def pid(self) -> int | None:
        """The process id of the box that serves it to virtual machines, if one does."""

    @property
    def number(self) -> int:
        """How many processes there were that served it to virtual machines."""

    @property
    def base(self) -> "Storage":
        """The disk in the medium: session processes read that."""

    @property
    def stack(self) -> Stack:
        """What they make of it."""

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys that they need for that, each in a descriptor."""

    def lent(self, to_qemu: bool) -> AbstractAsyncContextManager[int]:
        """Give a descriptor to pass on: see `Storage.lent`."""

    async def lost(self, number: int) -> None:
        """Return when the process of that number has ended."""

    async def replace(self, number: int) -> None:
        """End the process of that number, which does not answer."""

    async def close(self) -> None:
        """End the process for good, and let go of what it reads."""


class Storage:
    """Lends descriptors from which the disk in the medium is read. `open` first.

    `part`: what counts of the disk, and its `size` in bytes; `reach`: what a reader must know of the disk, in bytes.
    Any task may call any method: see `Maker`.
    """

    writable = False

    def __init__(self, medium: Medium, nursery: trio.Nursery) -> None:
        self.medium = medium
        self.part = medium.part
        self.size = self.reach = medium.size
        if self.raw:
            self._measure(medium.size)
        self._maker = Maker("the container process", self._container, nursery)

    async def _container(self) -> Container:
        return Container.start(self.medium)

    @property
    def raw(self) -> bool:
        """Whether the disk is read from the medium's own descriptor."""
        return self.medium.format is Format.RAW

    @property
    def pid(self) -> int | None:
        """The process id of the container process's box, if there is one."""
        return self._maker.pid

    @property
    def number(self) -> int:
        """How many container processes there were."""
        return self._maker.number

    @property
    def model(self) -> str:
        """What the disk is called in the guest."""
        return self.medium.model()

    @property
    def base(self) -> "Storage":
        """Itself: it is the disk in the medium."""
        return self

    @property
    def stack(self) -> Stack:
        """How a reader has its bytes from what `lent` gives."""
        return Stack(self.raw, self.reach, self.part.offset, self.size)

    @property
    def keys(self) -> tuple[int, ...]:
        """None."""
        return ()

    def _measure(self, whole: int) -> None:
        """Learn how large the disk is. A file is read up to the part's end; who serves a disk has all of it."""
        part = self.medium.part
        self.size = part.within(whole, f"the disk in {self.medium.name}")
        self.reach = part.offset + self.size if self.raw else whole
        self.part = Part(part.offset, None if self.size % UNIT or part == WHOLE else self.size)

    async def open(self) -> None:
        """Start what opens the medium. Raises UserError (SOURCE, USAGE), GuestGone, DeadlinePassed."""
        if not self.raw:
            self._measure(await self._maker.open())

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
        async with self._maker.lent(to_qemu) as fd:
            yield fd

    async def lost(self, number: int) -> None:
        """Return when the container process of that number has ended: what is connected to it is of no use any more."""
        if self.raw:
            await trio.sleep_forever()
        await self._maker.lost(number)

    async def replace(self, number: int) -> None:
        """End the container process, which does not answer, if it is still the one of that number."""
        await self._maker.replace(number)

    async def close(self) -> None:
        """End the process, and let go of the medium."""
        await self._maker.close()
        os.close(self.medium.fd)
        if self.medium.writable_fd is not None:
            os.close(self.medium.writable_fd)
