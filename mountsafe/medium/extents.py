"""From untrusted extents to a read plan.

The guest says where a file's bytes are. A plan holds what survived the checks: runs inside the medium, in order,
without overlap. Where a plan has no run, the agent has to be asked. A lie that passes can only show other bytes of the
same medium.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mountsafe.errors import GuestFault
from mountsafe.limits import MAX_EXTENTS_PER_FILE
from mountsafe.wire import Extent, ExtentKind, Place


class Window(NamedTuple):
    """The part of the medium that a file system lives in: `size` bytes from `start` on.

    Or, if there are `places`, a volume of `size` bytes of which these runs lie on the medium, in order and checked
    (`mountsafe.medium.volumes`); `start` has no meaning then.
    """

    start: int
    size: int
    places: tuple[Place, ...] = ()

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (bytes after `offset`, where on the medium, length) of what lies there of a range inside the window."""
        if not self.places:
            yield 0, self.start + offset, length
            return
        end = offset + length
        first = bisect_right(self.places, offset, key=lambda place: place.offset) - 1
        for at, physical, size in self.places[max(0, first) :]:
            low, high = max(at, offset), min(at + size, end)
            if at >= end:
                return
            if low < high:
                yield low - offset, physical + low - at, high - low


class Piece(NamedTuple):
    """Part of a read: `length` bytes that lie at `physical` of the medium, are zeros, or are the agent's to read."""

    offset: int
    length: int
    source: int
    physical: int


class Source:
    """Where the bytes of a piece come from."""

    AGENT = 0
    MEDIUM = 1
    ZERO = 2


class ReadPlan:
    """The checked runs of one file, in parallel sorted sequences: logical start, logical end, source, physical."""

    __slots__ = ("_ends", "_physicals", "_sources", "_starts")

    def __init__(self, runs: Sequence[tuple[int, int, int, int]]) -> None:
        self._starts = [run[0] for run in runs]
        self._ends = [run[1] for run in runs]
        self._sources = bytes(run[2] for run in runs)
        self._physicals = [run[3] for run in runs]

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, offset: int, length: int) -> int | None:
        """Return where on the medium a read lies, if it does so in one run."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or offset + length > self._ends[index] or self._sources[index] != Source.MEDIUM:
            return None
        return self._physicals[index] + offset - self._starts[index]

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Yield the pieces that make up a read, in order and without gap."""
        at, end = offset, offset + length
        index = max(0, bisect_right(self._starts, at) - 1)
        while at < end and index < len(self._starts):
            start, stop = self._starts[index], self._ends[index]
            if stop <= at:
                index += 1
                continue
            if start >= end:
                break
            if start > at:
                yield Piece(at, start - at, Source.AGENT, 0)
                at = start
            upto = min(stop, end)
            physical = self._physicals[index] + at - start if self._sources[index] == Source.MEDIUM else 0
            yield Piece(at, upto - at, self._sources[index], physical)
            at = upto
            index += 1
        if at < end:
            yield Piece(at, end - at, Source.AGENT, 0)


NO_PLAN = ReadPlan(())


def plan(untrusted_extents: Sequence[Extent], window: Window) -> ReadPlan:
    """Check the extents of a file against the window and return its plan.

    Raises GuestFault if an extent is empty, of an unknown kind, outside the window, out of order, overlapping another,
    or if there are too many.
    """
    if len(untrusted_extents) > MAX_EXTENTS_PER_FILE:
        raise GuestFault(f"{len(untrusted_extents)} extents in one file")
    runs: list[tuple[int, int, int, int]] = []
    last = 0
    for logical, physical, length, kind in untrusted_extents:
        if length <= 0 or logical < last or logical + length >= 1 << 63:
            raise GuestFault(f"an extent of {length} bytes at {logical}, after the end of another at {last}")
        last = logical + length
        if kind == ExtentKind.ZERO:
            runs.append((logical, last, Source.ZERO, 0))
            continue
        if kind != ExtentKind.DATA:
            raise GuestFault(f"an extent of kind {kind}")
        if physical < 0 or physical + length > window.size:
            raise GuestFault(f"an extent at {physical} of {length} bytes, in a file system of {window.size}")
        for shift, start, part in window.runs(physical, length):
            _append(runs, logical + shift, logical + shift + part, start)
        if len(runs) > MAX_EXTENTS_PER_FILE:
            raise GuestFault(f"more than {MAX_EXTENTS_PER_FILE} runs in one file")
    return ReadPlan(runs)


def _append(runs: list[tuple[int, int, int, int]], logical: int, end: int, start: int) -> None:
    """Add a run on the medium, or make the last one longer if it goes on there."""
    if runs and runs[-1][2] == Source.MEDIUM and runs[-1][1] == logical:
        before = runs[-1]
        if before[3] + before[1] - before[0] == start:
            runs[-1] = (before[0], end, Source.MEDIUM, before[3])
            return
    runs.append((logical, end, Source.MEDIUM, start))
