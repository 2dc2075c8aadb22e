"""The changes of a log, done again in a new virtual machine.

What it finds is a state between the checkpoint and now, or that of the change which was being done. Open files are
opened by the names that they had at the checkpoint. Of those that have been removed since, only what was made since can
be had again.
"""

from contextlib import suppress

from mountsafe import wire
from mountsafe.changes import Act, Change, Flag, pack_change, pack_write, unpack_changed
from mountsafe.filesystem.agents import Ask
from mountsafe.filesystem.changelog import ABSENT, LEAVING, ChangeLog, Logged, Subjects, excused, makes_file
from mountsafe.filesystem.nodes import Node

OPENING = frozenset({Act.OPEN, Act.CREATE})


class Replay:
    """One attempt. `handles`: what is open now; `pending`: the change that is sent again afterwards, if there is one,
    and what it is about.
    """

    def __init__(self, log: ChangeLog, handles: dict[int, Node], pending: tuple[Change | None, Subjects]) -> None:
        self._log = log
        self._handles = handles
        self._last, about = pending
        self._pending = (about.what, about.replaced)
        self._changes = log.changes[: log.sent]
        # All that was written to these since the checkpoint is in the log.
        self._made = {logged.change.handle for logged in log.changes if logged.change.act == Act.CREATE}
        self._paths: dict[int, bytes] = {}  # by which handles were opened, or should have been
        self._open: set[int] = set()
        self._done = log.done
        self._staying = {logged.removes for logged in log.changes[log.sent :]}  # nobody was asked to remove them yet
        self.repeated = 0
        self.failed: list[tuple[Logged, OSError]] = []

    async def run(self, ask: Ask) -> list[int]:
        """Do those that were sent. Return handles that could not be opened: what they are of is gone, or has another
        name. What no guest had done before and this one says no to, is in `failed`.

        Raises OSError if the guest says no to a change that cannot be done without; MountsafeError.
        """
        for handle, path, _ in self._log.opened:
            self._paths[handle] = path
            if not self._left_out(handle):
                with suppress(OSError):
                    await self._open_again(ask, Change(Act.OPEN, path, handle=handle))
        for position, logged in enumerate(self._changes):
            try:
                await self._repeat(ask, position, logged)
            except OSError as error:
                if error.errno not in ABSENT or not self._may_find_nothing(position, logged.change):
                    if position < self._done:
                        raise
                    self.failed.append((logged, error))
            self.repeated += 1
        unsent = self._log.unsent_handles()
        return [handle for handle in self._handles if handle not in self._open and handle not in unsent]

    def _may_find_nothing(self, position: int, change: Change) -> bool:
        return change.act in LEAVING or excused(self._changes, position, change.path, self._last)

    def _left_out(self, handle: int) -> bool:
        """Whether its file has been removed, or may have been: another one may be where it was."""
        node = self._handles.get(handle)
        if node is None or handle in self._made or node in self._staying:
            return False
        return node.gone or node in self._pending

    async def _repeat(self, ask: Ask, position: int, logged: Logged) -> None:
        change = logged.change
        if change.act in OPENING:
            self._paths[change.handle] = change.path
            if not self._left_out(change.handle):
                await self._open_again(ask, change)
        elif change.handle:
            if change.handle in self._open:
                await self._by_handle(ask, logged)
            elif change.act != Act.CLOSE and not self._may_be_absent(position, change.handle):
                raise OSError("a file that was written to is not there")
        elif change.flags & Flag.EXCHANGE:
            if await self._number_at(ask, change.path) == logged.offset:
                await ask(wire.Kind.CHANGE, pack_change(change))
        else:
            await self._afresh(ask, change)
            await ask(wire.Kind.CHANGE, _again(change))

    def _may_be_absent(self, position: int, handle: int) -> bool:
        return self._left_out(handle) or excused(self._changes, position, self._paths.get(handle, b""), self._last)

    @staticmethod
    async def _number_at(ask: Ask, path: bytes) -> int:
        body = await ask(wire.Kind.CHANGE, _again(Change(Act.SETATTR, path)))
        try:
            return number_told(body)
        except wire.WireError as error:
            raise OSError(f"it is not told what is where: {error}") from error

    async def _open_again(self, ask: Ask, change: Change) -> None:
        await self._afresh(ask, change)
        await ask(wire.Kind.CHANGE, _again(change))
        self._open.add(change.handle)

    @staticmethod
    async def _afresh(ask: Ask, change: Change) -> None:
        """Where a file is made: one that is there is a later one, all of which is in the log as well."""
        if makes_file(change):
            await ask(wire.Kind.CHANGE, _again(Change(Act.UNLINK, change.path)))

    async def _by_handle(self, ask: Ask, logged: Logged) -> None:
        change = logged.change
        if logged.data is not None:
            await ask(wire.Kind.WRITE, pack_write(change.handle, logged.offset, bytes(logged.data)))
        else:
            await ask(wire.Kind.CHANGE, _again(change))
        if change.act == Act.CLOSE:
            self._open.discard(change.handle)


def _again(change: Change) -> bytes:
    return pack_change(change._replace(flags=change.flags | Flag.AGAIN))


def number_told(untrusted_body: bytes) -> int:
    """Return the inode number that the answer to a change of nothing tells. Raises WireError."""
    entries = unpack_changed(untrusted_body)
    if not entries:
        raise wire.WireError("an answer without an entry")
    return entries[0].ino
