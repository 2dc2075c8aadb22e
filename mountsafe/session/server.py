"""The session process: serves one file system of a medium over FUSE, in a box, with nothing but three descriptors.

The medium, read-only; a control channel to the parent; and, once the guest has mounted the medium, /dev/fuse, which
the parent sends down. Streams to the appliance come the same way, a new one for each virtual machine that the mount
outlives. If the medium is not raw, a socket to the container process comes so too, in the medium's place.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

import trio

from mountsafe import channel, landlock, wire
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.errors import GuestGone, MountsafeError
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.index import Index
from mountsafe.filesystem.operations import Operations, View, release, serve
from mountsafe.filesystem.prefetch import prefetch
from mountsafe.filesystem.reader import Reader
from mountsafe.incidents import Incidents
from mountsafe.limits import PREFETCH_ENTRIES
from mountsafe.medium.block import BlockReader, Disk
from mountsafe.medium.extents import Window
from mountsafe.medium.part import DiskPart
from mountsafe.trios import run

log = logging.getLogger(__name__)


class Parent:
    """The control channel to the parent: asks for streams, tells what happened.

    Questions are answered one after the other. One that was given up is answered as well, and what comes with that
    answer, which may be a descriptor, is nobody's: it is waited for, and closed, before the next question.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = trio.Lock()
        self._unwanted = 0  # answers that nobody waits for any more

    async def tell(self, message: channel.Message) -> None:
        """Send a message."""
        await trio.to_thread.run_sync(channel.send, self._control, message)

    async def ask(self, message: channel.Message) -> tuple[channel.Message, list[int]]:
        """Send a message and return the answer to it."""
        async with self._lock:
            await self._drop_unwanted()
            await self.tell(message)
            try:
                return await self._answer()
            except trio.Cancelled:
                self._unwanted += 1
                trio.lowlevel.spawn_system_task(self._drop_soon)
                raise

    async def _answer(self) -> tuple[channel.Message, list[int]]:
        # A thread that waited in recvmsg could not be cancelled, and would take the answer to the next question.
        await trio.lowlevel.wait_readable(self._control.fileno())
        answer = channel.receive(self._control)
        if answer is None:
            raise GuestGone("the parent is gone")
        return answer

    async def _drop_unwanted(self) -> None:
        while self._unwanted:
            _, fds = await self._answer()
            self._unwanted -= 1
            channel.close(fds)

    async def _drop_soon(self) -> None:
        with suppress(OSError, MountsafeError):  # who asks next hears of it
            async with self._lock:
                await self._drop_unwanted()


OpenDisk = Callable[[int, Parent, trio.Nursery], Disk]


def disk_opener(medium: int | None) -> OpenDisk:
    """Return how the disk's bytes are had. To be called while modules can be imported: libnbd is for who needs it."""
    if medium is not None:
        return lambda size, parent, nursery: BlockReader(medium, size)
    from mountsafe.medium.nbd import NbdReader

    def open_disk(size: int, parent: Parent, nursery: trio.Nursery) -> Disk:
        async def connect(instead: int | None) -> tuple[socket.socket, int]:
            answer, fds = await parent.ask({"want": "disk", "instead": instead})
            if (fd := channel.only(fds)) is None:
                raise GuestGone(str(answer.get("why", "no disk")))
            return socket.socket(fileno=fd), answer["number"]

        return NbdReader(connect, size, nursery)

    return open_disk


class SessionProcess:
    """One file system, from the first stream to the last request."""

    def __init__(
        self, settings: channel.Message, control: socket.socket, open_disk: OpenDisk, nursery: trio.Nursery
    ) -> None:
        self._settings = settings
        self._open_disk = open_disk
        self._nursery = nursery
        self._parent = Parent(control)

    async def _client(self) -> AgentClient:
        answer, fds = await self._parent.ask({"want": "stream"})
        if (fd := channel.only(fds)) is None:
            raise GuestGone(str(answer.get("why", "no virtual machine")))
        client = AgentClient(socket.socket(fileno=fd), answer["number"])
        self._nursery.start_soon(client.run)
        return client

    async def _misbehaved(self, machine: int, error: MountsafeError) -> None:
        await self._parent.tell({"event": "misbehaved", "number": machine, "why": str(error)})

    async def _resting(self, reader: Reader) -> None:
        reader.rest()
        await self._parent.tell({"event": "resting"})

    async def run(self) -> None:
        """Mount in the guest, take /dev/fuse, serve until unmounted."""
        settings = self._settings
        places = tuple(wire.Place._make(place) for place in settings["places"])
        window = Window(settings["start"], settings["size"], places)
        options = tuple(map(os.fsencode, settings["options"]))
        what = wire.pack_mount(os.fsencode(settings["device"]), os.fsencode(settings["fstype"]), options)
        agents = Agents(self._client, self._misbehaved, what, window)
        incidents = Incidents()
        try:
            await agents.start()
            index = Index(agents, incidents, self._nursery, settings["entries"], release)
            statfs = agents.unpack(wire.unpack_statfs, await agents.request(wire.Kind.STATFS))
            await index.listing(index.root).begun()
        except OSError as error:  # the guest mounted it, and says no to what every mount needs
            why = f"its root cannot be read: {error.strerror or error}"
            await self._parent.tell({"event": "refused", "why": why})
            raise SystemExit(1) from error
        except MountsafeError as error:
            kind = "refused" if isinstance(error, GuestRefused) else "failed"
            await self._parent.tell({"event": kind, "why": str(error) or type(error).__name__})
            raise SystemExit(1) from error
        answer, fds = await self._parent.ask(
            {
                "event": "ready",
                "fstype": os.fsdecode(agents.mounted.fstype),
                "state": agents.mounted.state,
                "resorts": agents.mounted.resorts,
                "direct": agents.mounted.direct,
                "mode": index.root.mode & 0o777,
                "landlock": settings["landlock"],
            }
        )
        if (fuse := channel.only(fds)) is None:
            raise SystemExit(1)
        disk = self._open_disk(settings["reach"], self._parent, self._nursery)
        if settings["reach"] != settings["disk_size"]:  # who reads all of it is spared one call for each read
            disk = DiskPart(disk, settings["offset"], settings["disk_size"])
        reader = Reader(agents, disk, incidents, self._nursery)
        view = View(settings["uid"], settings["gid"], bool(answer.get("guard_links", True)))
        operations = Operations(index, reader, agents, statfs, view)
        self._nursery.start_soon(prefetch, agents, index, reader, min(PREFETCH_ENTRIES, settings["entries"] // 2))
        if settings["idle"]:
            self._nursery.start_soon(agents.rest_when_idle, settings["idle"], partial(self._resting, reader))
        await serve(operations, fuse, partial(self._parent.tell, {"event": "serving"}))
        agents.close()


async def _run(settings: channel.Message, control: socket.socket, open_disk: OpenDisk) -> None:
    async with trio.open_nursery() as nursery:
        await SessionProcess(settings, control, open_disk, nursery).run()
        nursery.cancel_scope.cancel()


def main() -> NoReturn:
    """Run with one argument, {control, medium} as JSON. The first message says which file system."""
    # Whose words they are is said by the parent.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    open_disk = disk_opener(settings["medium"])
    settings["landlock"] = landlock.enclose()  # all that is imported is imported; nothing is opened from here on
    code = 0
    try:
        told = channel.receive(control)
        if told is not None:
            run(_run, {**settings, **told[0]}, control, open_disk)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        log.exception("the session ended by a bug")
        code = 70
    # The parent unmounts; finalising libfuse against a dead connection can only fail.
    sys.stderr.flush()
    os._exit(code)
