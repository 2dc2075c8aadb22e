"""Disks that are written to: every byte ends where the description says, and no other byte of the medium changes."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountsafe.encrypted.tally import Counts, Tally
from mountsafe.errors import MediumError, ProtocolFault
from mountsafe.medium.encryption import KEY_SIZES, UNIT, Cipher, Layer, Layout, Segment, SegmentKind, Stack
from mountsafe.medium.stacked import Plan, open_blocking, size_of
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
        disk = open_writable(stack, [os.dup(fd)])
        assert disk.size == size_of(stack) == len(places)
        for offset, length, value in writes:
            data = random.Random(value).randbytes(length)
            there = places[max(0, offset) : max(0, offset) + length]
            if offset < 0 or offset + length > disk.size or None in there:
                with pytest.raises(MediumError):
                    disk.write(offset, memoryview(data))
                if len(stack.layers) > 1:  # a layer below may have had places for a part of it
                    seen = os.pread(fd, SIZE, 0)
                    for place in there:
                        if place is not None:
                            model[place] = seen[place]
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


# --- encrypted -------------------------------------------------------------------------------------------------------
KEY = bytes(range(64))


@st.composite
def encrypted(draw: st.DrawFn) -> Stack:
    """A volume whose segments are encrypted, plain or zeros, none over another; perhaps one in another."""
    below, made = SIZE, list[Layer]()
    for _ in range(draw(st.integers(1, 2))):
        sector = draw(st.sampled_from([size for size in (512, 1024, 4096) if size <= below]))
        cipher = draw(st.sampled_from([Cipher.AES_XTS, Cipher.AES_CBC_ESSIV, Cipher.AES_CBC_EBOIV, Cipher.AES_ECB]))
        count = below // sector
        cuts = sorted({0, *draw(st.sets(st.integers(1, count), min_size=1, max_size=5))})
        pieces = list(pairwise(cuts))
        shift = draw(st.integers(0, below - cuts[-1] * sector))
        physical = {one: shift + place * sector for (one, _), place in zip(pieces, _packed(draw, pieces), strict=True)}
        segments = [
            Segment(
                one * sector,
                (other - one) * sector,
                draw(st.sampled_from([SegmentKind.CRYPT, SegmentKind.CRYPT, SegmentKind.PLAIN, SegmentKind.ZERO])),
                physical[one],
                draw(st.integers(0, 1 << 40)),
            )
            for one, other in pieces
        ]
        size = cuts[-1] * sector
        unit = draw(st.sampled_from([UNIT, sector]))
        key_size = max(KEY_SIZES[cipher])
        made.append(Layer(((0, 0, below),), below, Layout(cipher, key_size, sector, unit, size, tuple(segments))))
        below = size
    return Stack(True, SIZE, 0, SIZE, tuple(made))


def _packed(draw: st.DrawFn, pieces: list[tuple[int, int]]) -> list[int]:
    """Where each piece lies if they lie behind each other, in some order."""
    order, at, found = draw(st.permutations(range(len(pieces)))), 0, [0] * len(pieces)
    for which in order:
        found[which] = at
        at += pieces[which][1] - pieces[which][0]
    return found


def keys(stack: Stack) -> list[int]:
    fds = []
    for layer in stack.layers:
        if layer.layout is not None:
            fds.append(os.memfd_create("key"))
            os.write(fds[-1], KEY[: layer.layout.key_size])
    return fds


@settings(max_examples=50)
@given(encrypted(), st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 9000), st.integers(0, 255)), max_size=8))
def test_what_is_written_encrypted_is_read_as_it_was_written(stack: Stack, writes: list[tuple[int, int, int]]) -> None:
    """By who only reads, too; and the rest of the plaintext stays what it was."""
    with in_memory() as fd:
        disk = open_writable(stack, [os.dup(fd), *keys(stack)])
        reading = open_blocking(stack, [os.dup(fd), *keys(stack)])
        model = bytearray(reading.read(0, disk.size))
        for offset, length, value in writes:
            data = random.Random(value).randbytes(length)
            try:
                disk.write(offset, memoryview(data))
            except MediumError:
                assert offset + length > disk.size or has_zeros(stack)
                if len(stack.layers) > 1:  # what is in it may have places for a part of it
                    model[:] = reading.read(0, disk.size)
            else:
                model[offset : offset + length] = data
            assert reading.read(0, disk.size) == model
        assert len(os.pread(fd, SIZE + 1, 0)) == SIZE


def has_zeros(stack: Stack) -> bool:
    segments = [segment for layer in stack.layers if layer.layout for segment in layer.layout.segments]
    return any(segment.kind is SegmentKind.ZERO for segment in segments)


def test_two_parts_of_a_sector_that_are_written_at_once_are_both_there(medium: int) -> None:
    layout = Layout(Cipher.AES_XTS, 64, 4096, UNIT, SIZE, (Segment(0, SIZE, SegmentKind.CRYPT, 0, 0),))
    stack = Stack(True, SIZE, 0, SIZE, (Layer(((0, 0, SIZE),), SIZE, layout),))
    disk = open_writable(stack, [os.dup(medium), *keys(stack)])
    places = range(0, SIZE, 512)

    def write(at: int) -> None:
        disk.write(at, memoryview(b"%d " % at * 64)[:100])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, places))
    for at in places:
        assert disk.read(at, 100) == (b"%d " % at * 64)[:100]


def test_a_layout_of_which_bytes_are_in_two_places_is_not_opened(medium: int) -> None:
    segments = (Segment(0, 1024, SegmentKind.CRYPT, 0, 0), Segment(1024, 512, SegmentKind.PLAIN, 512, 0))
    layout = Layout(Cipher.AES_XTS, 64, 512, UNIT, 1536, segments)
    stack = Stack(True, SIZE, 0, SIZE, (Layer(((0, 0, SIZE),), SIZE, layout),))
    with pytest.raises(ProtocolFault, match="two places"):
        open_writable(stack, [os.dup(medium), *keys(stack)])


# --- outside ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (-512, 1024), (8192, 1), (8191, 2), (0, 8193), (1 << 62, 1), (-(1 << 62), 1 << 10)],
)
def test_a_write_outside_is_an_error_and_changes_nothing(medium: int, offset: int, length: int) -> None:
    disk = open_writable(window(4096, 8192), [os.dup(medium)])
    with pytest.raises(MediumError, match="a write of"):
        disk.write(offset, memoryview(bytes(length)))
    assert os.pread(medium, SIZE, 0) == BEFORE


def test_of_a_write_that_reaches_into_a_gap_nothing_is_done(medium: int) -> None:
    layer = Layer(((0, 0, 4096), (8192, 4096, 4096)), 12288, None)
    disk = open_writable(Stack(True, SIZE, 0, SIZE, (layer,)), [os.dup(medium)])
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
        open_writable(stack, [opened])
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
