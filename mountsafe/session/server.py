"""The session process: serves one file system of a medium, in a box, with nothing but three descriptors.

The medium, read-only; a control channel to the parent; and, once the guest has mounted the medium, /dev/fuse or a
stream (`mountsafe.reading`), which the parent sends down. Streams to the appliance come the same way, a new one for
each virtual machine that the mount outlives. If the medium is not raw, a socket to the container process comes so too,
in the medium's place.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import trio

from mountsafe import channel, codec, landlock, wire
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.errors import GuestGone, MountsafeError
from mountsafe.filesystem.agents import Agents, Way, Writable
from mountsafe.filesystem.opened import FileSystem
from mountsafe.filesystem.reader import Reader
from mountsafe.limits import NAME_SHOWN, PREFETCH_ENTRIES
from mountsafe.medium.block import BlockReader, Disk
from mountsafe.medium.encryption import Stack
from mountsafe.medium.extents import Window
from mountsafe.medium.part import DiskPart
from mountsafe.session.conversation import (
    GIVEN,
    SAID,
    Assignment,
    Connection,
    Failed,
    Given,
    Misbehaved,
    Nothing,
    Ready,
    Refused,
    Resting,
    Said,
    Saving,
    Serving,
    SessionSettings,
    Settle,
    Settled,
    Stream,
    Unsaved,
    WantDisk,
    WantStream,
)
from mountsafe.session.conversation import Disk as GivenDisk
from mountsafe.session.serving import Server, server_of
from mountsafe.text import printable
from mountsafe.trios import run

if TYPE_CHECKING:
    from mountsafe.filesystem.changing import ChangingOperations
    from mountsafe.filesystem.journal import Journal

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

    async def tell(self, message: Said) -> None:
        """Send a message."""
        await trio.to_thread.run_sync(channel.send, self._control, SAID.told(message))

    async def ask(self, message: Said) -> tuple[Given, list[int]]:
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

    async def _answer(self) -> tuple[Given, list[int]]:
        # A thread that waited in recvmsg could not be cancelled, and would take the answer to the next question.
        await trio.lowlevel.wait_readable(self._control.fileno())
        answer = channel.receive(self._control)
        if answer is None:
            raise GuestGone("the parent is gone")
        return GIVEN.read(answer[0]), answer[1]

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
    """Return how the disk's bytes are had. To be called while modules can be imported: libnbd is optional."""
    if medium is not None:
        return lambda size, parent, nursery: BlockReader(medium, size)
    from mountsafe.medium.nbd import NbdReader

    def open_disk(size: int, parent: Parent, nursery: trio.Nursery) -> Disk:
        async def connect(instead: int | None) -> tuple[socket.socket, int]:
            answer, fds = await parent.ask(WantDisk(instead))
            if (fd := channel.only(fds)) is None or not isinstance(answer, GivenDisk):
                raise GuestGone(answer.why if isinstance(answer, Nothing) else "no disk")
            return socket.socket(fileno=fd), answer.container

        return NbdReader(connect, size, nursery)

    return open_disk


MakeDisk = Callable[[Stack, Disk, Sequence[int]], Disk]


def disk_maker(decrypts: bool) -> MakeDisk:
    """Return what makes a stack's disk of the medium's. To be called while modules can be imported."""
    if decrypts:
        from mountsafe.medium.decrypted import open_disk

        return open_disk

    def part(stack: Stack, disk: Disk, _: Sequence[int]) -> Disk:
        # Who reads all of it is spared one call for each read.
        return disk if stack.reach == stack.size else DiskPart(disk, stack.offset, stack.size)

    return part


def changing(writes: bool) -> "tuple[type[Journal], type[ChangingOperations]] | None":
    """Return what serves a file system that may be changed; None if none will be. To be called as `disk_opener` is.

    Half a MiB of each process, and all code that could change something, is for those that may.
    """
    if not writes:
        return None
    from mountsafe.filesystem.changing import ChangingOperations
    from mountsafe.filesystem.journal import Journal

    return Journal, ChangingOperations


class Means(NamedTuple):
    """What is loaded before the process is closed: who opens the disk, makes the stack's of it, changes a tree, and
    serves it.
    """

    open_disk: OpenDisk
    make_disk: MakeDisk
    changing: "tuple[type[Journal], type[ChangingOperations]] | None"
    server: Server

    @classmethod
    def load(cls, settings: SessionSettings) -> "Means":
        """Import what a process with these settings needs."""
        disks = disk_opener(settings.medium), disk_maker(settings.decrypts)
        return cls(*disks, changing(settings.writes), server_of(settings.fuse))


