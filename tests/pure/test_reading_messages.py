"""What is asked over a stream, and answered: it comes as it was sent, in whatever pieces; and nothing else is taken."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import reading, wire
from mountsafe.reading import Asked, Held, Incoming, Opened
from tests.guest import entry, link

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
LENGTH = st.integers(0, wire.MAX_READ)
PATH = st.binary(max_size=300).filter(lambda path: b"\0" not in path)
READERS: list[Callable[[bytes], object]] = [
    *(reading.unpack_asked, reading.unpack_held, reading.unpack_entry, reading.unpack_opened, reading.unpack_offset),
    *(wire.unpack_page, wire.unpack_xattrs, wire.unpack_statfs, wire.unpack_error),
]


@given(PATH, st.integers(0, 1), U64, LENGTH)
def test_a_question_with_a_path(path: bytes, flags: int, number: int, length: int) -> None:
    asked = Asked(path, flags, number, length)
    assert reading.unpack_asked(reading.pack_asked(asked)) == asked


@given(U32, U64, LENGTH)
def test_a_question_about_an_open_file(handle: int, offset: int, length: int) -> None:
    held = Held(handle, offset, length)
    assert reading.unpack_held(reading.pack_held(held)) == held


@given(U32, U64, U64, st.binary(max_size=100))
def test_what_was_opened(handle: int, size: int, ino: int, first: bytes) -> None:
    opened = Opened(handle, entry(b"", ino, size=size), first)
    assert reading.unpack_opened(reading.pack_opened(opened)) == opened
    assert reading.unpack_offset(reading.pack_offset(size)) == size


@given(st.sampled_from(READERS), st.binary(max_size=400))
def test_anything_else_is_refused_in_one_way(read: Callable[[bytes], object], data: bytes) -> None:
    with suppress(wire.WireError):
        read(data)


@pytest.mark.parametrize("cut", range(1, 30))
def test_an_answer_that_is_cut_short_is_refused(cut: int) -> None:
    for body, read in (
        (reading.pack_opened(Opened(1, link(b"", b"target"), b"")), reading.unpack_opened),
        (reading.pack_entries(0, [link(b"", b"target")]), reading.unpack_entry),
    ):
        with pytest.raises(wire.WireError):
            read(body[:-cut])


@given(
    st.lists(st.tuples(U32, st.integers(0, 255), st.binary(max_size=200)), max_size=6),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_frames_come_in_whatever_pieces(frames: list[tuple[int, int, bytes]], steps: list[int]) -> None:
    data = b"".join(wire.frame(*each) for each in frames)
    incoming, found, turn = Incoming(), [], 0
    while data:
        room = incoming.room()
        assert room
        count = min(len(room), len(data), steps[turn % len(steps)])
        room[:count] = data[:count]
        room.release()
        data, turn = data[count:], turn + 1
        if (answer := incoming.took(count)) is not None:
            found.append((answer.ident, answer.kind, bytes(answer.body)))
    assert found == frames


def test_a_frame_that_is_too_long_is_refused_before_it_has_memory() -> None:
    incoming = Incoming()
    room = incoming.room()
    room[:] = wire.HEADER.pack(wire.MAX_BODY + 1, 1, 1)
    with pytest.raises(wire.WireError):
        incoming.took(len(room))
