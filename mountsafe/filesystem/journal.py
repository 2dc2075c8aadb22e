"""All changes of a mount: in one order, one at a time, and none lost with a virtual machine.

What the host can judge by itself (`filesystem.early`) is answered at once, and done by the guest soon after
(`filesystem.delivery`); all else when the guest has done it, and all that came before. A change is kept until the guest
says that the disk has it (a checkpoint); if the VM dies before, the next one is made to do it again
(`filesystem.replay`). Checkpoints come after `JOURNAL_BYTES` or `JOURNAL_CHANGES`, in a moment of rest, when a program
asks for one, and where a change could not be repeated otherwise (`filesystem.changelog`); who changes something waits
for them. When nothing was changed for some seconds the file system is left clean, and the VM that wrote goes.

Work on the tree runs in tasks of the journal, under its lock: who waits for it may be cancelled, and it goes on.
"""

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from mountsafe import wire
from mountsafe.appliance.client import GuestRefused
from mountsafe.changes import MAX_WRITE, Act, Change, Flag, pack_change, pack_write, unpack_changed
from mountsafe.errors import MountsafeError
from mountsafe.filesystem.changelog import LEAVING, Logged, Subjects
from mountsafe.filesystem.kept import NOTHING, Kept, tried
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.replay import number_told

log = logging.getLogger(__name__)
T = TypeVar("T")
REST = 0.25  # seconds after the last change until a checkpoint
REFUSED = 10.0  # seconds in which a guest that would not mount it for writing is not asked again
AGAIN_LATER = 5.0  # seconds after a checkpoint that did not come about


@dataclass(slots=True)
class Early:
    """What the host says of a change before the guest has done it.

    `guess`: what the guest is expected to answer; `confirm` and `places` as of `Logged`; `touched`: what has other
    attributes then, first of all what the change is about, if that is there before; `removes`: what has no name then.
    """

    guess: list[wire.Entry]
    confirm: Callable[[list[wire.Entry] | None, int], None]
    touched: list[Node] = field(default_factory=list)
    places: tuple[tuple[Node, bytes], ...] = ()
    removes: Node | None = None


