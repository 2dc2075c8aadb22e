"""Where a file's bytes are, as the agent tells it: against a model of a file, block by block."""

import fcntl
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.agent import extents as agent
from mountsafe.agent.extents import ExtentMap, fibmap, fiemap, only_extent, without
from mountsafe.wire import Extent, ExtentKind

BLOCK = 512
DATA, HOLE, UNWRITTEN, OPAQUE = "data", "hole", "unwritten", "opaque"


def kernel_extents(kinds: list[str], physicals: list[int]) -> list[tuple[int, int, int, int]]:
    """What FIEMAP would tell of a file whose blocks are of these kinds: (logical, physical, length, flags)."""
    flags = {DATA: 0, UNWRITTEN: agent.EXTENT_UNWRITTEN, OPAQUE: 0x8}
    found: list[tuple[int, int, int, int]] = []
    for at, (kind, physical) in enumerate(zip(kinds, physicals, strict=True)):
        if kind == HOLE:
            continue
        extent = (at * BLOCK, physical * BLOCK, BLOCK, flags[kind])
        if found:
            before = found[-1]
            ends = (before[0] + before[2], before[1] + before[2], before[3])
            if ends == (extent[0], extent[1], extent[3]):
                found[-1] = (before[0], before[1], before[2] + BLOCK, before[3])
                continue
        found.append(extent)
    if found:
        found[-1] = (*found[-1][:3], found[-1][3] | agent.EXTENT_LAST)
    return found


class FakeFiemap:
    """The ioctl, for one file. An extent that reaches into the range asked for is told whole, as Linux does."""

    def __init__(self, extents: list[tuple[int, int, int, int]]) -> None:
        self._extents = extents

    def __call__(self, fd: int, request: int, buffer: bytearray) -> int:
        assert request == agent.FIEMAP
        start, length, _, _, room, _ = agent._FIEMAP_HEAD.unpack_from(buffer)
        asked = [e for e in self._extents if e[0] < start + length and e[0] + e[2] > start][:room]
        agent._FIEMAP_HEAD.pack_into(buffer, 0, start, length, 0, len(asked), room, 0)
        for index, (logical, physical, size, flags) in enumerate(asked):
            place = agent._FIEMAP_HEAD.size + index * agent._FIEMAP_EXTENT.size
            agent._FIEMAP_EXTENT.pack_into(buffer, place, logical, physical, size, 0, 0, flags, 0, 0, 0)
        return 0


class FakeFibmap:
    """The ioctl, for one file: the number of each block, 0 for a hole."""

    def __init__(self, physicals: list[int]) -> None:
        self._physicals = physicals
        self.asked: list[int] = []

    def __call__(self, fd: int, request: int, number: Any) -> int:
        assert request == agent.FIBMAP
        self.asked.append(number[0])
        number[0] = self._physicals[number[0]]
        return 0


def blocks(extents: list[Extent], count: int) -> list[tuple[str, int]]:
    """The kind and place of each block as `extents` tell it; OPAQUE where they tell nothing. Checks their order."""
    told = [(OPAQUE, 0)] * count
    last = 0
    for extent in extents:
        assert extent.logical >= last
        assert extent.length > 0
        last = extent.logical + extent.length
        for at in range(extent.logical // BLOCK, min(-(-last // BLOCK), count)):
            physical = extent.physical // BLOCK + at - extent.logical // BLOCK
            told[at] = (DATA, physical) if extent.kind == ExtentKind.DATA else (HOLE, 0)
    return told


def expected(kinds: list[str], physicals: list[int]) -> list[tuple[str, int]]:
    known = {DATA: DATA, HOLE: HOLE, UNWRITTEN: HOLE, OPAQUE: OPAQUE}
    return [(known[kind], place if kind == DATA else 0) for kind, place in zip(kinds, physicals, strict=True)]


@st.composite
def files(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """A file of up to 24 blocks: the kind of each, and its place."""
    kinds: list[str] = []
    physicals: list[int] = []
    for _ in range(draw(st.integers(0, 6))):
        kind, length = draw(st.sampled_from([DATA, DATA, HOLE, UNWRITTEN, OPAQUE])), draw(st.integers(1, 4))
        follows = physicals and draw(st.booleans())
        start = physicals[-1] + 1 if follows else draw(st.integers(1, 99))
        kinds += [kind] * length
        physicals += range(start, start + length)
    return kinds, physicals


@given(files(), st.integers(1, 30))
def test_fiemap_in_as_many_questions_as_it_takes(file: tuple[list[str], list[int]], limit: int) -> None:
    kinds, physicals = file
    size = len(kinds) * BLOCK
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "ioctl", FakeFiemap(kernel_extents(kinds, physicals)))
        extents, following = fiemap(3, size, 0, limit)
        while following:
            more, then = fiemap(3, size, following, limit)
            assert then == 0 or then > following
            extents, following = extents + more, then
    assert blocks(extents, len(kinds)) == expected(kinds, physicals)


@given(files(), st.integers(0, 23))
def test_fiemap_from_the_middle_of_an_extent_tells_nothing_before_it(
    file: tuple[list[str], list[int]], start: int
) -> None:
    kinds, physicals = file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "ioctl", FakeFiemap(kernel_extents(kinds, physicals)))
        extents, _ = fiemap(3, len(kinds) * BLOCK, start * BLOCK, 100)
    assert all(extent.logical >= start * BLOCK for extent in extents)
    assert blocks(extents, len(kinds))[start:] == expected(kinds, physicals)[start:]


