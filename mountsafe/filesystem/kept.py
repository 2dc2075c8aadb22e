"""Changes until the disk has them: how they get there, what is repeated, and who is told if they do not.

Everything that is accepted is in the log (`filesystem.changelog`) until a checkpoint. `filesystem.delivery` brings it
to the guest; when a VM has died, the next one repeats it (`filesystem.replay`) before anything else is asked.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from mountsafe.changes import Act, Change
from mountsafe.errors import MountsafeError
from mountsafe.filesystem import delivery
from mountsafe.filesystem.agents import Agents, Ask
from mountsafe.filesystem.changelog import MAKING, ChangeLog, Logged, Subjects
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.replay import Replay
from mountsafe.limits import ANSWER_DEADLINE, MAX_LOST_NAMES

log = logging.getLogger(__name__)
T = TypeVar("T")
NOTHING = Subjects()
WITHOUT_ORDER = frozenset({b"vfat", b"msdos"})  # their driver writes what belongs together in any order
Refusals = list[tuple[Logged, OSError]]


class Kept:
    """The changes of one mount, as far as they are kept. All but `run` and what only looks is called in work that `run`
    does.

    `unsaved` is told why changes are lost, how many, and a few paths; `saving` the paths of what is about to be saved,
    because nobody may be left to tell how that ends. `replayed` is called when a new VM does again
    what was done, and `settled` when the file system is read as it is on the disk from now on.
    """

    def __init__(
        self,
        agents: Agents,
        nursery: trio.Nursery,
        idle: float,
        unsaved: Callable[[str, int, list[bytes]], Awaitable[None]],
        saving: Callable[[list[bytes]], Awaitable[None]],
        replayed: Callable[[], None],
        settled: Callable[[], None],
    ) -> None:
        self._agents = agents
        self._nursery = nursery
        self._idle = idle
        self._unsaved = unsaved
        self._saving = saving
        self._replayed = replayed
        self._settled = settled
        self._lock = trio.Lock()
        self._log = ChangeLog(fragile=agents.mounted.fstype in WITHOUT_ORDER)
        self._delivery = delivery.Delivery(agents, self._log, self._refused, self._unsynced)
        self._refusals: Refusals = []
        self.mend: Callable[[Refusals, list[Node]], Awaitable[None]] = _nothing  # what was told, and is not so
        self.begun: Callable[[], Awaitable[None]] = _nothing_yet  # called when a VM writes
        self.unsure: set[Node] = set()  # what was changed, and nobody has said how it is now
        self._mending = False
        self._handles: dict[int, Node] = {}
        self._last_handle = 0
        self._pending: tuple[Change | None, Subjects] = (None, NOTHING)  # the change that is being done
        self._last = 0.0  # when something was changed
        self._refused_until = 0.0
        self._refusal = ""
        self._begun = trio.Event()
        self._added = trio.Event()  # something, to a log that was empty
        self._broken = ""
        self.repeated = 0  # changes, in new VMs
        self.failures = 0  # so often something was lost that may be of any file
        self.losses = 0  # and of any or of one
        agents.replay = self._replay
        agents.passed = self._passed
        nursery.start_soon(self._delivery.run)

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

    # --- answers, and whoever gives them -----------------------------------------------------------------------------
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

        try:
            came = await tried(attempt)
        except MountsafeError as error:
            self._delivery.trouble = error  # while no answers come, none are given early
            raise
        self._delivery.trouble = None
        return came

    def _require_whole(self) -> None:
        if self._broken:
            raise OSError(errno.EIO, self._broken)

    async def _replay(self, ask: Ask) -> None:
        """Have a new VM do what the last one may not have brought to the disk."""
        replay = Replay(self._log, self._handles, self._pending)
        before, reached = self._log.confirmed, self._log.base + self._log.sent
        self._replayed()
        try:
            not_open = await replay.run(ask)
        except OSError as error:
            self._broken = f"changes could not be repeated: {error.strerror or error}"
            await self._lost(self._broken, len(self._log))
            self._log.begin({})
            self._delivery.moved()
            return
        self.repeated += replay.repeated
        for handle in not_open:
            node = self._handles.pop(handle)
            node.handle = 0
            if node.gone:
                log.warning("a file that was open, and has been removed, is gone with the virtual machine")
        refused = {id(logged) for logged, _ in replay.failed}
        for logged in list(self._log.changes):
            if before < logged.position <= reached and logged.confirm is not None and id(logged) not in refused:
                logged.confirm(None, logged.position)
        for logged, no in replay.failed:
            self._refused(logged, no)
        self._log.done = max(self._log.done, reached - self._log.base)
        self._delivery.moved()
        if self.unsure:
            self._mend_soon()

    async def _lost(self, why: str, count: int, names: list[bytes] | None = None) -> None:
        if names is None:
            names = self._log.names
            self.failures += 1
            self.losses += 1
        log.error("%d changes may be lost: %s", count, why)
        await self._unsaved(why, count, names)

    # --- what was answered, and is not so ----------------------------------------------------------------------------
    def _refused(self, logged: Logged, error: OSError) -> None:
        """The guest says no to what programs were told is done: whoever has the file open is told, and the parent."""
        self.losses += 1
        subject = logged.subject
        if subject is not None:
            subject.failures += 1
            if error.errno != errno.EBADF:  # that it was never opened has a reason, which came before
                subject.failed = error.errno or errno.EIO
            subject.shown = None
            self.unsure.add(subject)
            if logged.change.act in (Act.CREATE, Act.OPEN) and subject.handle == logged.change.handle:
                self._handles.pop(subject.handle, None)
                subject.handle = 0
            subject.gone |= logged.change.act in MAKING  # it never was there
        self._refusals.append((logged, error))
        self._mend_soon()

    def _mend_soon(self) -> None:
        if not self._mending:
            self._mending = True
            self._nursery.start_soon(self._mend)

    async def _mend(self) -> None:
        try:
            await self.run(self._mended)
        except (OSError, MountsafeError) as error:
            log.warning("what is there is not known: %s", error)

    async def _mended(self) -> None:
        self._mending = False
        await self._passed()
        refusals, self._refusals = self._refusals, []
        unsure = list(self.unsure)
        if refusals:
            names = dict.fromkeys(name for logged, _ in refusals if (name := logged.name))
            why = refusals[0][1].strerror or os.strerror(refusals[0][1].errno or errno.EIO)
            await self._lost(f"the guest refuses them: {why}", len(refusals), list(names)[:MAX_LOST_NAMES])
        await self.mend(refusals, unsure)

    # --- checkpoints -----------------------------------------------------------------------------------------------
    async def _passed(self, position: int | None = None) -> None:
        """Return when all changes up to a position are done, or all of them. Raises MountsafeError."""
        if position is None:
            position = self._log.accepted
        if self._log.confirmed < position:
            await self._delivery.wait_for(lambda: self._log.confirmed >= position)

    async def confirmed(self, node: Node) -> None:
        """Return when what is known of a file is what the guest says. Raises MountsafeError."""
        await self._passed(node.changed)

    def is_confirmed(self, node: Node) -> bool:
        """Whether no change of a file is under way."""
        return node.changed <= self._log.confirmed

    async def _checkpoint(self) -> None:
        """Have the disk take all of it. Raises MountsafeError if there is no VM; what it refuses is a failure."""
        self._require_whole()
        if not self._log:
            return
        self._log.want(self._handles)
        try:
            await self._delivery.wait_for(lambda: not self._log.wanted)
        except MountsafeError:
            self._log.give_up()  # what is changed next comes after what is there, not behind a checkpoint
            raise
        self._require_whole()

    def _unsynced(self, error: OSError) -> None:
        self.failures += 1
        self.losses += 1
        count = len(self._log)
        why = f"the medium did not take them: {error.strerror or error}"
        log.error("%d changes may be lost: %s", count, why)
        self._nursery.start_soon(self._unsaved, why, count, self._log.names)

    async def _checkpoint_soon(self) -> None:
        """After a change that is done: if there is no VM for it, whoever changes something next comes to it first."""
        try:
            await self._checkpoint()
        except (OSError, MountsafeError) as error:
            log.warning("what was changed is not on the medium yet: %s", error)

    async def sync(self) -> None:
        """Have the disk take all that was changed so far."""
        announced = await self._announce()
        await self.run(self._checkpoint)
        if announced:
            await self._saving([])

    async def _announce(self) -> bool:
        """Say what is lost if saving it does not come to an end; whether there is anything."""
        if not self._log:
            return False
        await self._saving(self._log.names)
        return True

    def _add(self, logged: Logged, about: Subjects, done: bool) -> None:
        self._log.add(logged, about, done)
        self._last = trio.current_time()
        self._begun.set()
        self._added.set()


async def tried(attempt: Callable[[bool], Awaitable[T]]) -> T:
    """Try until a VM lives for long enough, `ATTEMPTS` times; `attempt` is told whether it is not the first."""
    for number in range(1, delivery.ATTEMPTS + 1):
        try:
            return await attempt(number > 1)
        except MountsafeError as error:
            log.info("a change is not answered: %s", error)
            if number == delivery.ATTEMPTS:
                raise
        await trio.sleep((number - 1) * delivery.BETWEEN)
    raise AssertionError


async def _nothing(refusals: Refusals, unsure: list[Node]) -> None:
    pass


async def _nothing_yet() -> None:
    pass
