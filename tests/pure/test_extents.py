"""Read plans against a model: a file and a medium as arrays of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.errors import GuestFault
from mountsafe.medium import extents
from mountsafe.medium.extents import NO_PLAN, Piece, Source, Window, plan
from mountsafe.wire import Extent, ExtentKind

WINDOW = Window(start=512, size=64)
FILE = 96  # bytes of the model's file


@st.composite
def possible_extents(draw: st.DrawFn) -> list[Extent]:
    """Extents of a small file as an honest guest tells them: in order, apart or touching, inside the window."""
    found: list[Extent] = []
    at = 0
    while at < FILE and draw(st.booleans()):
        at += draw(st.integers(0, 8))
        length = draw(st.integers(1, 16))
        kind = draw(st.sampled_from([ExtentKind.DATA, ExtentKind.ZERO]))
        follows = found and found[-1].kind == ExtentKind.DATA and draw(st.booleans())
        physical = found[-1].physical + found[-1].length if follows else draw(st.integers(0, WINDOW.size - 1))
        if kind == ExtentKind.DATA:
            physical %= WINDOW.size
            length = min(length, WINDOW.size - physical)
        found.append(Extent(at, physical, length, kind))
        at += length
    return found


def model(told: list[Extent]) -> list[tuple[int, int]]:
    """Where each byte of the file is to be had: (source, place on the medium)."""
    places = [(Source.AGENT, 0)] * (FILE * 2)
    for extent in told:
        for step in range(extent.length):
            data = extent.kind == ExtentKind.DATA
            place = WINDOW.start + extent.physical + step if data else 0
            places[extent.logical + step] = (Source.MEDIUM if data else Source.ZERO, place)
    return places


def spread(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [
        (p.source, p.physical + step if p.source == Source.MEDIUM else 0) for p in pieces for step in range(p.length)
    ]


@given(possible_extents(), st.integers(0, FILE), st.integers(0, FILE))
def test_pieces_say_of_every_byte_what_the_extents_said(told: list[Extent], offset: int, length: int) -> None:
    pieces = list(plan(told, WINDOW).pieces(offset, length))
    assert spread(pieces) == model(told)[offset : offset + length]
    place = plan(told, WINDOW).place(offset, length)
    in_one_run = len(pieces) == 1 and pieces[0].source == Source.MEDIUM
    assert place == (pieces[0].physical if in_one_run else None) or not length


@given(possible_extents(), st.integers(0, FILE), st.integers(1, FILE))
def test_pieces_cover_the_read_without_gap_or_overlap(told: list[Extent], offset: int, length: int) -> None:
    at = offset
    for piece in plan(told, WINDOW).pieces(offset, length):
        assert piece.offset == at
        assert piece.length > 0
        at += piece.length
    assert at == offset + length


ANY = st.integers(-2, 200) | st.sampled_from([1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])


@given(st.lists(st.builds(Extent, ANY, ANY, ANY, st.integers(0, 3)), max_size=6), st.integers(0, 200), ANY.filter(bool))
def test_no_lie_reaches_beyond_the_window(told: list[Extent], offset: int, length: int) -> None:
    try:
        checked = plan(told, WINDOW)
    except GuestFault:
        return
    for piece in checked.pieces(offset, length):
        assert piece.length > 0
        if piece.source == Source.MEDIUM:
            assert WINDOW.start <= piece.physical
            assert piece.physical + piece.length <= WINDOW.start + WINDOW.size


GOOD = Extent(0, 0, 16, ExtentKind.DATA)


@pytest.mark.parametrize(
    "told",
    [
        [GOOD._replace(length=0)],
        [GOOD._replace(length=-1)],
        [GOOD._replace(logical=-1)],
        [GOOD._replace(physical=-1)],
        [GOOD._replace(physical=WINDOW.size - 15)],
        [GOOD._replace(physical=WINDOW.size)],
        [GOOD._replace(physical=(1 << 64) - 8)],
        [GOOD._replace(length=WINDOW.size + 1)],
        [GOOD._replace(kind=0)],
        [GOOD._replace(kind=3)],
        [GOOD._replace(logical=(1 << 63) - 16)],
        [GOOD._replace(logical=(1 << 63) - 16, kind=ExtentKind.ZERO)],
        [GOOD, GOOD],
        [GOOD, GOOD._replace(logical=15, physical=32)],
        [GOOD._replace(logical=32), GOOD],
        [GOOD, GOOD._replace(logical=8, kind=ExtentKind.ZERO)],
    ],
)
def test_each_broken_rule_is_the_guests_fault(told: list[Extent]) -> None:
    with pytest.raises(GuestFault):
        plan(told, WINDOW)


def test_too_many_extents_are_the_guests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "MAX_EXTENTS_PER_FILE", 2)
    told = [Extent(at, at, 1, ExtentKind.DATA) for at in range(3)]
    plan(told[:2], WINDOW)
    with pytest.raises(GuestFault):
        plan(told, WINDOW)


def test_neighbours_on_the_medium_become_one_run() -> None:
    told = [Extent(at * 16, at * 16, 16, ExtentKind.DATA) for at in range(4)]
    assert list(plan(told, WINDOW).pieces(0, 64)) == [Piece(0, 64, Source.MEDIUM, 512)]


def test_without_a_plan_the_agent_is_asked() -> None:
    assert list(NO_PLAN.pieces(5, 10)) == [Piece(5, 10, Source.AGENT, 0)]
