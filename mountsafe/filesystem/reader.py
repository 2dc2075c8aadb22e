"""Reads of one file: from the medium by its plan, through the agent otherwise.

Direct reads are proven before they are relied on: until one has been compared with the agent's bytes and found equal,
every direct read is compared; a difference switches them off for the whole mount, loudly. A file that was changed is
read through the agent alone until the file system has settled.
"""

import errno
import logging
import os
import stat
from collections.abc import Sequence
from functools import partial

import trio

from mountsafe import changes, wire
from mountsafe.errors import GuestFault
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.chunks import Chunks
from mountsafe.filesystem.nodes import Doubtful, Node
from mountsafe.filesystem.plans import Plans
from mountsafe.incidents import Incidents
from mountsafe.limits import (
    EXTENT_PATIENCE,
    LONG_QUESTIONS,
    MAX_EXTENT_QUESTIONS,
    MAX_EXTENTS,
    MAX_EXTENTS_PER_FILE,
)
from mountsafe.medium.block import Disk, MediumError
from mountsafe.medium.extents import NO_PLAN, ReadPlan, Source, plan

log = logging.getLogger(__name__)
PROOF_BYTES = 64 << 10  # how much of a direct read is compared
IN_ORDER = 64 << 10  # the kernel asks for so much at a time only where a program reads one byte after the other


# Types that move bytes of files which nobody changes, while something else is written.
MOVING = frozenset({b"btrfs", b"f2fs"})


