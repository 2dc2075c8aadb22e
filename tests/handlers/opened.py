"""A mount without FUSE and without a virtual machine: agents, index, reader and operations over a guest of a test."""

import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyfuse3
import pytest
import trio

from mountsafe import wire
from mountsafe.appliance.client import AgentClient
from mountsafe.errors import GuestGone, MountsafeError
from mountsafe.filesystem.agents import Agents, Way, Writable
from mountsafe.filesystem.changing import ChangingOperations
from mountsafe.filesystem.index import ROOT, Index
from mountsafe.filesystem.journal import Journal
from mountsafe.filesystem.opened import FileSystem
from mountsafe.filesystem.operations import Operations, View
from mountsafe.filesystem.reader import Reader
from mountsafe.incidents import Incidents
from mountsafe.limits import INDEX_ENTRIES
from mountsafe.medium.block import BlockReader
from mountsafe.medium.extents import Window
from tests.guest import HangUp

IDLE = 5.0  # seconds without a change until it settles
AS_ON_MEDIUM = View(uid=None, gid=None, guard_links=True)


class Guest(Protocol):
    """The far end of a stream, honest or not."""

    def answer(self, request: wire.Frame) -> bytes: ...

    def close(self) -> None: ...


async def serve(guest: Guest, sock: socket.socket) -> None:
    """Answer what comes over `sock` until either end closes it."""
    decoder = wire.Decoder()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        try:
            while data := await stream.receive_some():
                for request in decoder.feed(data):
                    await trio.sleep(getattr(guest, "pause", 0.0))
                    await stream.send_all(guest.answer(request))
        except (HangUp, trio.BrokenResourceError):
            pass


class Host:
    """Starts guests: `make` is called for each virtual machine that is wanted."""

    def __init__(self, nursery: trio.Nursery, make: Callable[[], Guest]) -> None:
        self._nursery = nursery
        self._make = make
        self._running: dict[int, trio.CancelScope] = {}  # by number
        self.guests: list[Guest] = []
        self.misbehaved: list[MountsafeError] = []
        self.blamed: list[int] = []  # by number, from 1 on
        self.lost: list[tuple[str, int, list[bytes]]] = []  # what could not be saved
        self.announced: list[list[bytes]] = []  # names of what was about to be saved
        self.settled = 0
        self._deserted = False

    async def client(self) -> AgentClient:
        """A stream to a new guest."""
        await trio.lowlevel.checkpoint()
        if self._deserted:
            raise GuestGone("given up for a while")
        ours, theirs = socket.socketpair()
        self.guests.append(self._make())
        scope = trio.CancelScope()
        self._running[len(self.guests)] = scope
        self._nursery.start_soon(self._run, scope, self.guests[-1], theirs)
        client = AgentClient(ours, len(self.guests))
        self._nursery.start_soon(client.run)
        return client

    @asynccontextmanager
    async def deserted(self) -> AsyncIterator[None]:
        """The guest is killed, and no other one comes in the block."""
        self._deserted = True
        await self.kill()
        try:
            yield
        finally:
            self._deserted = False

    async def writer(self) -> AgentClient:
        """A stream to a new guest that may change the medium."""
        client = await self.client()
        client.writing = True
        return client

    async def settle(self) -> str:
        """It has changed it."""
        self.settled += 1
        return ""

    async def saving(self, names: list[bytes]) -> None:
        """Take note of what is about to be saved."""
        self.announced.append(names)

    async def unsaved(self, why: str, count: int, names: list[bytes]) -> None:
        """Changes are lost."""
        self.lost.append((why, count, names))

    async def _run(self, scope: trio.CancelScope, guest: Guest, sock: socket.socket) -> None:
        try:
            with scope:
                await serve(guest, sock)
        finally:
            guest.close()

    async def kill(self) -> None:
        """End every guest, as a crash would."""
        for scope in self._running.values():
            scope.cancel()
        self._running.clear()
        await trio.testing.wait_all_tasks_blocked()

    async def end_misbehaving(self, machine: int, error: MountsafeError) -> None:
        """End the guest of this number, if it is there still, and no other one."""
        self.misbehaved.append(error)
        self.blamed.append(machine)
        if (scope := self._running.pop(machine, None)) is not None:
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()


@dataclass
class Opened:
    """An opened medium, and shorthands for what a kernel asks of it."""

    host: Host
    agents: Agents
    index: Index
    reader: Reader
    operations: Operations
    incidents: Incidents
    inside: FileSystem
    journal: Journal | None = None
    replies: list[tuple[bytes, int]] = field(default_factory=list)

    async def walk(self, path: bytes) -> int:
        """Look every name of a path up; return the inode number."""
        inode = ROOT
        for name in filter(None, path.split(b"/")):
            inode = (await self.operations.lookup(inode, name, None)).st_ino
            if inode == 0:
                raise FileNotFoundError(path)
        return inode

    async def names(self, path: bytes = b"") -> list[bytes]:
        """The names in a folder."""
        return list(await self.index.children(self.index.node(await self.walk(path))))

    async def read(self, path: bytes, offset: int = 0, size: int = 1 << 20) -> bytes:
        """Open, read, close."""
        handle = await self.operations.open(await self.walk(path), os.O_RDONLY, None)
        try:
            return await self.operations.read(handle.fh, offset, size)
        finally:
            await self.operations.release(handle.fh)


@asynccontextmanager
async def opened(
    make: Callable[[], Guest],
    medium: Path | None = None,
    window: Window | None = None,
    view: View = AS_ON_MEDIUM,
    limit: int = INDEX_ENTRIES,
    writable: bool = False,
    begun: bool = False,
) -> AsyncIterator[Opened]:
    """Open a medium whose virtual machines are the guests that `make` makes. `writable`: it can be changed.

    `begun`: the root's first names are learned before anything is served, as by a session process.
    """
    fd = os.open(medium or "/dev/null", os.O_RDONLY)
    size = os.fstat(fd).st_size
    try:
        async with trio.open_nursery() as nursery:
            host = Host(nursery, make)
            mount = wire.MountRequest(b"sdx", b"ext4", b"UTC0")
            readable = Way(host.client, host.end_misbehaving, mount)
            to_write = Writable(host.writer, host.end_misbehaving, mount._replace(writable=True), host.settle)
            agents = Agents(readable, window or Window(0, size), to_write if writable else None)
            inside = await FileSystem.open(agents, lambda: BlockReader(fd, size), nursery, limit)
            if begun:
                await inside.begun()
            operations, journal = Operations(inside, view), None
            if writable:
                told = (host.unsaved, host.saving, inside.doubt_all, inside.index.settled)
                journal = Journal(agents, nursery, IDLE, *told)
                operations = ChangingOperations(inside, view, journal)
            yield Opened(host, agents, inside.index, inside.reader, operations, inside.incidents, inside, journal)
            nursery.cancel_scope.cancel()
    finally:
        os.close(fd)


@asynccontextmanager
async def fails(number: int) -> AsyncIterator[None]:
    """Expect that the kernel is given this errno."""
    with pytest.raises(pyfuse3.FUSEError) as failure:
        yield
    assert errno.errorcode[failure.value.errno] == errno.errorcode[number]


def in_handle(value: Any) -> int:
    """The inode number of attributes."""
    return int(value.st_ino)
