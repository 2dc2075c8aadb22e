"""A disk for writers that may block: a boxed process with nothing else to do. No trio.

Code that only reads does not know this module: a disk of `mountsafe.medium.stacked` cannot be written to.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from mountsafe.errors import MediumError, ProtocolFault
from mountsafe.medium.blocking import BlockingDisk, BlockingPart, RawDisk
from mountsafe.medium.encryption import Layout, SegmentKind, Stack
from mountsafe.medium.stacked import BlockingLayer, Plan, Run, ciphers_of, verify

if TYPE_CHECKING:
    from mountsafe.medium.encrypting import BothWays


class WritableDisk(BlockingDisk, Protocol):
    """A disk that may be written to, where its `size` bytes are. Any thread may call it."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises MediumError; nothing outside of the disk is ever written."""

    def flush(self) -> None:
        """Return when what was written is on the medium. Raises MediumError."""


def _inside(offset: int, length: int, size: int) -> None:
    if not 0 <= offset <= size - length:
        raise MediumError(f"a write of {length} bytes at {offset}, to a disk of {size}")


class WritableRaw(RawDisk):
    """The medium itself, behind a descriptor that was opened for reading and writing."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises MediumError."""
        _inside(offset, len(data), self.size)
        while len(data):
            try:
                count = os.pwrite(self._fd, data, offset)
            except OSError as error:
                raise MediumError(f"writing the medium at {offset}: {error.strerror}") from error
            data, offset = data[count:], offset + count

    def flush(self) -> None:
        """Return when what was written is on the medium. Raises MediumError."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise MediumError(f"the medium did not keep what was written: {error.strerror}") from error


class WritablePart(BlockingPart):
    """A disk of which only `size` bytes from `offset` on are there."""

    def __init__(self, disk: WritableDisk, offset: int, size: int) -> None:
        super().__init__(disk, offset, size)
        self._writable = disk

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises MediumError."""
        _inside(offset, len(data), self.size)
        self._writable.write(self._offset + offset, data)

    def flush(self) -> None:
        """Return when what was written is on the medium. Raises MediumError."""
        self._writable.flush()


class WritableLayer(BlockingLayer):
    """The disk that a layer makes of the one below. `cipher`: of one that is encrypted."""

    def __init__(self, below: WritableDisk, plan: Plan, cipher: "BothWays | None" = None) -> None:
        super().__init__(below, plan, cipher)
        self._writable = below
        self._cipher = cipher
        self._rewriting = Lock()  # of a sector that is written in parts, none may be lost

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises MediumError; nothing is done where this layer has no place for it."""
        _inside(offset, len(data), self.size)
        runs = self._plan.runs(offset, len(data)) if len(data) else []
        if any(sum(many for _, _, many in run.pieces) != run.whole for run in runs):
            raise MediumError(f"a write of {len(data)} bytes at {offset}, where there is nothing to write to")
        for run in runs:
            part = data[run.at : run.at + run.length]
            if run.iv is None or self._cipher is None:
                self._put(run, part)
            else:
                with self._rewriting:
                    self._put(run, self._encrypted(run, part, run.iv, self._cipher))

    def _put(self, run: Run, data: memoryview) -> None:
        for shift, where, many in run.pieces:
            self._writable.write(where, data[shift : shift + many])

    def _encrypted(self, run: Run, part: memoryview, iv: int, cipher: "BothWays") -> memoryview:
        """Return the whole sectors of a run, with `part` in them."""
        whole = bytearray(run.whole)
        if run.length != run.whole:
            for shift, where, many in run.pieces:
                whole[shift : shift + many] = self._writable.read(where, many)
        view = memoryview(whole)
        with self._deciphering:
            if run.length != run.whole:
                cipher.decrypt(view, iv)
            view[run.skip : run.skip + run.length] = part
            cipher.encrypt(view, iv)
        return view

    def flush(self) -> None:
        """Return when what was written is on the medium. Raises MediumError."""
        self._writable.flush()


def verify_writable(stack: Stack) -> None:
    """Raise ProtocolFault for a stack that cannot be written to: not all of it says where one byte, and no other, is.

    What a container holds is not.
    """
    verify(stack)
    if not stack.raw:
        raise ProtocolFault("what lies in a container cannot be written to")
    for layer in stack.layers:
        _check_distinct((physical, length) for _, physical, length in layer.places)
        if layer.layout is not None:
            _check_distinct((s.physical, s.length) for s in layer.layout.segments if s.kind is not SegmentKind.ZERO)


def _check_distinct(places: Iterable[tuple[int, int]]) -> None:
    if any(one[0] + one[1] > other[0] for one, other in pairwise(sorted(places))):
        raise ProtocolFault("a volume of which bytes are in two places of it")


def open_writable(stack: Stack, fds: Sequence[int]) -> WritableDisk:
    """Return the disk that a stack makes of a medium that is open for writing. Raises ProtocolFault.

    `fds`: the medium, then a key for each layer that has a layout. The keys are closed; the first belongs to the disk,
    and is closed only if this fails.
    """
    medium, *keys = fds
    try:
        ciphers = ciphers_of(stack, keys, _both_ways)
        verify_writable(stack)
    except BaseException:
        os.close(medium)
        raise
    disk: WritableDisk = WritableRaw(medium, stack.reach)
    if stack.offset or stack.size != stack.reach:
        disk = WritablePart(disk, stack.offset, stack.size)
    for layer, cipher in zip(stack.layers, ciphers, strict=True):
        disk = WritableLayer(disk, Plan(layer), cipher)
    return disk


def _both_ways(layout: Layout, key: bytearray) -> "BothWays":
    from mountsafe.medium.encrypting import both_ways  # which needs a library, and not everybody encrypts

    return both_ways(layout, key)
