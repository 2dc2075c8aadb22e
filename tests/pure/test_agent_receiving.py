"""Questions that come to the agent in pieces of any size."""

import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import wire
from mountsafe.agent.receiving import Receiver
from mountsafe.wire import Kind

BODIES = st.binary(max_size=40) | st.integers(0, 20_000).map(lambda size: random.Random(size).randbytes(size))
FRAMES = st.lists(
    st.tuples(st.integers(0, 99), st.sampled_from([Kind.LIST, Kind.WRITE, Kind.BATCH]), BODIES), max_size=9
)


def received(data: bytes, sizes: list[int], each: Callable[[wire.Frame], object]) -> bool:
    """Have a receiver get bytes in pieces; return whether it has heard anything."""
    ours, theirs = os.pipe()

    def send() -> None:
        at, turn = 0, 0
        with suppress(BrokenPipeError):
            while at < len(data):
                step = sizes[turn % len(sizes)]
                at, turn = at + os.write(theirs, data[at : at + step]), turn + 1
        os.close(theirs)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        receiver = Receiver(ours)
        while (frame := receiver.next()) is not None:
            each(frame)
        return receiver.spoken
    finally:
        os.close(ours)
        thread.join()


@given(FRAMES, st.lists(st.integers(1, 9000), min_size=1, max_size=4))
def test_frames_come_as_they_were_sent(frames: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
    found: list[tuple[int, int, bytes]] = []
    data = b"".join(wire.frame(*frame) for frame in frames)
    assert received(data, sizes, lambda frame: found.append((frame.ident, frame.kind, bytes(frame.body)))) == bool(data)
    assert found == frames


def test_the_largest_frame_fits() -> None:
    found: list[bytes] = []
    body = random.Random(1).randbytes(wire.MAX_BODY)
    data = wire.frame(1, Kind.WRITE, body) + wire.frame(2, Kind.LIST, b"next")
    received(data, [4096], lambda frame: found.append(bytes(frame.body)))
    assert found == [body, b"next"]


def test_a_frame_that_is_too_long_is_no_frame() -> None:
    with pytest.raises(wire.WireError):
        received(wire.HEADER.pack(wire.MAX_BODY + 1, 1, Kind.WRITE), [9], lambda frame: None)


def test_a_stream_that_ends_in_a_frame_has_ended() -> None:
    found: list[wire.Frame] = []
    assert received(wire.frame(1, Kind.LIST, b"whole") + wire.frame(2, Kind.LIST, b"cut")[:-1], [7], found.append)
    assert [frame.ident for frame in found] == [1]
    assert not received(b"", [1], found.append)
