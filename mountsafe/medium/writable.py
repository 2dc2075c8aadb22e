"""A disk that is written to by whoever may wait for it: a boxed process with nothing else to do. No trio.

What only reads knows nothing of this: a disk of `mountsafe.medium.stacked` has no way to be written to.
"""

import os
from itertools import pairwise
from typing import Protocol

from mountsafe.errors import MediumError, ProtocolFault
from mountsafe.medium.blocking import BlockingDisk, BlockingPart, RawDisk
from mountsafe.medium.encryption import Layer, Stack
from mountsafe.medium.stacked import BlockingLayer, Plan, verify


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
    """The disk that a layer, of which nothing is encrypted, makes of the one below."""

    def __init__(self, below: WritableDisk, plan: Plan) -> None:
        super().__init__(below, plan, None)
        self._writable = below

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`, or nothing where one of its bytes has no place. Raises MediumError."""
        _inside(offset, len(data), self.size)
        runs = self._plan.runs(offset, len(data)) if len(data) else []
        if any(sum(many for _, _, many in run.pieces) != run.whole for run in runs):
            raise MediumError(f"a write of {len(data)} bytes at {offset}, where there is nothing to write to")
        for run in runs:
            for shift, where, many in run.pieces:
                self._writable.write(where, data[run.at + shift : run.at + shift + many])

    def flush(self) -> None:
        """Return when what was written is on the medium. Raises MediumError."""
        self._writable.flush()


def verify_writable(stack: Stack) -> None:
    """Raise ProtocolFault for a stack that cannot be written to: not all of it says where one byte, and no other, is.

    What a container holds, or is encrypted, is not.
    """
    verify(stack)
    if not stack.raw or any(layer.layout is not None for layer in stack.layers):
        raise ProtocolFault("what lies in a container, or is encrypted, cannot be written to")
    for layer in stack.layers:
        _check_distinct(layer)


def _check_distinct(layer: Layer) -> None:
    runs = sorted((physical, length) for _, physical, length in layer.places)
    if any(one[0] + one[1] > other[0] for one, other in pairwise(runs)):
        raise ProtocolFault("a volume of which bytes are in two places of it")


def open_writable(stack: Stack, medium: int) -> WritableDisk:
    """Return the disk that a stack makes of a medium that is open for writing. Raises ProtocolFault.

    The descriptor belongs to the disk, and is closed only if this fails.
    """
    try:
        verify_writable(stack)
    except BaseException:
        os.close(medium)
        raise
    disk: WritableDisk = WritableRaw(medium, stack.reach)
    if stack.offset or stack.size != stack.reach:
        disk = WritablePart(disk, stack.offset, stack.size)
    for layer in stack.layers:
        disk = WritableLayer(disk, Plan(layer))
    return disk
