"""A file system in a virtual machine that changes it: the image served by nbdkit, the agent asked as a session does."""

import os
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mountsafe import changes, wire
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.appliance.machine import Machine
from mountsafe.changes import Act, Change
from mountsafe.errors import GuestGone
from mountsafe.limits import MOUNT_DEADLINE
from mountsafe.session.finding import machine_settings
from mountsafe.session.machines import Listener, started
from mountsafe.system.zones import UTC
from mountsafe.wire import Entry, Kind

PATIENCE = 60.0
OWNER = (1000, 100)


@contextmanager
def served(image: Path, broken: Path | None) -> Iterator[int]:
    """Serve an image to whoever has the descriptor: it may be written to, unless a file `broken` is there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    argv = ["nbdkit", "--exit-with-parent", "-s", *(["--filter=error"] if broken else []), "file", str(image)]
    argv += [f"error-pwrite-file={broken}", "error-pwrite-rate=100%"] if broken else []
    server = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
    theirs.close()
    try:
        with ours:
            yield ours.fileno()
        server.wait(PATIENCE)
    finally:
        server.kill()
        server.wait()


class Changer:
    """The host's end of a stream to a guest."""

    def __init__(self, client: AgentClient, machine: Machine) -> None:
        self.client = client
        self.machine = machine

    async def mount(
        self, fstype: str, writable: bool = True, zone: bytes = UTC, options: tuple[str, ...] = ()
    ) -> wire.Mounted:
        await self.client.hello()
        device = b"" if writable else next(each.device for each in await self.client.probe())
        body = wire.pack_mount(
            wire.MountRequest(device, fstype.encode(), zone, tuple(map(os.fsencode, options)), writable)
        )
        return wire.unpack_mounted(await self.client.request(Kind.MOUNT, body, MOUNT_DEADLINE))

    async def ask(self, kind: int, body: bytes = b"") -> bytes:
        return await self.client.request(kind, body, PATIENCE)

    async def change(self, act: int, path: bytes = b"", **fields: Any) -> list[Entry]:
        change = Change(act, path, uid=OWNER[0], gid=OWNER[1], mode=0o640)._replace(**fields)  # type: ignore[arg-type]
        return changes.unpack_changed(await self.ask(Kind.CHANGE, changes.pack_change(change)))

    async def write(self, handle: int, data: bytes, offset: int = 0) -> Entry:
        told = await self.ask(Kind.WRITE, changes.pack_write(handle, offset, data))
        return changes.unpack_changed(told)[0]

    async def put(self, path: bytes, data: bytes, handle: int = 99) -> None:
        """Make a file of these bytes."""
        await self.change(Act.CREATE, path, handle=handle)
        for at in range(0, len(data), changes.MAX_WRITE):
            await self.write(handle, data[at : at + changes.MAX_WRITE], at)
        await self.change(Act.CLOSE, handle=handle)

    async def read(self, handle: int, length: int = 100, offset: int = 0) -> bytes:
        return await self.ask(Kind.HANDLE_READ, changes.pack_read(handle, offset, length))

    async def content(self, path: bytes, size: int) -> bytes:
        """Read a file by its path."""
        data = b""
        while len(data) < size:
            body = wire.pack_read(path, len(data), min(wire.MAX_READ, size - len(data)))
            data += (more := await self.ask(Kind.READ, body))
            assert more
        return data

    async def sync(self) -> None:
        await self.ask(Kind.SYNC)

    async def unmount(self) -> None:
        await self.ask(Kind.UNMOUNT)

    async def listed(self, path: bytes = b"") -> dict[bytes, Entry]:
        found, cursor = {}, 0
        while True:
            cursor, page = wire.unpack_page(await self.ask(Kind.LIST, wire.pack_list(path, cursor)))
            found |= {entry.name: entry for entry in page}
            if not cursor:
                return found

    async def tree(self, path: bytes = b"") -> dict[bytes, object]:
        """Return what is there: of files their bytes, of links where they lead, of the rest what they are."""
        found: dict[bytes, object] = {}
        for name, entry in (await self.listed(path)).items():
            inner = path + b"/" + name if path else name
            if stat.S_ISDIR(entry.mode):
                found[inner] = "folder"
                found |= await self.tree(inner)
            elif stat.S_ISLNK(entry.mode):
                found[inner] = entry.target
            else:
                found[inner] = await self.content(inner, entry.size) if stat.S_ISREG(entry.mode) else "special"
        return found

    async def refused(self, number: int, *fields: object, **named: Any) -> str:
        """Ask for a change that is refused so; return the words."""
        with pytest.raises(GuestRefused) as refused:
            await self.change(*fields, **named)  # type: ignore[arg-type]
        assert refused.value.errno == number, refused.value
        return refused.value.words

    async def kill(self) -> None:
        """End the virtual machine as if its power were cut."""
        await self.machine.stop()
        self.client.end(GuestGone("it was killed"))


@asynccontextmanager
async def guest(image: Path, broken: Path | None = None) -> AsyncIterator[Changer]:
    """Start a virtual machine that may change an image, and open a stream to it."""
    with machine_settings(False) as (settings, acceleration), served(image, broken) as disk:
        async with trio.open_nursery() as nursery:
            machine = await started(settings, acceleration, nursery, Listener())
            try:
                await machine.attach(disk, writable=True)
                client = AgentClient(await machine.open_stream())
                nursery.start_soon(client.run)
                yield Changer(client, machine)
                client.end(GuestGone("done"))
            finally:
                await machine.stop()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def reader(image: Path, fstype: str, zone: bytes = UTC) -> AsyncIterator[Changer]:
    """Look at an image as it is read every day."""
    with machine_settings(False) as (settings, acceleration), image.open("rb") as file:
        async with trio.open_nursery() as nursery:
            machine = await started(settings, acceleration, nursery, Listener())
            try:
                await machine.attach(file.fileno())
                client = AgentClient(await machine.open_stream())
                nursery.start_soon(client.run)
                changer = Changer(client, machine)
                mounted = await changer.mount(fstype, writable=False, zone=zone)
                assert mounted.state == wire.MountState.CLEAN
                yield changer
                client.end(GuestGone("done"))
            finally:
                await machine.stop()
            nursery.cancel_scope.cancel()