@given(files())
def test_the_short_way_tells_what_the_long_one_does_of_a_file_in_one_piece(file: tuple[list[str], list[int]]) -> None:
    kinds, physicals = file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "ioctl", FakeFiemap(kernel_extents(kinds, physicals)))
        only = only_extent(3)
        extents, _ = fiemap(3, len(kinds) * BLOCK, 0, 100)
    data = [extent for extent in extents if extent.kind == ExtentKind.DATA]
    in_one_piece = len(data) == 1 and not data[0].logical and UNWRITTEN not in kinds and OPAQUE not in kinds
    assert only == (data[0] if in_one_piece else None)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 5), st.integers(1, BLOCK))
def test_fibmap_in_as_many_questions_as_it_takes(physicals: list[int], steps: int, last: int) -> None:
    size = max(0, len(physicals) * BLOCK - BLOCK + last)
    ioctl = FakeFibmap(physicals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "ioctl", ioctl)
        patch.setattr(agent, "FIBMAP_STEPS", steps)
        extents, following = fibmap(3, size, 0, BLOCK, BLOCK)
        while following:
            more, then = fibmap(3, size, following, BLOCK, BLOCK)
            assert then == 0 or then > following
            extents, following = extents + more, then
    assert blocks(extents, len(physicals)) == [(DATA, place) if place else (OPAQUE, 0) for place in physicals]
    assert ioctl.asked == list(range(len(physicals)))


def test_fibmap_asks_once_for_each_cluster() -> None:
    ioctl = FakeFibmap([10, 11, 12, 13, 14, 15, 16, 17, 50, 51])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "ioctl", ioctl)
        extents, _ = fibmap(3, 10 * BLOCK, 0, BLOCK, 4 * BLOCK)
    assert ioctl.asked == [0, 4, 8]
    assert extents == [
        Extent(0, 10 * BLOCK, 8 * BLOCK, ExtentKind.DATA),
        Extent(8 * BLOCK, 50 * BLOCK, 2 * BLOCK, ExtentKind.DATA),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8), st.booleans()), max_size=5),
    st.sets(st.integers(0, 47)).map(sorted),
)
def test_without_removes_exactly_what_the_ranges_cover(runs: list[tuple[int, int, bool]], changed: list[int]) -> None:
    extents, at = [], 0
    for physical, length, zero in runs:
        extents.append(Extent(at, physical, length, ExtentKind.ZERO if zero else ExtentKind.DATA))
        at += length + 1
    kept = without(extents, [(place, place + 1) for place in changed])

    def places(told: list[Extent]) -> list[tuple[int, int | None]]:
        return [
            (extent.logical + step, extent.physical + step if extent.kind == ExtentKind.DATA else None)
            for extent in told
            for step in range(extent.length)
        ]

    assert places(kept) == [place for place in places(extents) if place[1] is None or place[1] not in changed]


def test_without_takes_a_large_range_from_the_middle() -> None:
    kept = without([Extent(100, 1000, 50, ExtentKind.DATA)], [(0, 10), (1010, 1020), (1030, 1031), (2000, 3000)])
    assert kept == [
        Extent(100, 1000, 10, ExtentKind.DATA),
        Extent(120, 1020, 10, ExtentKind.DATA),
        Extent(131, 1031, 19, ExtentKind.DATA),
    ]


# --- which file systems can tell -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fstype", "mapped", "direct"),
    [
        ("ext4", False, True),
        ("vfat", False, True),
        ("ext4", True, False),
        ("btrfs", False, False),
        ("ntfs-3g", False, True),
        ("squashfs", False, False),
        ("no such type", False, False),
    ],
)
def test_only_addresses_of_the_device_itself_are_told(
    monkeypatch: pytest.MonkeyPatch, fstype: str, mapped: bool, direct: bool
) -> None:
    def block_size(fd: int, request: int, number: Any) -> int:
        assert request == agent.FIGETBSZ
        number[0] = BLOCK
        return 0

    monkeypatch.setattr(fcntl, "ioctl", block_size)
    assert ExtentMap(fstype, mapped, [], 3).direct is direct


def test_a_driver_that_refuses_sends_the_file_through_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(fd: int, request: int, number: Any) -> int:
        if request != agent.FIGETBSZ:
            raise OSError(95, "not supported")
        number[0] = BLOCK
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    extent_map = ExtentMap("xfs", False, [], 3)
    assert extent_map.of(3, os.stat("/"), 0, 10) == ([], 0)
    assert extent_map.only(3) is None


def test_extents_that_a_replay_has_changed_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeFiemap([(0, 4 * BLOCK, 4 * BLOCK, agent.EXTENT_LAST)])

    def ioctl(fd: int, request: int, buffer: Any) -> int:
        if request == agent.FIGETBSZ:
            buffer[0] = BLOCK
            return 0
        return fake(fd, request, buffer)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    extent_map = ExtentMap("ext4", False, [(5 * BLOCK, 6 * BLOCK)], 3)
    size = os.stat_result((0, 0, 0, 0, 0, 0, 4 * BLOCK, 0, 0, 0))
    extents, _ = extent_map.of(3, size, 0, 10)
    assert extent_map.only(3) is None
    assert blocks(extents, 4) == [(DATA, 4), (OPAQUE, 0), (DATA, 6), (DATA, 7)]
