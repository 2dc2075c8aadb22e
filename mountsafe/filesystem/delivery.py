"""Changes on their way to the guest: those that programs were told of already, in their order, several at a time.

One task sends them and takes the answers. While answers are awaited, what programs do gathers, and goes together: so
there is no clock in it, and nothing that waits is kept back. A change that makes paths lead elsewhere is sent when
nobody asks by a path. If the virtual machine dies, the next one repeats what was sent (`filesystem.replay`), and it
goes on; if none comes, whoever waits is told, and all is kept until somebody waits again.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from mountsafe import wire
from mountsafe.appliance.client import AgentClient, GuestRefused, Pending, refused
from mountsafe.changes import (
    MAX_BATCH,
    Result,
    item_size,
    pack_batch,
    pack_change,
    pack_write,
    unpack_changed,
    unpack_results,
)
from mountsafe.errors import GuestFault, MountsafeError
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.changelog import ChangeLog, Logged
from mountsafe.limits import ANSWER_DEADLINE, SYNC_DEADLINE

log = logging.getLogger(__name__)
ATTEMPTS = 4  # for a change: in so many virtual machines
BETWEEN = 0.5  # seconds
AGAIN_LATER = 5.0  # seconds after which it is tried again without anybody waiting
FRAMES = 3  # on their way at a time
TOGETHER = 256 << 10  # bytes of small changes in one frame; a larger write has its own


@dataclass(frozen=True, slots=True)
class Frame:
    """A question of several changes, of one large write, or of a checkpoint (no changes)."""

    kind: int
    body: bytes
    changes: list[Logged]


class Delivery:
    """Brings what is in a log to the guest. Nothing but this changes what of it is sent and done, but a new VM's replay
    and changes that are made while nothing is under way.

    `failed` is called with a change that programs were told of and that the guest refuses; `unsynced` when a checkpoint
    is refused, before the log counts as taken.
    """

    def __init__(
        self,
        agents: Agents,
        changes: ChangeLog,
        failed: Callable[[Logged, OSError], None],
        unsynced: Callable[[OSError], None],
    ) -> None:
        self._agents = agents
        self._log = changes
        self._failed = failed
        self._unsynced = unsynced
        self._wake = trio.Event()
        self._moved = trio.Event()
        self._syncing = False  # the checkpoint that is wanted is on its way
        self.trouble: MountsafeError | None = None  # why nothing is delivered

    # --- who waits ---------------------------------------------------------------------------------------------------
    def wake(self) -> None:
        """There is something to be sent."""
        self._wake.set()

    def moved(self) -> None:
        """More is done, or it is settled that nothing will be."""
        self._moved.set()
        self._moved = trio.Event()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until deliveries have made something so. Raises MountsafeError if there is nobody to deliver to."""
        if not condition():
            self.trouble = None
            self.wake()
        while not condition():
            if self.trouble is not None:
                raise self.trouble
            await self._moved.wait()

    @property
    def _under_way(self) -> bool:
        return self._log.done < len(self._log) or self._log.wanted

    # --- the task ----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Deliver, for as long as the mount."""
        attempt = 1
        while True:
            if not self._under_way:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            try:
                await self._deliver()
                attempt, self.trouble = 1, None
            except MountsafeError as error:
                log.info("changes are not answered: %s", error)
                attempt += 1
                if attempt <= ATTEMPTS:
                    await trio.sleep((attempt - 2) * BETWEEN)
                    continue
                attempt = 1
                await self._rest(error)

    async def _rest(self, error: MountsafeError) -> None:
        self._wake = trio.Event()
        self.trouble = error
        self.moved()
        with trio.move_on_after(AGAIN_LATER):
            await self._wake.wait()

    async def _deliver(self) -> None:
        """Bring all there is to a guest. Raises MountsafeError: the next one will be asked to repeat what was sent."""
        self._syncing = False
        client = await self._agents.usable()
        flight: deque[tuple[Frame, Pending]] = deque()
        while True:
            while len(flight) < FRAMES and (frame := self._next(client)) is not None:
                if any(each.leads_elsewhere for each in frame.changes):
                    async with self._agents.paths.alone():
                        flight.append((frame, await self._begun(client, frame)))
                        while flight:
                            await self._take(client, *flight.popleft())
                else:
                    flight.append((frame, await self._begun(client, frame)))
            if not flight:
                return
            await self._take(client, *flight.popleft())

    def _next(self, client: AgentClient) -> Frame | None:
        """Return what is to be sent next. It counts as sent from now on: a new VM's replay begins after this."""
        if client.ended is not None:
            raise client.ended
        changes = self._log
        if changes.wanted and not self._syncing and changes.sent == len(changes):
            self._syncing = True
            return Frame(wire.Kind.SYNC, b"", [])
        taken: list[Logged] = []
        questions: list[tuple[int, bytes]] = []
        size = 0
        for logged in changes.changes[changes.sent : changes.sent + MAX_BATCH]:
            kind, body = _question(logged)
            size += item_size(body)
            if taken and size > TOGETHER:
                break
            taken.append(logged)
            questions.append((kind, body))
        changes.sent += len(taken)
        if not taken:
            return None
        if len(taken) == 1:
            return Frame(*questions[0], taken)
        return Frame(wire.Kind.BATCH, pack_batch(questions), taken)

    @staticmethod
    async def _begun(client: AgentClient, frame: Frame) -> Pending:
        return await client.begin(frame.kind, frame.body, ANSWER_DEADLINE)

    # --- answers -----------------------------------------------------------------------------------------------------
    async def _take(self, client: AgentClient, frame: Frame, pending: Pending) -> None:
        try:
            if frame.kind == wire.Kind.SYNC:
                await self._take_sync(pending)
            else:
                self._take_results(frame, await self._results(frame, pending))
        except (wire.WireError, GuestRefused) as error:  # GuestRefused: of a whole batch, which is no answer
            fault = GuestFault(str(error))
            client.end(fault)
            await self._agents.blame(client, fault)
            raise fault from error
        except MountsafeError as error:
            await self._agents.blame(client, error)
            raise
        finally:
            self.moved()

    async def _take_sync(self, pending: Pending) -> None:
        try:
            if await pending.result(SYNC_DEADLINE):
                raise wire.WireError("a sync that says something")
        except GuestRefused as no:
            self._unsynced(OSError(no.errno, no.words))
        self._syncing = False
        if self._log.wanted:
            self._log.reached()

    @staticmethod
    async def _results(frame: Frame, pending: Pending) -> list[Result]:
        if frame.kind == wire.Kind.BATCH:
            return unpack_results(await pending.result(ANSWER_DEADLINE))
        try:
            return [Result(0, await pending.result(ANSWER_DEADLINE))]
        except GuestRefused as no:
            return [Result(no.errno, no.words.encode())]

    def _take_results(self, frame: Frame, results: list[Result]) -> None:
        if len(results) != len(frame.changes):
            raise wire.WireError(f"{len(results)} results of {len(frame.changes)} changes")
        for logged, result in zip(frame.changes, results, strict=True):
            if logged.position <= self._log.confirmed:  # another guest has repeated it meanwhile
                continue
            if result.errno:
                no = refused(result.errno, result.body)
                self._failed(logged, OSError(no.errno, no.words))
            elif logged.confirm is not None:
                logged.confirm(unpack_changed(result.body), logged.position)
            self._log.done = max(self._log.done, logged.position - self._log.base)


def _question(logged: Logged) -> tuple[int, bytes]:
    if logged.data is not None:
        return wire.Kind.WRITE, pack_write(logged.change.handle, logged.offset, bytes(logged.data))
    return wire.Kind.CHANGE, pack_change(logged.change)
