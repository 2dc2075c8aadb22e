"""One session process as its parent sees it: started in a box, given streams and what it serves, ended."""

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

import trio

from mountsafe import channel, wire
from mountsafe.errors import ExitCode, MountsafeError, ProtocolFault, UserError
from mountsafe.limits import (
    CONTROL_MESSAGE,
    LAUNCH_DEADLINE,
    MOUNT_DEADLINE,
)
from mountsafe.medium import resorts, unopened
from mountsafe.medium.volumes import Volume
from mountsafe.session.attached import MountId
from mountsafe.session.boxes import SessionBox
from mountsafe.session.conversation import (
    GIVEN,
    SAID,
    Assignment,
    Connection,
    Disk,
    Failed,
    Given,
    Misbehaved,
    Nothing,
    Phase,
    Ready,
    Refused,
    Resting,
    Said,
    Saving,
    Serving,
    Settle,
    Stream,
    Unsaved,
    WantDisk,
    WantStream,
    turned,
)
from mountsafe.session.machines import Machines
from mountsafe.session.missing import not_mounted
from mountsafe.session.mounter import FuseMount, MountRequest, mount
from mountsafe.session.places import Place
from mountsafe.session.presentation import STATE_WORDS, Presentation, enclosed, mount_source
from mountsafe.session.record import READ_ONLY, READ_WRITE, Missing, Mount
from mountsafe.session.writing import Writer, save
from mountsafe.text import printable
from mountsafe.trios import in_thread

log = logging.getLogger(__name__)
LAST_WORDS = 0.5  # seconds for what a session process said at its end to arrive


