"""Control messages between processes: one packet each, and nothing that a peer sends can do worse than a fault."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import channel
from mountsafe.errors import ProtocolFault
from mountsafe.limits import CONTROL_MESSAGE

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = channel.pair()
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


@given(st.dictionaries(st.text(max_size=10), JSON, max_size=5))
def test_a_message_comes_back(message: dict[str, Any]) -> None:
    assert channel.decode(channel.encode(message)) == message


def test_messages_keep_their_borders(ends: Ends) -> None:
    for number in range(3):
        channel.send(ends[0], {"number": number})
    assert [channel.receive(ends[1]) for _ in range(3)] == [({"number": number}, []) for number in range(3)]


def test_the_end_is_none(ends: Ends) -> None:
    ends[0].close()
    assert channel.receive(ends[1]) is None


def test_descriptors_come_along_and_are_closed_on_exec(ends: Ends) -> None:
    read, write = os.pipe()
    channel.send(ends[0], {"do": "stream"}, [write])
    os.close(write)
    received = channel.receive(ends[1])
    assert received is not None
    message, (copy,) = received
    assert message == {"do": "stream"}
    assert not os.get_inheritable(copy)
    os.write(copy, b"here")
    os.close(copy)
    assert os.read(read, 10) == b"here"
    os.close(read)


def test_too_long_a_message_is_not_sent() -> None:
    with pytest.raises(ValueError, match="control message"):
        channel.encode({"text": "x" * CONTROL_MESSAGE})


def test_a_message_of_exactly_the_limit_passes(ends: Ends) -> None:
    text = "x" * (CONTROL_MESSAGE - len(channel.encode({"text": ""})))
    channel.send(ends[0], {"text": text})
    assert channel.receive(ends[1]) == ({"text": text}, [])


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "packet",
    [
        b"{}" + b" " * CONTROL_MESSAGE,
        b"not JSON",
        b"\xff\xfe",
        b"[]",
        b"1",
        b"null",
        b'"text"',
        b'{"a":',
        b"[" * CONTROL_MESSAGE,
        b'{"a":' * (CONTROL_MESSAGE // 5),
        b"9" * 5000,
    ],
    ids=lambda packet: packet[:8].decode("latin-1"),
)
def test_what_is_no_message_is_a_fault_and_its_descriptors_are_closed(ends: Ends, packet: bytes) -> None:
    before = open_descriptors()
    socket.send_fds(ends[0], [packet], [0, 0])
    with pytest.raises(ProtocolFault):
        channel.receive(ends[1])
    assert open_descriptors() == before


def test_more_descriptors_than_allowed_are_a_fault_and_closed(ends: Ends) -> None:
    before = open_descriptors()
    socket.send_fds(ends[0], [b"{}"], [0] * (channel.MAX_DESCRIPTORS + 8))
    with pytest.raises(ProtocolFault):
        channel.receive(ends[1])
    assert open_descriptors() == before


@pytest.mark.parametrize("number", [0, 2, 3])
def test_another_number_of_descriptors_than_one_leaves_none_open(number: int) -> None:
    before = open_descriptors()
    assert channel.only([os.dup(0) for _ in range(number)]) is None
    assert open_descriptors() == before


def test_an_end_that_nobody_was_started_for_is_closed() -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError), channel.handed_down() as kept:
        raise FileNotFoundError
    assert kept[0].fileno() == kept[1].fileno() == -1
    assert open_descriptors() == before