class Journal(Kept):
    """The changes of one mount. All but `run`, `attend` and `end` is called in work that `run` does."""

    # --- changes ---------------------------------------------------------------------------------------------------
    async def do(
        self,
        change: Change,
        apply: Callable[[list[wire.Entry]], T],
        about: Subjects = NOTHING,
        node: Node | None = None,
        early: Early | None = None,
    ) -> T:
        """Have a change made. `apply` is given what the guest says that there is now, and does it to what is known.

        It raises WireError, before it does anything, if that cannot be. `node`: what the change's handle is of. With
        `early` it counts as made, and the guest makes it later.
        Raises OSError, the guest's no or ours; MountsafeError: it may be done or not.
        """
        await self._require_writing()
        if self._log.sealed or self._log.full or self._log.endangered_by(change, about):
            await self._checkpoint()
        logged = Logged(change, node)
        if early is not None and self._delivery.trouble is None:
            return await self._accepted(logged, about, apply, early)
        await self._passed()
        self._pending = (change, about)
        try:
            if change.flags & Flag.EXCHANGE:
                logged.offset = await self._number_at(change.path)
            return await self._done(logged, about, apply)
        finally:
            self._pending = (None, NOTHING)
            if self._log.sealed:
                await self._checkpoint_soon()

    async def _accepted(
        self, logged: Logged, about: Subjects, apply: Callable[[list[wire.Entry]], T], early: Early
    ) -> T:
        async with self._agents.order:
            came = apply(early.guess)
            logged.confirm, logged.places, logged.removes = early.confirm, early.places, early.removes
            logged.subject = early.touched[0] if early.touched else None
            self._add(logged, about, done=False)
            for each in early.touched:
                each.changed = logged.position
        self._delivery.wake()
        return came

    async def _done(self, logged: Logged, about: Subjects, apply: Callable[[list[wire.Entry]], T]) -> T:
        change = logged.change

        def applied(untrusted_body: bytes) -> T:
            came = apply(unpack_changed(untrusted_body))
            self._add(logged, about, done=True)
            return came

        async def question(again: bool) -> tuple[int, bytes]:
            if again and logged.offset and await self._number_at(change.path) != logged.offset:
                return wire.Kind.CHANGE, pack_change(Change(Act.SETATTR, change.other))  # it was done
            flags = change.flags | (Flag.AGAIN if again else 0)
            return wire.Kind.CHANGE, pack_change(change._replace(flags=flags))

        if change.act not in LEAVING:
            return await self._answered(question, applied)
        async with self._agents.paths.alone():
            return await self._answered(question, applied)

    async def _number_at(self, path: bytes) -> int:
        async def question(again: bool) -> tuple[int, bytes]:
            await trio.lowlevel.checkpoint()
            return wire.Kind.CHANGE, pack_change(Change(Act.SETATTR, path, flags=Flag.AGAIN))

        return await self._answered(question, number_told)

    async def statfs(self) -> wire.Statfs | None:
        """Return what the file system says of its room, when all that was changed is done; None if nobody says it."""
        if not self._agents.writing:
            return None
        try:
            await self._passed()
            return self._agents.unpack(wire.unpack_statfs, await self._agents.request(wire.Kind.STATFS))
        except (OSError, MountsafeError) as error:
            log.info("how much room there is is not known: %s", error)
            return None

    async def told(self, node: Node) -> wire.Entry:
        """Return what the guest says that something is now, when all that was changed is done."""
        await self._require_writing()
        await self._passed()

        async def question(again: bool) -> tuple[int, bytes]:
            await trio.lowlevel.checkpoint()
            path = b"" if node.handle else node.path()
            return wire.Kind.CHANGE, pack_change(Change(Act.SETATTR, path, handle=node.handle, flags=Flag.AGAIN))

        return await self._answered(question, _first)

    async def write(
        self,
        node: Node,
        offset: int,
        data: bytes,
        apply: Callable[[list[wire.Entry]], T],
        early: Early | None = None,
    ) -> T:
        """Write to a file; as `do` otherwise."""
        await self._require_writing()
        if self._log.sealed or self._log.full:
            await self._checkpoint()  # before it is known by which handle: a checkpoint may see another VM
        handle = await self.open(node, early is not None)
        logged = Logged(Change(0, handle=handle), node, offset, data)
        if early is not None and not node.gone and self._delivery.trouble is None:
            if self._goes_on(handle, offset, len(data)):
                return await self._gone_on(data, apply, early)
            return await self._accepted(logged, NOTHING, apply, early)
        await self._passed()

        async def question(again: bool) -> tuple[int, bytes]:
            await trio.lowlevel.checkpoint()
            if node.handle != handle:
                raise _lost_file()
            return wire.Kind.WRITE, pack_write(handle, offset, data)

        told = await self._answered(question, lambda untrusted_body: apply(unpack_changed(untrusted_body)))
        self._add(logged, NOTHING, done=True)
        if node.gone and node.nlink:
            await self._checkpoint()  # there is no path by which it would be opened again, and it stays
        return told

    def _goes_on(self, handle: int, offset: int, length: int) -> bool:
        """Whether a write goes on where the last change, which is on the host only, has ended."""
        last = self._log.last_unsent()
        if last is None or last.data is None or last.change.handle != handle:
            return False
        return last.offset + len(last.data) == offset and len(last.data) + length <= MAX_WRITE

    async def _gone_on(self, data: bytes, apply: Callable[[list[wire.Entry]], T], early: Early) -> T:
        came = apply(early.guess)
        last = self._log.extend(data)
        last.confirm = early.confirm
        self._last = trio.current_time()
        await trio.lowlevel.checkpoint()
        return came

    async def open(self, node: Node, early: bool = False) -> int:
        """Return the handle by which the guest has a file open; it is opened if it is not."""
        if not node.handle:
            if node.gone:
                raise _lost_file()
            handle = self.new_handle()
            change = Change(Act.OPEN, node.path(), handle=handle)
            soon = Early([], lambda untrusted, position: None, [node]) if early else None
            await self.do(change, lambda _: self.opened(handle, node), early=soon)
        return node.handle

    def new_handle(self) -> int:
        """Return a number that no file was ever open by."""
        self._last_handle += 1
        return self._last_handle

    def opened(self, handle: int, node: Node) -> None:
        """The guest has opened a file."""
        self._handles[handle] = node
        node.handle = handle

    async def close(self, node: Node) -> None:
        """Have the guest close a file that nobody has open any more."""
        handle = node.handle
        if node.opens or not handle:
            return
        node.handle = 0
        if self._handles.pop(handle, None) is not None and self._agents.writing:
            soon = Early([], lambda untrusted, position: None)
            await self.do(Change(Act.CLOSE, handle=handle), lambda _: None, early=soon)

    # --- answers, and whoever gives them -----------------------------------------------------------------------------
    async def _require_writing(self) -> None:
        self._require_whole()
        if self._agents.writing:
            return
        if trio.current_time() < self._refused_until:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        try:
            await self._begin_writing()
        except GuestRefused as refused:
            self._refused_until = trio.current_time() + REFUSED
            if self._refusal != str(refused):
                self._refusal = str(refused)
                log.warning("it cannot be written to: %s", refused)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS)) from refused
        self._log.begin({})
        self._last = trio.current_time()
        self._begun.set()
        await self.begun()

    async def _begin_writing(self) -> None:
        """Get a VM that writes; another one if the first dies before it has mounted anything."""

        async def attempt(again: bool) -> GuestRefused | None:
            try:
                await self._agents.write()
            except GuestRefused as refused:  # another VM would say the same
                return refused
            return None

        if (refused := await tried(attempt)) is not None:
            raise refused

    async def attend(self) -> None:
        """Make checkpoints when it is quiet, and settle when it was for longer. Runs for as long as the mount."""
        while True:
            await self._begun.wait()
            pause = self._last + (REST if self._log else self._idle) - trio.current_time()
            if pause > 0:
                with trio.move_on_after(pause):
                    await self._until_changed()
                continue
            try:
                await self.run(self._rest)
            except (OSError, MountsafeError) as error:
                log.warning("what was changed is not on the medium yet: %s", error)
                self._last = trio.current_time() + AGAIN_LATER

    async def _until_changed(self) -> None:
        """Wait until there is something to be saved; for ever if there is."""
        if self._log:
            await trio.sleep_forever()
        self._added = trio.Event()
        await self._added.wait()

    async def _rest(self) -> None:
        now = trio.current_time()
        if self._log:
            if now >= self._last + REST:
                await self._checkpoint()
        elif any(node.gone for node in self._handles.values()):
            self._last = now  # it would be gone with the VM
        elif now >= self._last + self._idle:
            await self._settle()

    async def _settle(self) -> None:
        self._begun = trio.Event()
        if not self._agents.writing:
            return
        for node in self._handles.values():
            node.handle = 0
        self._handles.clear()
        self._log.begin({})
        why = await self._agents.settle()
        self._settled()
        if why:
            await self._lost(why, 0)
        self._log.forget()

    async def end(self) -> None:
        """Have the disk take everything, and leave it clean: nothing is changed any more."""
        await self._announce()
        async with self._lock:
            try:
                await self._checkpoint()
            except (OSError, MountsafeError) as error:
                await self._lost(str(error), len(self._log))
            await self._settle()


def _first(untrusted_body: bytes) -> wire.Entry:
    entries = unpack_changed(untrusted_body)
    if not entries:
        raise wire.WireError("an answer without an entry")
    return entries[0]


def _lost_file() -> OSError:
    return OSError(errno.EIO, "a file that was open is gone")
