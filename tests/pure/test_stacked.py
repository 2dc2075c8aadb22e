"""Disks made of others: every byte is that which the description says, and none is read that is not below."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mountsafe import trios
from mountsafe.errors import MediumError, ProtocolFault
from mountsafe.limits import MAX_STACKED_LAYERS
from mountsafe.medium.block import BlockReader
from mountsafe.medium.decrypted import Decrypted, open_disk
from mountsafe.medium.encryption import KEY_SIZES, SECTORS, UNIT, Cipher, Layer, Layout, Segment, SegmentKind, Stack
from mountsafe.medium.stacked import BlockingLayer, Plan, decryptors, open_blocking, size_of, verify
from tests.pure.test_ciphers import by_sector

SIZE = 256 << 10
KEY = bytes(range(64))


def held(data: bytes) -> int:
    """A descriptor of a file with these bytes."""
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[int]:
    """A medium that is at hand: a file, and none of memory alone, which some kernels do not read without waiting."""
    (tmp_path / "medium").write_bytes(random.Random(1).randbytes(SIZE))
    with (tmp_path / "medium").open("r+b", buffering=0) as file:
        yield file.fileno()


# --- what the description says, a byte at a time ---------------------------------------------------------------------
def volume(below: bytes, layer: Layer) -> bytes:
    made = bytearray(layer.size)
    for offset, physical, length in layer.places:
        made[offset : offset + length] = below[physical : physical + length]
    return bytes(made)


def plaintext(below: bytes, layer: Layer, key: bytes) -> bytes:
    inside = volume(below, layer)
    if layer.layout is None:
        return inside
    parts = []
    for segment in layer.layout.segments:
        data = inside[segment.physical : segment.physical + segment.length]
        if segment.kind is SegmentKind.ZERO:
            data = bytes(segment.length)
        elif segment.kind is SegmentKind.CRYPT:
            data = by_sector(layer.layout, key, data, segment.iv)
        parts.append(data)
    return b"".join(parts)


# --- at random -------------------------------------------------------------------------------------------------------
def random_places(chance: random.Random, below: int) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """Runs in any order below, some with a gap before them; and the volume's size."""
    places, at = [], 0
    for _ in range(chance.randrange(1, 6)):
        at += chance.choice([0, 0, 512, 3 * 512])
        length = chance.randrange(1, max(2, below // 512 // 3)) * 512
        places.append((at, chance.randrange((below - length) // 512 + 1) * 512, length))
        at += length
    return tuple(places), at + chance.choice([0, 0, 1024])


def random_layout(chance: random.Random, within: int) -> Layout:
    cipher = chance.choice([Cipher.AES_XTS, Cipher.AES_CBC_PLAIN, Cipher.AES_CBC_ESSIV, Cipher.AES_CBC_EBOIV])
    sector = chance.choice([size for size in SECTORS if size <= within])
    segments, at = [], 0
    for _ in range(chance.randrange(1, 6)):
        kind = chance.choice([SegmentKind.CRYPT, SegmentKind.CRYPT, SegmentKind.PLAIN, SegmentKind.ZERO])
        unit = sector if kind is SegmentKind.CRYPT else UNIT
        length = chance.randrange(1, max(2, within // unit // 4)) * unit
        if at + length > within:
            break
        physical = chance.randrange(within - length + 1)
        segments.append(Segment(at, length, kind, physical, chance.randrange(1 << 40)))
        at += length
    if not segments:
        segments, at = [Segment(0, UNIT, SegmentKind.ZERO, 0, 0)], UNIT
    key_size = chance.choice(KEY_SIZES[cipher])
    return Layout(cipher, key_size, sector, chance.choice([UNIT, sector]), at, tuple(segments))


def random_stack(chance: random.Random) -> Stack:
    offset = chance.choice([0, 512, 4096])
    below = size = chance.choice([SIZE - offset, (SIZE - offset) // 2])
    layers = []
    for _ in range(chance.randrange(4)):
        places, inside = random_places(chance, below)
        layout = random_layout(chance, inside) if chance.randrange(4) else None
        layers.append(Layer(places, inside, layout))
        below = layout.size if layout else inside
    return Stack(True, SIZE, offset, size, tuple(layers))


def keys(stack: Stack) -> list[int]:
    return [held(KEY[: layer.layout.key_size]) for layer in stack.layers if layer.layout]


def all_of(stack: Stack, medium: int) -> bytes:
    data = os.pread(medium, stack.size, stack.offset)
    for layer in stack.layers:
        data = plaintext(data, layer, KEY[: layer.layout.key_size] if layer.layout else b"")
    return data


@pytest.mark.parametrize("seed", range(30))
def test_every_byte_is_what_the_description_says(medium: int, seed: int) -> None:
    chance = random.Random(seed)
    stack = random_stack(chance)
    whole = all_of(stack, medium)
    blocking = open_blocking(stack, [os.dup(medium), *keys(stack)])
    waiting = open_disk(stack, BlockReader(medium, SIZE), keys(stack))
    assert size_of(stack) == blocking.size == len(whole)
    for _ in range(30):
        offset = chance.randrange(len(whole))
        length = chance.randrange(1, chance.choice([2, 600, 9000, 300_000]))
        there = whole[offset : offset + length]
        wanted = there.ljust(length, b"\0")
        assert blocking.read(offset, length) == wanted
        assert trios.run(waiting.read, offset, length) == wanted
        now = waiting.read_now(offset, length)
        assert now is None or (bytes(now) == wanted and len(there) == length)


def one(layout: Layout | None, places: tuple[tuple[int, int, int], ...] = ((0, 0, SIZE),), size: int = SIZE) -> Stack:
    return Stack(True, SIZE, 0, SIZE, (Layer(places, size, layout),))


def crypt(sector: int = 512, size: int = SIZE, physical: int = 0) -> Layout:
    return Layout(Cipher.AES_XTS, 64, sector, UNIT, size, (Segment(0, size, SegmentKind.CRYPT, physical, 9),))


@pytest.mark.parametrize("sector", SECTORS)
def test_what_is_at_hand_is_had_at_once(medium: int, sector: int) -> None:
    """Also where a read begins or ends within a sector, and where the volume does not begin with its disk."""
    stack = one(crypt(sector, SIZE // 2), ((0, 8192, SIZE // 2),), SIZE // 2)
    whole = all_of(stack, medium)
    disk = open_disk(stack, BlockReader(medium, SIZE), keys(stack))
    for offset, length in [(0, sector), (0, SIZE // 2), (sector, 3 * sector), (5, 10), (sector - 1, 2)]:
        now = disk.read_now(offset, length)
        assert now is not None
        assert bytes(now) == whole[offset : offset + length]
    assert disk.read_now(SIZE // 2 - 1, 2) is None
    assert disk.read_now(-1, 2) is None


def test_what_has_a_gap_below_is_not_at_hand(medium: int) -> None:
    """A read of which one run is there and the rest zeros, and one that is of two runs."""
    for places in (((0, 0, 4096),), ((0, 0, 4096), (4096, 65536, 4096))):
        disk = open_disk(one(crypt(512, 8192), places, 8192), BlockReader(medium, SIZE), [held(KEY)])
        assert disk.read_now(0, 4096) is not None
        assert disk.read_now(0, 8192) is None


def test_bytes_that_are_somebody_elses_are_not_changed() -> None:
    class Fixed:
        data = memoryview(bytes(SIZE))

        def read_now(self, offset: int, length: int) -> memoryview:
            return self.data[offset : offset + length]

        async def read(self, offset: int, length: int) -> bytes:
            raise AssertionError

        def cut_short(self) -> bool:
            return True

    disk = open_disk(one(crypt()), Fixed(), [held(KEY)])
    now = disk.read_now(0, 1024)
    assert now is not None
    assert bytes(now) == by_sector(crypt(), KEY, bytes(1024), 9)
    assert disk.cut_short()


# --- lies ------------------------------------------------------------------------------------------------------------
def lying_layers() -> dict[str, Layer]:
    good = Layer(((0, 0, 4096), (4096, 8192, 4096)), 8192, crypt(size=8192))
    assert good.layout is not None
    segment = good.layout.segments[0]

    def segments(*several: Segment) -> Layer:
        assert good.layout is not None
        return replace(good, layout=replace(good.layout, segments=several))

    return {
        "beyond the disk": replace(good, places=((0, SIZE - 512, 4096),)),
        "before the disk": replace(good, places=((0, -512, 4096),)),
        "beyond the volume": replace(good, places=((4608, 0, 4096),)),
        "before the volume": replace(good, places=((-512, 0, 4096),)),
        "of no length": replace(good, places=((0, 0, 0),)),
        "of less": replace(good, places=((0, 0, -512),)),
        "overlapping": replace(good, places=((0, 0, 4096), (2048, 0, 4096))),
        "in disorder": replace(good, places=((4096, 0, 4096), (0, 0, 4096))),
        "nowhere": replace(good, places=()),
        "empty": replace(good, size=0),
        "larger than its volume": replace(good, layout=crypt(size=8192 + 512)),
        "a segment beyond the volume": segments(replace(segment, physical=512)),
        "a segment before the volume": segments(replace(segment, physical=-512)),
        "a gap": segments(replace(segment, length=4096), replace(segment, logical=4608, length=3584)),
        "half a sector": segments(replace(segment, length=8192 - 100)),
        "a key of another size": replace(good, layout=replace(good.layout, key_size=48)),
        "an impossible sector": replace(good, layout=replace(good.layout, sector=768)),
        "a sector of everything": replace(good, layout=replace(good.layout, sector=8192)),
        "an impossible number": segments(replace(segment, iv=1 << 63)),
    }


@pytest.mark.parametrize("lie", lying_layers())
def test_a_lie_is_no_disk(medium: int, lie: str) -> None:
    stack = Stack(True, SIZE, 0, SIZE, (lying_layers()[lie],))
    with pytest.raises(ProtocolFault):
        verify(stack)
    opened, key = os.dup(medium), held(KEY)
    with pytest.raises(ProtocolFault):
        open_blocking(stack, [opened, key])
    for fd in (opened, key):  # nothing stays open
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_layer_lies_in_the_plaintext_below_it_and_not_in_its_headers() -> None:
    inner = Layer(((0, 0, SIZE // 2),), SIZE // 2, None)
    verify(replace(one(crypt(size=SIZE // 2)), layers=(*one(crypt(size=SIZE // 2)).layers, inner)))
    with pytest.raises(ProtocolFault):
        verify(replace(one(crypt(size=SIZE // 4)), layers=(*one(crypt(size=SIZE // 4)).layers, inner)))


@pytest.mark.parametrize(
    "stack",
    [
        Stack(True, SIZE, 0, SIZE + 1),
        Stack(True, SIZE, 1, SIZE),
        Stack(True, SIZE, -1, SIZE),
        Stack(True, SIZE, 0, 0),
        Stack(True, SIZE, 0, SIZE, (Layer(((0, 0, SIZE),), SIZE, None),) * (MAX_STACKED_LAYERS + 1)),
    ],
)
def test_a_stack_that_cannot_be(stack: Stack) -> None:
    with pytest.raises(ProtocolFault):
        verify(stack)


@pytest.mark.parametrize("count", [0, 2])
def test_as_many_keys_as_layers(count: int) -> None:
    with pytest.raises(ProtocolFault):
        decryptors(one(crypt()), [held(KEY) for _ in range(count)])


def test_a_key_that_is_too_short() -> None:
    with pytest.raises(ProtocolFault):
        decryptors(one(crypt()), [held(KEY[:63])])


class Bounded:
    """A disk that says where it was read, and none of it is there in some places.

    `volume`: the places of the only volume that may be read, as a `Layer` has them.
    """

    def __init__(self, size: int, bad: Sequence[int] = (), volume: Sequence[tuple[int, int, int]] = ()) -> None:
        self.size = size
        self._bad = bad
        self._volume = volume or ((0, 0, size),)
        self.reads: list[tuple[int, int]] = []

    def assert_inside(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size
        assert any(start <= offset <= offset + length <= start + size for _, start, size in self._volume)

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        self.assert_inside(offset, length)
        if any(offset <= place < offset + length for place in self._bad):
            raise MediumError("bad")
        return bytes(length)


class AsyncBounded(Bounded):
    """The same for who must not wait."""

    async def read(self, offset: int, length: int) -> bytes:  # type: ignore[override]
        return super().read(offset, length)

    def read_now(self, offset: int, length: int) -> None:
        self.assert_inside(offset, length)

    def cut_short(self) -> bool:
        return False


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_believed_stays_inside(seed: int) -> None:
    """Numbers of a good description are changed at random: it is refused, or nothing is read outside of the volume."""
    chance = random.Random(seed)
    believed = 0
    for _ in range(200):
        stack = random_stack(chance)
        if not stack.layers:
            continue
        layer = spoiled(chance, stack.layers[0])
        changed = replace(stack, layers=(layer,))
        try:
            verify(changed)
        except ProtocolFault:
            continue
        believed += 1
        below, plan = Bounded(stack.size, volume=layer.places), Plan(layer)
        disk = BlockingLayer(below, plan, None)
        later = Decrypted(AsyncBounded(stack.size, volume=layer.places), plan, None)
        for _ in range(5):
            offset = chance.randrange(disk.size)
            length = chance.randrange(1, 20_000)
            assert len(disk.read(offset, length)) == length
            later.read_now(offset, length)
        assert len(trios.run(later.read, 0, 20_000)) == 20_000
    assert believed


def spoiled(chance: random.Random, layer: Layer) -> Layer:
    def other(number: int) -> int:
        return chance.choice([number + 512, number - 512, number + 1, -number, 0, 1 << 62, number * 2])

    what = chance.randrange(3)
    if what == 0:
        return replace(layer, size=other(layer.size))
    if what == 1 or layer.layout is None:
        places = [list(place) for place in layer.places]
        chance.choice(places)[chance.randrange(3)] += chance.choice([512, -512, 1, 1 << 40])
        return replace(layer, places=tuple((one, two, three) for one, two, three in places))
    segments = list(layer.layout.segments)
    index = chance.randrange(len(segments))
    name = chance.choice(["logical", "length", "physical", "iv"])
    segments[index] = replace(segments[index], **{name: other(getattr(segments[index], name))})
    return replace(layer, layout=replace(layer.layout, segments=tuple(segments)))


# --- what cannot be read ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sector", SECTORS)
def test_a_bad_sector_takes_no_other_along(sector: int) -> None:
    """Who reads beside it has what is there; it is the whole of an encrypted sector that is lost."""
    below = Bounded(SIZE, [5 * 4096 + 100])
    disk = BlockingLayer(below, Plan(one(crypt(sector)).layers[0]), None)
    first = (5 * 4096 + 100) // sector * sector
    assert disk.read(0, first) == bytes(first)
    assert disk.read(first + sector, 10_000) == bytes(10_000)
    for offset, length in [(first, 1), (first + sector - 1, 1), (first - 1, 2), (0, SIZE)]:
        with pytest.raises(MediumError):
            disk.read(offset, length)


def test_no_more_is_read_than_whole_sectors() -> None:
    below = Bounded(SIZE)
    disk = BlockingLayer(below, Plan(one(crypt(4096, SIZE // 2, 512)).layers[0]), None)
    disk.read(4095, 2)
    disk.read(8192, 4096)
    assert below.reads == [(512, 8192), (512 + 8192, 4096)]


def test_a_medium_that_lost_its_end(medium: int) -> None:
    disk = open_blocking(one(crypt()), [os.dup(medium), held(KEY)])
    reader = BlockReader(medium, SIZE)
    later = open_disk(one(crypt()), reader, [held(KEY)])
    before = disk.read(0, SIZE // 2)
    os.ftruncate(medium, SIZE // 2 + 100)
    assert later.cut_short()
    assert disk.read(0, SIZE // 2) == trios.run(later.read, 0, SIZE // 2) == before
    for offset in (SIZE // 2, SIZE - 1):
        with pytest.raises(MediumError):
            disk.read(offset, 1)
        with pytest.raises(MediumError):
            trios.run(later.read, offset, 1)