class SessionProcess:
    """One file system, from the first stream to the last request."""

    def __init__(
        self,
        assigned: Assignment,
        keys: Sequence[int],
        control: socket.socket,
        means: Means,
        landlock: int,
        nursery: trio.Nursery,
    ) -> None:
        self._assigned = assigned
        self._keys = keys
        self._landlock = landlock
        self._means = means
        self._nursery = nursery
        self._parent = Parent(control)

    async def _client(self, writing: bool = False) -> AgentClient:
        answer, fds = await self._parent.ask(WantStream(writing))
        if (fd := channel.only(fds)) is None or not isinstance(answer, Stream):
            raise GuestGone(answer.why if isinstance(answer, Nothing) else "no virtual machine")
        client = AgentClient(socket.socket(fileno=fd), answer.machine, writing)
        self._nursery.start_soon(client.run)
        return client

    async def _misbehaved(self, writing: bool, machine: int, error: MountsafeError) -> None:
        await self._parent.tell(Misbehaved(machine, str(error), writing))

    async def _settled(self) -> str:
        answer, fds = await self._parent.ask(Settle())
        channel.close(fds)
        return answer.why if isinstance(answer, Settled | Nothing) else "the parent says something else"

    async def _unsaved(self, why: str, count: int, untrusted_paths: list[bytes]) -> None:
        await self._parent.tell(Unsaved(printable(why, wire.MAX_MESSAGE), count, _names(untrusted_paths)))

    async def _saving(self, untrusted_paths: list[bytes]) -> None:
        await self._parent.tell(Saving(_names(untrusted_paths)))

    def _agents(self, window: Window) -> Agents:
        assigned = self._assigned
        options = tuple(map(os.fsencode, assigned.options))
        names = (os.fsencode(assigned.device), os.fsencode(assigned.fstype))
        mount = wire.MountRequest(*names, bytes.fromhex(assigned.zone), options)
        readable = Way(self._client, partial(self._misbehaved, False), mount)
        if assigned.writing is None:
            return Agents(readable, window)
        mount = mount._replace(device=os.fsencode(assigned.writing.device), writable=True)
        to_write = (partial(self._client, True), partial(self._misbehaved, True), mount)
        return Agents(readable, window, Writable(*to_write, self._settled))

    async def _resting(self, reader: Reader) -> None:
        reader.rest()
        await self._parent.tell(Resting())

    def _disk(self) -> Disk:
        stack = self._assigned.stack
        return self._means.make_disk(stack, self._means.open_disk(stack.reach, self._parent, self._nursery), self._keys)

    async def run(self) -> None:
        """Mount in the guest, take what is to be served, serve until unmounted."""
        assigned = self._assigned
        window = Window(assigned.start, assigned.size, tuple(wire.Place(*place) for place in assigned.places))
        agents = self._agents(window)
        try:
            opened = await FileSystem.open(
                agents, self._disk, self._nursery, assigned.entries, self._means.server.release
            )
            await opened.begun()
        except OSError as error:  # the guest mounted it, and says no to what every mount needs
            why = f"its root cannot be read: {error.strerror or error}"
            await self._parent.tell(Refused(why))
            raise SystemExit(1) from error
        except MountsafeError as error:
            kind = Refused if isinstance(error, GuestRefused) else Failed
            await self._parent.tell(kind(str(error) or type(error).__name__))
            raise SystemExit(1) from error
        answer, fds = await self._parent.ask(
            Ready(
                fstype=os.fsdecode(agents.mounted.fstype),
                state=agents.mounted.state,
                resorts=agents.mounted.resorts,
                direct=agents.mounted.direct,
                mode=opened.index.root.mode & 0o777,
                landlock=self._landlock,
            )
        )
        if (fd := channel.only(fds)) is None or not isinstance(answer, Connection):
            raise SystemExit(1)
        self._nursery.start_soon(opened.learn_ahead, min(PREFETCH_ENTRIES, assigned.entries // 2))
        if assigned.idle:
            self._nursery.start_soon(agents.rest_when_idle, assigned.idle, partial(self._resting, opened.reader))
        await self._serve(opened, answer, fd)
        agents.close()

    async def _serve(self, opened: FileSystem, given: Connection, fd: int) -> None:
        """Serve it until it is unmounted, and then leave nothing that is not on the medium."""
        started = partial(self._parent.tell, Serving())
        writing = self._assigned.writing
        if writing is None or self._means.changing is None:
            await self._means.server.serve(opened, self._assigned, given, fd, None, started)
            return
        journal_of, operations_of = self._means.changing
        told = (self._unsaved, self._saving, opened.doubt_all, opened.index.settled)
        journal = journal_of(opened.agents, self._nursery, writing.idle, *told)
        self._nursery.start_soon(journal.attend)
        try:
            changed = partial(operations_of, journal=journal)
            await self._means.server.serve(opened, self._assigned, given, fd, changed, started)
        finally:
            with trio.CancelScope(shield=True):
                await journal.end()


def _names(untrusted_paths: list[bytes]) -> tuple[str, ...]:
    return tuple(printable(path, NAME_SHOWN) for path in untrusted_paths)


async def _run(
    assigned: Assignment,
    keys: Sequence[int],
    control: socket.socket,
    means: Means,
    held_in: int,
) -> None:
    async with trio.open_nursery() as nursery:
        await SessionProcess(assigned, keys, control, means, held_in, nursery).run()
        nursery.cancel_scope.cancel()


def main() -> NoReturn:
    """Run with one argument, a `SessionSettings` as JSON. The first message says which file system."""
    # Whose words they are is said by the parent.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    settings = codec.read(SessionSettings, json.loads(sys.argv[1]))
    control = socket.socket(fileno=settings.control)
    means = Means.load(settings)
    held_in = landlock.enclose()  # all that is imported is imported; nothing is opened from here on
    code = 0
    try:
        told = channel.receive(control)
        if told is not None and isinstance(assigned := GIVEN.read(told[0]), Assignment):
            run(_run, assigned, told[1], control, means, held_in)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        log.exception("the session ended by a bug")
        code = 70
    # The parent unmounts; finalising libfuse against a dead connection can only fail.
    sys.stderr.flush()
    os._exit(code)
