"""A disk made of others: which bytes below make which bytes above, and a driver that reads them and may block.

Layers are described by processes that may have been taken over, so nothing outside of what lies below is ever read:
`verify` refuses what claims otherwise, and `Plan` yields nothing else.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar

from mountsafe import wire
from mountsafe.errors import ProtocolFault
from mountsafe.limits import MAX_STACKED_LAYERS
from mountsafe.medium.blocking import BlockingDisk, BlockingPart, RawDisk
from mountsafe.medium.encryption import UNIT, Layer, Layout, Segment, SegmentKind, Stack, check
from mountsafe.medium.extents import Window

C = TypeVar("C")


class Decryptor(Protocol):
    """A cipher with its key. One thread at a time."""

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first, in the layout's units."""


class Run(NamedTuple):
    """Bytes of a read, and how they are had: `whole` bytes below, decrypted from sector `iv` on if that is not None.

    Of them, `length` bytes after the first `skip` are those that are `at` bytes after the read's start. `pieces`:
    (bytes after the first of the whole, where below, how many); what is between them is zeros.
    """

    at: int
    length: int
    skip: int
    whole: int
    iv: int | None
    pieces: tuple[tuple[int, int, int], ...]


class Plan:
    """Which bytes of the disk below make the bytes of a layer's disk, which has `size` bytes."""

    def __init__(self, layer: Layer) -> None:
        places = tuple(wire.Place(*place) for place in layer.places)
        # A volume in one piece needs no search.
        in_one = len(places) == 1 and places[0].offset == 0 and places[0].length >= layer.size
        self._volume = Window(places[0].physical if in_one else 0, layer.size, () if in_one else places)
        layout = layer.layout
        self.size = layout.size if layout else layer.size
        self._segments = layout.segments if layout else (Segment(0, layer.size, SegmentKind.PLAIN, 0, 0),)
        self._starts = [segment.logical for segment in self._segments]
        self._sector = layout.sector if layout else UNIT
        self._iv_unit = layout.iv_unit if layout else UNIT

    def runs(self, offset: int, length: int) -> list[Run]:
        """Return the runs that make up a read inside the disk, in order and without gap."""
        at, end = offset, offset + length
        if offset < 0 or end > self.size:
            raise ValueError(f"{length} bytes at {offset} of a disk of {self.size}")
        runs = []
        index = bisect_right(self._starts, at) - 1
        while at < end:
            segment = self._segments[index]
            upto = min(end, segment.logical + segment.length)
            runs.append(self._run(segment, at, upto, offset))
            at = upto
            index += 1
        return runs

    def _run(self, segment: Segment, start: int, end: int, offset: int) -> Run:
        low, high = start - segment.logical, end - segment.logical
        at, length = start - offset, end - start
        if segment.kind is SegmentKind.ZERO:
            return Run(at, length, 0, length, None, ())
        if segment.kind is SegmentKind.PLAIN:
            return Run(at, length, 0, length, None, tuple(self._volume.runs(segment.physical + low, length)))
        first = low // self._sector * self._sector
        whole = -(-high // self._sector) * self._sector - first
        iv = segment.iv + first // self._iv_unit
        return Run(at, length, low - first, whole, iv, tuple(self._volume.runs(segment.physical + first, whole)))


def verify(stack: Stack) -> None:
    """Raise ProtocolFault for a stack of which a layer lies outside of what is below it, or cannot be."""
    if not 0 <= stack.offset <= stack.reach or not 0 < stack.size <= stack.reach - stack.offset:
        raise ProtocolFault("a disk outside of its medium")
    if len(stack.layers) > MAX_STACKED_LAYERS:
        raise ProtocolFault(f"{len(stack.layers)} layers of disks")
    below = stack.size
    for layer in stack.layers:
        _verify_places(layer, below)
        below = layer.size
        if layer.layout is not None:
            check(layer.layout, layer.size)
            below = layer.layout.size


def _verify_places(layer: Layer, below: int) -> None:
    if layer.size <= 0 or not layer.places:
        raise ProtocolFault("a volume of nothing")
    for offset, physical, length in layer.places:
        if length <= 0 or not 0 <= offset <= layer.size - length or not 0 <= physical <= below - length:
            raise ProtocolFault("a volume that lies outside of its disk")
    for one, other in pairwise(layer.places):
        if one[0] + one[2] > other[0]:
            raise ProtocolFault("places of a volume that overlap, or are in disorder")


def size_of(stack: Stack) -> int:
    """Return how many bytes the disk has that a stack makes."""
    if not stack.layers:
        return stack.size
    last = stack.layers[-1]
    return last.layout.size if last.layout else last.size


def decryptors(stack: Stack, keys: Sequence[int]) -> list[Decryptor | None]:
    """Verify a stack; return what decrypts each of its layers.

    `keys`: a descriptor for each layer that has a layout; all of them are closed. Raises ProtocolFault.
    """
    return ciphers_of(stack, keys, _decryptor)


def ciphers_of(stack: Stack, keys: Sequence[int], made: Callable[[Layout, bytearray], C]) -> list[C | None]:
    """Verify a stack; return what is `made` of the layout and the key of each of its layers: see `decryptors`."""
    try:
        verify(stack)
        layouts = [layer.layout for layer in stack.layers]
        if len(keys) != sum(layout is not None for layout in layouts):
            raise ProtocolFault(f"{len(keys)} keys for another number of encrypted layers")
        left = iter(keys)
        return [_keyed(layout, next(left), made) if layout else None for layout in layouts]
    finally:
        for fd in keys:
            os.close(fd)


def _decryptor(layout: Layout, key: bytearray) -> Decryptor:
    from mountsafe.medium.ciphers import decryptor  # which needs a library, and not everybody decrypts

    return decryptor(layout, key)


def _keyed(layout: Layout, fd: int, made: Callable[[Layout, bytearray], C]) -> C:
    key = bytearray(layout.key_size)
    try:
        if os.preadv(fd, [key], 0) != layout.key_size:
            raise ProtocolFault("a key that is too short")
        return made(layout, key)
    finally:
        key[:] = bytes(len(key))


class BlockingLayer:
    """The disk that a layer makes of the one below."""

    def __init__(self, below: BlockingDisk, plan: Plan, decryptor: Decryptor | None) -> None:
        self._below = below
        self._plan = plan
        self._decryptor = decryptor
        self._deciphering = Lock()
        self.size = plan.size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end are zeros."""
        available = max(0, min(length, self.size - offset))
        data = bytearray(length)
        for run in self._plan.runs(offset, available) if available else ():
            part = bytearray(run.whole)
            for shift, where, many in run.pieces:
                part[shift : shift + many] = self._below.read(where, many)
            if run.iv is not None and self._decryptor is not None:
                with self._deciphering:
                    self._decryptor.decrypt(memoryview(part), run.iv)
            data[run.at : run.at + run.length] = memoryview(part)[run.skip : run.skip + run.length]
        return bytes(data)


def open_blocking(stack: Stack, fds: Sequence[int]) -> BlockingDisk:
    """Return the disk that a stack makes. Blocks. Raises ProtocolFault, MediumError.

    `fds`: the medium or a socket to its server, then a key for each layer that has a layout. The keys are closed;
    the first belongs to the disk, and is closed only if this fails.
    """
    medium, *keys = fds
    try:
        ciphers = decryptors(stack, keys)
        disk = _base(stack, medium)
    except BaseException:
        os.close(medium)
        raise
    for layer, decryptor in zip(stack.layers, ciphers, strict=True):
        disk = BlockingLayer(disk, Plan(layer), decryptor)
    return disk


def _base(stack: Stack, medium: int) -> BlockingDisk:
    disk: BlockingDisk
    if stack.raw:
        disk = RawDisk(medium, stack.reach)
    else:
        from mountsafe.medium.nbd import BlockingNbd

        disk = BlockingNbd(os.dup(medium), stack.reach)
        os.close(medium)
    return disk if stack.offset == 0 and stack.size == stack.reach else BlockingPart(disk, stack.offset, stack.size)
