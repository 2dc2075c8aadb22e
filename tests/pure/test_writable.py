"""Disks that are written to: every byte ends where the description says, and no other byte of the medium changes."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.encrypted.tally import Counts, Tally
from mountsafe.errors import MediumError, ProtocolFault
from mountsafe.medium.encryption import UNIT, Cipher, Layer, Layout, Segment, SegmentKind, Stack
from mountsafe.medium.stacked import Plan, size_of
from mountsafe.medium.writable import WritableLayer, WritableRaw, open_writable

SIZE = 64 << 10
BEFORE = random.Random(1).randbytes(SIZE)


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "medium").write_bytes(BEFORE)
    fd = os.open(tmp_path / "medium", os.O_RDWR)
    yield fd
    os.close(fd)


def window(start: int, size: int) -> Stack:
    return Stack(True, SIZE, 0, SIZE, (Layer(((0, start, size),), size, None),))


# --- at random -------------------------------------------------------------------------------------------------------
@st.composite
def layers(draw: st.DrawFn, below: int) -> Layer:
    """A volume in pieces that lie below in any order, none over another, with gaps in it and between them."""
    cuts = sorted(draw(st.sets(st.integers(0, below), min_size=2, max_size=10)))
    pieces = draw(st.permutations([(one, other) for one, other in zip(cuts[::2], cuts[1::2], strict=False)]))
    places, at = [], 0
    for start, end in pieces:
        at += draw(st.sampled_from([0, 0, 700]))
        places.append((at, start, end - start))
        at += end - start
    return Layer(tuple(places), at + draw(st.sampled_from([0, 100])), None)


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    offset = draw(st.sampled_from([0, 512, 1000]))
    below = size = SIZE - offset - draw(st.sampled_from([0, 512]))
    made: list[Layer] = []
    for _ in range(draw(st.integers(0, 3))):
        made.append(draw(layers(below)))
        below = made[-1].size
    return Stack(True, SIZE, offset, size, tuple(made))


def below(stack: Stack) -> list[int | None]:
    """Where each byte of a stack's disk is on the medium; None for one that is nowhere."""
    places: list[int | None] = list(range(stack.offset, stack.offset + stack.size))
    for layer in stack.layers:
        inside: list[int | None] = [None] * layer.size
        for offset, physical, length in layer.places:
            inside[offset : offset + length] = places[physical : physical + length]
        places = inside
    return places


@given(stacks(), st.lists(st.tuples(st.integers(-10, SIZE), st.integers(0, 20_000), st.integers(0, 255)), max_size=12))
def test_every_byte_is_where_the_description_says(stack: Stack, writes: list[tuple[int, int, int]]) -> None:
    with in_memory() as fd:
        places, model = below(stack), bytearray(BEFORE)
        disk = open_writable(stack, os.dup(fd))
        assert disk.size == size_of(stack) == len(places)
        for offset, length, value in writes:
            data = random.Random(value).randbytes(length)
            there = places[max(0, offset) : max(0, offset) + length]
            if offset < 0 or offset + length > disk.size or None in there:
                with pytest.raises(MediumError):
                    disk.write(offset, memoryview(data))
            else:
                disk.write(offset, memoryview(data))
                for place, byte in zip(there, data, strict=True):
                    assert place is not None
                    model[place] = byte
                assert disk.read(offset, length) == data
            assert os.pread(fd, SIZE + 1, 0) == model
        disk.flush()


@contextmanager
def in_memory() -> Iterator[int]:
    """A medium, for as long as it is used."""
    fd = os.memfd_create("medium")
    try:
        os.write(fd, BEFORE)
        yield fd
    finally:
        os.close(fd)


# --- outside ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (-512, 1024), (8192, 1), (8191, 2), (0, 8193), (1 << 62, 1), (-(1 << 62), 1 << 10)],
)
def test_a_write_outside_is_an_error_and_changes_nothing(medium: int, offset: int, length: int) -> None:
    disk = open_writable(window(4096, 8192), os.dup(medium))
    with pytest.raises(MediumError, match="a write of"):
        disk.write(offset, memoryview(bytes(length)))
    assert os.pread(medium, SIZE, 0) == BEFORE


def test_of_a_write_that_reaches_into_a_gap_nothing_is_done(medium: int) -> None:
    layer = Layer(((0, 0, 4096), (8192, 4096, 4096)), 12288, None)
    disk = open_writable(Stack(True, SIZE, 0, SIZE, (layer,)), os.dup(medium))
    with pytest.raises(MediumError, match="nothing to write to"):
        disk.write(4000, memoryview(bytes(200)))
    assert os.pread(medium, SIZE, 0) == BEFORE


def test_a_place_where_zeros_are_cannot_be_written_to(medium: int) -> None:
    segments = (Segment(0, 512, SegmentKind.PLAIN, 0, 0), Segment(512, 512, SegmentKind.ZERO, 0, 0))
    layer = Layer(((0, 0, SIZE),), SIZE, Layout(Cipher.AES_XTS, 64, 512, UNIT, 1024, segments))
    disk = WritableLayer(WritableRaw(os.dup(medium), SIZE), Plan(layer))
    with pytest.raises(MediumError, match="nothing to write to"):
        disk.write(511, memoryview(b"xy"))
    disk.write(511, memoryview(b"x"))
    assert os.pread(medium, SIZE, 0) == BEFORE[:511] + b"x" + BEFORE[512:]


@pytest.mark.parametrize(
    "stack",
    [
        Stack(False, SIZE, 0, SIZE),
        window(SIZE - 512, 1024),
        Stack(True, SIZE, 0, SIZE, (Layer(((0, 0, 1024), (1024, 512, 1024)), 2048, None),)),
    ],
)
def test_what_cannot_be_written_to_is_not_opened(medium: int, stack: Stack) -> None:
    opened = os.dup(medium)
    with pytest.raises(ProtocolFault):
        open_writable(stack, opened)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened)


# --- what a medium does not take -------------------------------------------------------------------------------------
def test_a_medium_that_is_full_says_so() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is missing")
    disk = WritableRaw(os.open("/dev/full", os.O_RDWR), SIZE)
    with pytest.raises(MediumError, match="No space left") as failure:
        disk.write(0, memoryview(b"x"))
    assert isinstance(failure.value.__cause__, OSError)


def test_a_medium_that_keeps_nothing_says_so() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(MediumError, match="did not keep"):
        WritableRaw(reading, SIZE).flush()
    os.close(reading)


# --- the count -------------------------------------------------------------------------------------------------------
def test_the_count_is_one_for_all_who_have_it() -> None:
    ours = Tally.made()
    theirs = Tally(os.dup(ours.fd))
    theirs.wrote(5)
    theirs.failed(28)
    assert ours.read() == Counts(5, 1, 28)
    again = Tally(os.dup(ours.fd))
    again.wrote(1)
    assert ours.read() == Counts(6, 1, 28)
    for tally in (ours, theirs, again):
        tally.close()
        tally.close()
    assert ours.read() == Counts(6, 1, 28)