class ServedVolume:
    """A volume with its session process and its mount; with a name in the place of a
    folder it is served over a stream.
    """

    def __init__(
        self,
        volume: Volume,
        place: Place | str,
        machines: Machines,
        shown: Presentation,
        box: SessionBox,
        source: str,
        writer: Writer | None = None,
    ) -> None:
        self.volume = volume
        self.place = place
        self.fstype = volume.fstype
        self.note = ""
        self._resorts = 0
        self.direct = False
        self.landlock = 0
        self._machines = machines
        self._shown = shown
        self._source = source
        self._writer = writer
        self.ended = trio.Event()
        self._mount: FuseMount | None = None
        self._stream: socket.socket | None = None  # the other end of what it serves, if that is no mount
        self.phase = Phase.LEARNING
        self._answers = trio.Event()
        self.serving = trio.Event()
        self.failure: UserError | None = None
        self._child = box.child
        self._control = trio.socket.from_stdlib_socket(box.control)

    def _assignment(self) -> Assignment:
        window = self.volume.window()
        uid, gid = self._shown.owner or (None, None)
        return Assignment(
            device=self.volume.device,
            fstype=self.volume.fstype,
            options=self.volume.options,
            start=window.start,
            size=window.size,
            places=tuple((place.offset, place.physical, place.length) for place in window.places),
            stack=self._machines.storage.stack,
            uid=uid,
            gid=gid,
            idle=self._shown.idle,
            entries=self._shown.entries,
            zone=self._shown.zone.hex(),
            writing=self._writer.assigned if self._writer else None,
        )

    @property
    def pid(self) -> int:
        """The process id of the box."""
        return self._child.pid

    async def serve(self) -> None:
        """Do what the session process asks, until it ends; then unmount."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._child.log_words)
                with suppress(OSError):  # it has ended already
                    await self._send(self._assignment(), *self._machines.storage.keys)
                nursery.start_soon(self._give_up_late)
                nursery.start_soon(self._declare_serving)
                await self._converse()
                with trio.move_on_after(LAST_WORDS):  # it may say why it ends
                    code = await self._child.wait()
                    log.info("the session process ended (%d)", code)
                    await trio.sleep(LAST_WORDS / 10)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._child.stop()
                self._control.close()
                if (unread := self.take_stream()) is not None:
                    unread.close()
                await trio.to_thread.run_sync(self.detach)
                if self._writer is not None:
                    await self._writer.finish()
                await self._machines.release(self)
            self.ended.set()
            if not self.serving.is_set():
                self._fail(UserError("the session process ended before it served", "--verbose shows why."))

    async def _declare_serving(self) -> None:
        """Say that it serves once nothing of ours uses the mount any more: who is told of it may unmount it at once."""
        await self._answers.wait()
        if self._mount is not None:
            # In a thread that is let go: a session process that never answers must not hold us.
            await in_thread(self._mount.widen_read_ahead)
        self.serving.set()

    async def _give_up_late(self) -> None:
        deadline = LAUNCH_DEADLINE + MOUNT_DEADLINE
        with trio.move_on_after(deadline):
            await self.serving.wait()
        if self.serving.is_set():
            return
        self._fail(UserError(f"it was not mounted within {deadline:.0f} s", "--verbose shows why.", ExitCode.DEADLINE))
        await self._child.stop()

    def _fail(self, error: UserError) -> None:
        self.failure = self.failure or error
        self.serving.set()

    async def _converse(self) -> None:
        while True:
            try:
                packet = await self._control.recv(CONTROL_MESSAGE)
                if not packet:
                    return
                await self._handle(SAID.read(channel.decode(packet)))
            except OSError:
                return
            except ProtocolFault as fault:
                log.warning("the session process broke the protocol: %s", fault)
                return

    async def _handle(self, said: Said) -> None:
        """Do what the session process asks: it is of the right shape, and nothing in it is to be believed."""
        self.phase = turned(self.phase, said)
        match said:
            case WantStream(writing):
                await self._give_stream(writing)
            case Settle():
                await self._send(await self._writing().settle())
            case Saving() | Unsaved():
                self._take_note(said)
            case WantDisk(instead):
                await self._give_disk(instead)
            case Ready():
                await self._give_mount(said)
            case Serving():
                self._answers.set()
            case Resting():
                await self._machines.release(self)
            case Misbehaved(number, untrusted_why, writing):
                machines = self._writing() if writing else self._machines
                await machines.end_misbehaving(number, printable(untrusted_why, wire.MAX_MESSAGE))
            case Refused(untrusted_why) | Failed(untrusted_why):
                why = printable(untrusted_why, wire.MAX_MESSAGE)
                self._fail(self._not_mounted(isinstance(said, Refused), why))

    def _take_note(self, said: Saving | Unsaved) -> None:
        if isinstance(said, Saving):
            self._writing().saving(said.names)
        else:
            self._writing().not_saved(said.why, said.count, said.names)

    def _not_mounted(self, refused: bool, why: str) -> UserError:
        hint = "The guest's kernel said so. --verbose shows more."
        if refused and (known := unopened.without_driver(self.volume.fstype, why)):
            why, hint = known
        what = f"cannot mount {self.volume.describe()}: {why}"
        if refused:
            return UserError(what, hint, ExitCode.SOURCE)
        if crash := self._machines.crash:
            hint = (
                "What is on it made the virtual machine's kernel crash, as it might have yours. --verbose shows more."
            )
            return UserError(f"{what}: {crash}", hint, ExitCode.APPLIANCE)
        return UserError(what, "--verbose shows more.", ExitCode.APPLIANCE)

    async def _send(self, message: Given, *fds: int) -> None:
        await self._control.sendmsg([channel.encode(GIVEN.told(message))], channel.descriptors(list(fds)))

    def _writing(self) -> Writer:
        if self._writer is None:
            raise ProtocolFault("it would write, and may not")
        return self._writer

    async def _give_stream(self, writing: bool) -> None:
        try:
            sock, number = await (self._writing().stream() if writing else self._machines.numbered(self))
        except ProtocolFault:
            raise
        except MountsafeError as error:
            await self._send(Nothing(str(error)[: wire.MAX_MESSAGE]))
            return
        with sock:
            await self._send(Stream(number), sock.fileno())

    async def _give_disk(self, instead: int | None) -> None:
        """Connect it to the disk in the container. `instead`: the process of that number does not answer."""
        storage = self._machines.storage.base
        if instead is not None:
            await storage.replace(instead)
        try:
            async with storage.lent(to_qemu=False) as fd:
                await self._send(Disk(storage.number), fd)
        except MountsafeError as error:
            await self._send(Nothing(str(error)[: wire.MAX_MESSAGE]))

    async def _give_mount(self, ready: Ready) -> None:
        if ready.state not in STATE_WORDS:
            raise ProtocolFault("a root in an unknown state")
        if ready.resorts & ~wire.Resort.ALL:
            raise ProtocolFault("a root that was mounted in an unknown way")
        self.fstype = printable(ready.fstype, 64)
        self.direct = ready.direct
        self.landlock = ready.landlock
        self._resorts = ready.resorts | self.volume.resorts
        told = resorts.words(ready.resorts & ~self.volume.resorts)
        self.note = "; ".join(filter(None, (STATE_WORDS[ready.state], *told, self.volume.condition)))
        if isinstance(self.place, Place):
            await self._give_fuse(self.place, ready.mode & 0o777)
        else:
            await self._give_stream_to_serve()

    async def _give_stream_to_serve(self) -> None:
        self._stream, theirs = socket.socketpair()
        with theirs:
            await self._send(Connection(guard_links=False), theirs.fileno())

    def take_stream(self) -> socket.socket | None:
        """Return the other end of the stream that it serves, which is the caller's from then on."""
        stream, self._stream = self._stream, None
        return stream

    async def _give_fuse(self, place: Place, mode: int) -> None:
        shown, source = self._shown, mount_source(self._source)
        follow = shown.links != "nofollow"
        writable = self._writer is not None
        request = MountRequest(source, place, shown.mount_uid, shown.mount_gid, mode, follow, writable)
        try:
            self._mount = await trio.to_thread.run_sync(mount, request)
        except UserError as error:
            self.phase = Phase.OVER
            self._fail(error)
            await self._send(Nothing(error.message[: wire.MAX_MESSAGE]))
            return
        guard = self._mount.links_followed and shown.links != "follow"
        try:
            await self._send(Connection(guard), self._mount.fd)
        finally:  # as long as we had a copy, the mount's callers would wait for a session process that is gone
            self._mount.close_descriptor()

    async def save(self, deadline: float, force: bool = False) -> None:
        """Have it save what was changed, if it is mounted and may be changed. Raises UserError, unless by `force`."""
        if self._writer is None or self.which is None or self.target is None:
            return
        try:
            await save(self.which, self.target, deadline)
        except UserError as error:
            if not force:
                raise
            log.warning("%s", error.message)

    async def settled(self, deadline: float) -> None:
        """Unmount it if it may be changed, and let it end by itself: it saves what it has, and is left clean."""
        if self._writer is not None and self.which is not None and not self.ended.is_set():
            await self.save(deadline, force=True)
            await trio.to_thread.run_sync(self.detach)
            with trio.move_on_after(deadline):
                await self.ended.wait()

    @property
    def changing(self) -> bool:
        """Whether something was changed that the medium may not have yet."""
        return self._writer is not None and self._writer.changing

    @property
    def unsaved(self) -> str:
        """Why changes that programs were told of are lost; "" if none are."""
        return self._writer.unsaved if self._writer else ""

    async def stop_writing(self) -> None:
        """End what may write to it at once: nothing is saved any more."""
        if self._writer is not None:
            await self._writer.close()

    def unmount(self, lazy: bool) -> None:
        """Unmount; the session process then ends by itself. Raises UserError (BUSY)."""
        if self._mount is not None:
            self._mount.unmount(lazy)

    def detach(self) -> None:
        """Make sure that nothing is mounted any more: after the session process is gone, or to be rid of it."""
        try:
            self.unmount(lazy=True)
        except UserError as error:
            log.warning("%s: %s", error.message, error.hint)

    async def end(self) -> None:
        """End the session process."""
        await self._child.stop()

    @property
    def target(self) -> Path | None:
        """Where it is mounted; where it is to be, or was, if it is not. None if it is served over a stream."""
        planned = self.place.path if isinstance(self.place, Place) else None
        return (self._mount.target if self._mount is not None else None) or planned

    @property
    def which(self) -> MountId | None:
        """What its mount is known by; None if there is none yet."""
        return None if self._mount is None else self._mount.which

    def missing(self) -> Missing:
        """What is told of it if it could not be mounted."""
        assert self.failure is not None
        return not_mounted(self.volume, self.failure.message, self.failure.code)

    def mounted(self) -> Mount:
        """What is told of it."""
        return Mount(
            target=self.place if isinstance(self.place, str) else os.fspath(self.target or self.place.path),
            device=self.volume.device,
            partition=self.volume.number,
            name=self.volume.name,
            fstype=self.fstype,
            label=self.volume.label,
            note=self.note,
            resorts=tuple(resorts.codes(self._resorts)),
            options=self.volume.options,
            direct_reads=self.direct,
            landlock=self.landlock,
            session=self.pid,
            encryption=enclosed(self.volume),
            access=READ_WRITE if self._writer else READ_ONLY,
            written=self._writer is not None and self._writer.written,
            unsaved=self.unsaved,
            read_only=self._shown.read_only,
            changing=self.changing,
        )
