"""All changes of a mount: in one order, one at a time, and none lost with a virtual machine.

A change is answered when the guest has done it. It is kept until the guest says that the disk has it (a checkpoint);
if the VM dies before, the next one is made to do it again (`filesystem.replay`). Checkpoints come after
`JOURNAL_BYTES` or `JOURNAL_CHANGES`, in a moment of rest, when a program asks for one, and where a change could not be
repeated otherwise (`filesystem.changelog`). When nothing was changed for some seconds the file system is left clean,
and the VM that wrote goes.

Work on the tree runs in tasks of the journal, under its lock: who waits for it may be cancelled, and it goes on.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from mountsafe import wire
from mountsafe.appliance.client import GuestRefused
from mountsafe.changes import Act, Change, Flag, pack_change, pack_sync, pack_write, unpack_changed
from mountsafe.errors import MountsafeError
from mountsafe.filesystem.agents import Agents, Ask
from mountsafe.filesystem.changelog import ChangeLog, Logged, Subjects
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.replay import Replay, number_told
from mountsafe.limits import ANSWER_DEADLINE, SYNC_DEADLINE

log = logging.getLogger(__name__)
T = TypeVar("T")
REST = 0.25  # seconds after the last change until a checkpoint
REFUSED = 10.0  # seconds in which a guest that would not mount it for writing is not asked again
ATTEMPTS = 4  # for a change: in so many virtual machines
BETWEEN = 0.5  # seconds
AGAIN_LATER = 5.0  # seconds after a checkpoint that did not come about
NOTHING = Subjects()
WITHOUT_ORDER = frozenset({b"vfat", b"msdos"})  # their driver writes what belongs together in any order
LEADING_ELSEWHERE = frozenset({Act.RENAME, Act.UNLINK, Act.RMDIR})  # paths lead elsewhere after them


class Journal:
    """The changes of one mount. All but `run`, `attend` and what is said otherwise is called in work that `run` does.

    `unsaved` is told why changes are lost, how many, and a few paths. `replayed` is called when a new VM does again
    what was done, and `settled` when the file system is read as it is on the disk from now on.
    """

    def __init__(
        self,
        agents: Agents,
        nursery: trio.Nursery,
        idle: float,
        unsaved: Callable[[str, int, list[bytes]], Awaitable[None]],
        replayed: Callable[[], None],
        settled: Callable[[], None],
    ) -> None:
        self._agents = agents
        self._nursery = nursery
        self._idle = idle
        self._unsaved = unsaved
        self._replayed = replayed
        self._settled = settled
        self._lock = trio.Lock()
        self._log = ChangeLog(fragile=agents.mounted.fstype in WITHOUT_ORDER)
        self._handles: dict[int, Node] = {}
        self._last_handle = 0
        self._pending: tuple[Change | None, Subjects] = (None, NOTHING)  # the change that is being done
        self._last = 0.0  # when something was changed
        self._refused_until = 0.0
        self._refusal = ""
        self._begun = trio.Event()
        self._broken = ""
        self.repeated = 0  # changes, in new VMs
        self.failures = 0  # so often something was lost that programs had been told of
        agents.replay = self._replay

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work on the tree, when all that was begun before is done. It is done even if nobody waits any more."""
        done = trio.Event()
        came: list[T] = []
        failed: list[Exception] = []

        async def task() -> None:
            try:
                async with self._lock:
                    came.append(await work())
            except Exception as error:  # noqa: BLE001  # whoever waits is told
                failed.append(error)
            finally:
                done.set()

        self._nursery.start_soon(task)
        await done.wait()
        if failed:
            raise failed[0]
        return came[0]

    # --- changes ---------------------------------------------------------------------------------------------------
    async def do(
        self,
        change: Change,
        apply: Callable[[list[wire.Entry]], T],
        about: Subjects = NOTHING,
        node: Node | None = None,
    ) -> T:
        """Have a change made. `apply` is given what the guest says that there is now, and does it to what is known.

        It raises WireError, before it does anything, if that cannot be. `node`: what the change's handle is of.
        Raises OSError, the guest's no or ours; MountsafeError: it may be done or not.
        """
        await self._require_writing()
        if self._log.full or self._log.endangered_by(change, about):
            await self._checkpoint()
        self._pending = (change, about)
        number = 0
        try:
            if change.flags & Flag.EXCHANGE:
                number = await self._number_at(change.path)
            return await self._done(Logged(change, node, number), about, apply)
        finally:
            self._pending = (None, NOTHING)
            if self._log.full:
                await self._checkpoint_soon()

    async def _done(self, logged: Logged, about: Subjects, apply: Callable[[list[wire.Entry]], T]) -> T:
        change = logged.change

        def applied(untrusted_body: bytes) -> T:
            came = apply(unpack_changed(untrusted_body))
            self._add(logged, about)
            return came

        async def question(again: bool) -> tuple[int, bytes]:
            if again and logged.offset and await self._number_at(change.path) != logged.offset:
                return wire.Kind.CHANGE, pack_change(Change(Act.SETATTR, change.other))  # it was done
            flags = change.flags | (Flag.AGAIN if again else 0)
            return wire.Kind.CHANGE, pack_change(change._replace(flags=flags))

        if change.act not in LEADING_ELSEWHERE:
            return await self._answered(question, applied)
        async with self._agents.paths.alone():
            return await self._answered(question, applied)

    async def _number_at(self, path: bytes) -> int:
        async def question(again: bool) -> tuple[int, bytes]:
            await trio.lowlevel.checkpoint()
            return wire.Kind.CHANGE, pack_change(Change(Act.SETATTR, path, flags=Flag.AGAIN))

        return await self._answered(question, number_told)

    async def write(self, node: Node, offset: int, data: bytes, apply: Callable[[list[wire.Entry]], T]) -> T:
        """Write to a file; as `do` otherwise."""
        await self._require_writing()
        if self._log.full:
            await self._checkpoint()
        handle = await self.open(node)

        async def question(again: bool) -> tuple[int, bytes]:
            await trio.lowlevel.checkpoint()
            if node.handle != handle:
                raise _lost_file()
            return wire.Kind.WRITE, pack_write(handle, offset, data, again)

        told = await self._answered(question, lambda untrusted_body: apply(unpack_changed(untrusted_body)))
        self._add(Logged(Change(0, handle=handle), node, offset, data), NOTHING)
        if node.gone and node.nlink:
            await self._checkpoint()  # there is no path by which it would be opened again, and it stays
        return told

    async def open(self, node: Node) -> int:
        """Return the handle by which the guest has a file open; it is opened if it is not."""
        if not node.handle:
            if node.gone:
                raise _lost_file()
            handle = self.new_handle()
            change = Change(Act.OPEN, node.path(), handle=handle, flags=Flag.WRITE)
            await self.do(change, lambda _: self.opened(handle, node))
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
            await self.do(Change(Act.CLOSE, handle=handle), lambda _: None)

    def _add(self, logged: Logged, about: Subjects) -> None:
        self._log.add(logged, about)
        self._last = trio.current_time()
        self._begun.set()

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

    async def _begin_writing(self) -> None:
        """Get a VM that writes; another one if the first dies before it has mounted anything."""

        async def attempt(again: bool) -> GuestRefused | None:
            try:
                await self._agents.write()
            except GuestRefused as refused:  # another VM would say the same
                return refused
            return None

        if (refused := await _tried(attempt)) is not None:
            raise refused

    async def _answered(
        self,
        question: Callable[[bool], Awaitable[tuple[int, bytes]]],
        decode: Callable[[bytes], T],
        deadline: float = ANSWER_DEADLINE,
    ) -> T:
        """Ask until a guest answers, of which the last may have done already what it is asked for."""

        async def attempt(again: bool) -> T:
            async def asked() -> tuple[int, bytes]:
                self._require_whole()  # in the VM that there is by now
                return await question(again)

            return self._agents.unpack(decode, await self._agents.ask_once(asked, deadline))

        return await _tried(attempt)

    def _require_whole(self) -> None:
        if self._broken:
            raise OSError(errno.EIO, self._broken)

    async def _replay(self, ask: Ask) -> None:
        """Have a new VM do what the last one may not have brought to the disk."""
        replay = Replay(self._log, self._handles, self._pending)
        self._replayed()
        try:
            not_open = await replay.run(ask)
        except OSError as error:
            self._broken = f"changes could not be repeated: {error.strerror or error}"
            await self._lost(self._broken, len(self._log))
            self._log.begin({})
            return
        self.repeated += replay.repeated
        for handle in not_open:
            node = self._handles.pop(handle)
            node.handle = 0
            if node.gone:
                log.warning("a file that was open, and has been removed, is gone with the virtual machine")

    async def _lost(self, why: str, count: int) -> None:
        self.failures += 1
        log.error("%d changes may be lost: %s", count, why)
        await self._unsaved(why, count, self._log.names)

    # --- checkpoints -----------------------------------------------------------------------------------------------
    async def _checkpoint(self) -> None:
        """Have the disk take all of it. Raises MountsafeError if there is no VM; what it refuses is a failure."""

        async def question(again: bool) -> tuple[int, bytes]:
            await trio.lowlevel.checkpoint()
            return wire.Kind.SYNC, pack_sync(0)

        self._require_whole()
        if not self._log:
            return
        try:
            await self._answered(question, _require_empty, SYNC_DEADLINE)
        except OSError as error:
            self._require_whole()
            await self._lost(f"the medium did not take them: {error.strerror or error}", len(self._log))
        self._log.begin(self._handles)

    async def _checkpoint_soon(self) -> None:
        """After a change that is done: if there is no VM for it, whoever changes something next comes to it first."""
        try:
            await self._checkpoint()
        except (OSError, MountsafeError) as error:
            log.warning("what was changed is not on the medium yet: %s", error)

    async def sync(self) -> None:
        """Have the disk take all that was changed so far."""
        await self.run(self._checkpoint)

    async def attend(self) -> None:
        """Make checkpoints when it is quiet, and settle when it was for longer. Runs for as long as the mount."""
        while True:
            await self._begun.wait()
            pause = self._last + (REST if self._log else self._idle) - trio.current_time()
            if pause > 0:
                await trio.sleep(pause)
                continue
            try:
                await self.run(self._rest)
            except (OSError, MountsafeError) as error:
                log.warning("what was changed is not on the medium yet: %s", error)
                self._last = trio.current_time() + AGAIN_LATER

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
        async with self._lock:
            try:
                await self._checkpoint()
            except (OSError, MountsafeError) as error:
                await self._lost(str(error), len(self._log))
            await self._settle()


async def _tried(attempt: Callable[[bool], Awaitable[T]]) -> T:
    """Try until a VM lives for long enough, `ATTEMPTS` times; `attempt` is told whether it is not the first."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return await attempt(number > 1)
        except MountsafeError as error:
            log.info("a change is not answered: %s", error)
            if number == ATTEMPTS:
                raise
        await trio.sleep((number - 1) * BETWEEN)
    raise AssertionError


def _require_empty(untrusted_body: bytes) -> None:
    if untrusted_body:
        raise wire.WireError("a sync that says something")


def _lost_file() -> OSError:
    return OSError(errno.EIO, "a file that was open is gone")