class Reader:
    """Reads the files of one mount."""

    def __init__(
        self, agents: Agents, block: Disk, incidents: Incidents, nursery: trio.Nursery, doubtful: Doubtful | None = None
    ) -> None:
        self._agents = agents
        self._block = block
        self._incidents = incidents
        self._direct = agents.mounted.direct
        self._moves = agents.mounted.fstype in MOVING
        self._doubtful = Doubtful() if doubtful is None else doubtful
        self._proven = False
        self._chunks = Chunks(self._read_through_guest, nursery)
        self._asked: dict[int, trio.Event] = {}  # files whose layout is on its way
        self._long_questions = trio.CapacityLimiter(LONG_QUESTIONS)
        self.plans = Plans(MAX_EXTENTS)  # of many extents

    @property
    def direct(self) -> bool:
        """Whether direct reads are in use."""
        return self._direct and not (self._moves and self._agents.writing)

    def changing(self, node: Node) -> None:
        """A file's bytes are about to change, or its blocks to be another's: what is known of them counts no more."""
        if stat.S_ISREG(node.mode):
            self._doubtful.add(node.ino)
            self.plans.drop(node)
            self._chunks.drop(node)

    def rest(self) -> None:
        """Let go of what was kept for readers: there have been none for a while."""
        self._chunks.clear()

    async def open(self, node: Node) -> None:
        """Learn where the bytes of a file are, and of the files after it in its folder, which are likely to be next."""
        while node.ino in self._asked:
            await self._asked[node.ino].wait()
        if not node.unplanned or not self.direct or node.parent is None:
            return
        files = [node]
        for other in node.parent.listing.following(node) if node.parent.listing else ():
            wanted = other.unplanned and other.ino not in self._asked
            if wanted and other is not node and other.parent is node.parent:
                files.append(other)
            if len(files) == wire.MAX_LAYOUT:
                break
        answered = trio.Event()
        for file in files:
            self._asked[file.ino] = answered
        try:
            await self._learn(node, files, node.parent)
        except OSError as error:  # the guest's no: its bytes may be had all the same, and the next time where they are
            log.info("where files are is not told: %s", error)
        finally:
            for file in files:
                self._asked.pop(file.ino, None)
            answered.set()

    async def _learn(self, node: Node, files: list[Node], folder: Node) -> None:
        """Plan the files. Of one that stays unplanned nothing was said: whoever opens it asks again."""

        def question() -> bytes:
            return wire.pack_layout_request(folder.path(), [file.name for file in files])

        body = await self._agents.request(wire.Kind.LAYOUT, question)
        told = self._agents.unpack(wire.unpack_layout, body)
        for file in files[len(told) :]:  # an answer that is too short
            file.unplanned = False
        for file, (untrusted_extents, more) in zip(files, told, strict=False):
            if not more:
                self._plan(file, untrusted_extents)
            elif file is node:
                async with self._long_questions:
                    self._plan(file, await self._all_extents(file))

    async def _all_extents(self, node: Node) -> list[wire.Extent]:
        untrusted_extents: list[wire.Extent] = []
        offset = 0
        end = trio.current_time() + EXTENT_PATIENCE
        for _ in range(MAX_EXTENT_QUESTIONS):
            question = partial(_extents_question, node, offset)
            body = await self._agents.request(wire.Kind.EXTENTS, question)
            more, following = self._agents.unpack(wire.unpack_extents, body)
            untrusted_extents += more
            if following <= offset or len(untrusted_extents) >= MAX_EXTENTS_PER_FILE or trio.current_time() > end:
                break  # that was all, or nothing new, or too much, or slow: the rest goes through the agent
            offset = following
        return untrusted_extents

    def _plan(self, node: Node, untrusted_extents: Sequence[wire.Extent]) -> None:
        if node.ino in self._doubtful:  # it was changed meanwhile
            return
        try:
            checked = plan(untrusted_extents, self._agents.window)
        except GuestFault as fault:
            self._incidents.report(str(fault), node.path())
            checked = NO_PLAN
        self.plans.give(node, checked)

    async def read(self, node: Node, offset: int, length: int) -> bytes | memoryview:
        """Return the bytes at `offset`, fewer than `length` only at the end of the file.

        They are to be used before anything else is awaited.
        """
        length = min(length, node.size - offset)
        if length <= 0:
            return b""
        if length >= IN_ORDER:
            self._agents.defer()
        if node.handle or node.gone:
            return await self._read_open(node, offset, length)
        direct = self.direct
        if self._proven and direct:
            physical = node.plan.place(offset, length)
            found = self._block.read_now(physical, length) if physical is not None else None
            if found is not None:
                return found
        return await self._read_by_plan(node, node.plan if direct else NO_PLAN, offset, length)

    async def _read_by_plan(self, node: Node, use: ReadPlan, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        for piece in use.pieces(offset, length):
            if piece.source == Source.ZERO:
                parts.append(bytes(piece.length))
            elif piece.source == Source.MEDIUM:
                data = await self._block.read(piece.physical, piece.length)
                if node.ino in self._doubtful:  # it was changed while it was read
                    return await self._read_through_guest(node, offset, length)
                if not self._proven:
                    data = await self._prove(node, piece.offset, data)
                parts.append(data)
            elif piece.length >= IN_ORDER and node.ino not in self._doubtful:
                parts.append(await self._chunks.read(node, piece.offset, piece.length))
            else:
                parts.append(await self._read_through_guest(node, piece.offset, piece.length))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_open(self, node: Node, offset: int, length: int) -> bytes:
        """Read a file that is open in the guest: no path may lead to it any more."""
        await self._agents.passed(node.changed)
        handle = node.handle
        if not handle:
            raise OSError(errno.EIO, "a file that was open is gone")
        try:
            return await self._ask(node, offset, length, handle)
        except OSError as error:
            if error.errno == errno.EBADF and node.gone:  # it went with its virtual machine
                raise OSError(errno.EIO, "a file that was open is gone") from error
            if node.handle == handle or node.gone:
                raise
            return await self._read_through_guest(node, offset, length)  # it has settled meanwhile

    async def _ask(self, node: Node, offset: int, length: int, handle: int = 0) -> bytes:
        parts = []
        while length:
            step = min(length, wire.MAX_READ)
            if handle:
                question = changes.pack_read(handle, offset, step)
                untrusted_data = await self._agents.request(wire.Kind.HANDLE_READ, question)
            else:
                untrusted_data = await self._agents.request(wire.Kind.READ, partial(_question, node, offset, step))
            if len(untrusted_data) > step or (len(untrusted_data) < step and node.ino not in self._doubtful):
                # The size was told by the same guest: the file is damaged, or somebody lies.
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            parts.append(untrusted_data)
            if len(untrusted_data) < step:  # it was cut while it was read
                break
            offset += step
            length -= step
        return b"".join(parts)

    async def _read_through_guest(self, node: Node, offset: int, length: int) -> bytes:
        told = await self._ask(node, offset, length)
        if self._block.cut_short():
            raise MediumError("the medium is shorter than it was, and who reads it through the guest may read zeros")
        return told

    async def _prove(self, node: Node, offset: int, data: bytes) -> bytes:
        """Compare the start of a direct read with the agent's bytes; return the bytes to be trusted."""
        told = await self._ask(node, offset, min(len(data), PROOF_BYTES))
        if told == data[: len(told)]:
            # Zeros prove nothing: free space has them everywhere.
            self._proven = self._proven or any(told)
            return data
        self._direct = False
        self._incidents.report("direct reads differ from the guest's and are switched off", node.path())
        return await self._read_through_guest(node, offset, len(data))


def _question(node: Node, offset: int, length: int) -> bytes:
    return wire.pack_read(node.path(), offset, length)


def _extents_question(node: Node, offset: int) -> bytes:
    return wire.pack_extents_request(node.path(), offset)
