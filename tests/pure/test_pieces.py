"""Messages in pieces: whole or a fault, whatever comes."""

from contextlib import suppress
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import channel, pieces
from mountsafe.errors import ProtocolFault
from mountsafe.limits import CONTROL_MESSAGE, CONTROL_WHOLE


def received(*packets: bytes) -> channel.Message | None:
    ours, theirs = channel.pair()
    with ours:
        with theirs:
            for packet in packets:
                theirs.send(packet)
        return pieces.receive(ours)


@given(st.integers(0, 3 * CONTROL_MESSAGE))
def test_a_message_comes_back(size: int) -> None:
    message = {"x": "y" * size}
    packets = pieces.split(message)
    assert max(map(len, packets)) <= CONTROL_MESSAGE
    assert received(*packets) == message


def test_the_end_is_none() -> None:
    assert received() is None


@pytest.mark.parametrize(
    "packets",
    [
        [b"+{"],
        [b"+{", b"}"],
        [b"+{", b"x}"],
        [b".{"],
        [b"+"],
        [b"[]"],
        [b"+{", b"+}"],
        [b"{}" + b" " * CONTROL_MESSAGE],
    ],
)
def test_what_is_no_message_is_a_fault(packets: list[bytes]) -> None:
    with pytest.raises(ProtocolFault):
        received(*packets)


def test_what_has_no_end_is_a_fault() -> None:
    ours, theirs = channel.pair()

    def flood() -> None:
        with suppress(OSError), theirs:
            while True:
                theirs.send(b"+" + b"x" * (CONTROL_MESSAGE - 1))

    thread = Thread(target=flood)
    thread.start()
    with ours, pytest.raises(ProtocolFault):
        pieces.receive(ours)
    thread.join()


def test_a_message_that_is_too_long_is_not_made() -> None:
    with pytest.raises(ValueError, match="bytes"):
        pieces.split({"x": "y" * CONTROL_WHOLE})
