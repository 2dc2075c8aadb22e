"""Frames in a stream of bytes: whole, whatever pieces they come in, and never larger than allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import wire

FRAMES = st.lists(
    st.builds(wire.Frame, st.integers(0, (1 << 32) - 1), st.integers(0, 255), st.binary(max_size=200)), max_size=8
)


@given(FRAMES, st.data())
def test_frames_come_out_whole_however_the_stream_is_cut(frames: list[wire.Frame], data: st.DataObject) -> None:
    stream = b"".join(wire.frame(*frame) for frame in frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    decoder = wire.Decoder()
    seen: list[wire.Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += decoder.feed(stream[start:end])
    assert seen == frames


@given(FRAMES)
def test_frames_come_out_byte_by_byte(frames: list[wire.Frame]) -> None:
    decoder = wire.Decoder()
    stream = b"".join(wire.frame(*frame) for frame in frames)
    seen = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert seen == frames


def test_the_largest_frame_passes() -> None:
    body = bytes(wire.MAX_BODY)
    assert wire.Decoder().feed(wire.frame(7, 5, body)) == [wire.Frame(7, 5, body)]


@given(st.integers(wire.MAX_BODY + 1, (1 << 32) - 1), st.binary(max_size=50))
def test_a_larger_frame_is_refused_by_its_header_alone(length: int, rest: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.Decoder().feed(wire.HEADER.pack(length, 1, wire.Kind.READ) + rest)


def test_a_larger_frame_is_not_made() -> None:
    with pytest.raises(ValueError, match="body"):
        wire.frame(1, wire.Kind.READ, bytes(wire.MAX_BODY + 1))


def test_no_more_than_one_frame_is_held() -> None:
    decoder = wire.Decoder()
    frame = wire.frame(1, wire.Kind.READ, bytes(1000))
    for _ in range(50):
        decoder.feed(frame)
    decoder.feed(frame[:-1])
    assert len(decoder._buffer) == len(frame) - 1
