"""What the container process says is believed only as far as it can be true, and its words are shown escaped."""

import socket
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from mountsafe import channel, trios
from mountsafe.container import opened
from mountsafe.container.opened import Container
from mountsafe.errors import ExitCode, GuestGone, MountsafeError, ProtocolFault, UserError
from mountsafe.limits import MAX_DISK_SIZE
from mountsafe.medium.formats import Fault, Format
from mountsafe.medium.source import Medium
from mountsafe.process import Child

MEDIUM = Medium(Path("/x/disk.qcow2"), -1, 512, block_device=False, format=Format.QCOW2)


class Silent:
    """A process that says nothing to the log."""

    last_line = ""


def told(said: channel.Message | bytes) -> int:
    """What `opened` makes of a message."""

    async def ask(container: Container) -> int:
        try:
            return await container.opened()
        finally:
            container._control.close()

    ours, theirs = channel.pair()
    with theirs:
        theirs.send(said if isinstance(said, bytes) else channel.encode(said))
        return trios.run(ask, Container(MEDIUM, cast("Child", Silent()), ours))


@pytest.mark.parametrize("size", [1, 512, MAX_DISK_SIZE])
def test_a_size_that_can_be(size: int) -> None:
    assert told({"event": "opened", "size": size}) == size


@pytest.mark.parametrize("size", [-1, MAX_DISK_SIZE + 1, True, 1.5, "512", None, [], {}])
def test_a_size_that_cannot_be(size: Any) -> None:
    with pytest.raises(ProtocolFault):
        told({"event": "opened", "size": size})


@pytest.mark.parametrize("said", [{}, {"event": "launched"}, {"size": 5}, b"{", b"[]", b"\xff"])
def test_what_is_no_answer(said: Any) -> None:
    with pytest.raises(ProtocolFault):
        told(said)


@pytest.mark.parametrize("why", Fault)
def test_a_fault_is_told_in_our_words(why: Fault) -> None:
    with pytest.raises(UserError) as failure:
        told({"failed": "open", "fault": why.name, "why": "trust me"})
    assert str(why) in failure.value.message
    assert "trust me" not in failure.value.message
    assert failure.value.code == ExitCode.SOURCE


@pytest.mark.parametrize("fault", [None, "NONE", "__class__", ["BACKING"], {"BACKING": 1}, "\x1b[2J"])
def test_other_words_are_shown_escaped(fault: Any) -> None:
    with pytest.raises(UserError) as failure:
        told({"failed": "open", "fault": fault, "why": "no\x1b[2J\n" + "x" * 2000})
    assert failure.value.message.isprintable()
    assert len(failure.value.message) < 500
    assert failure.value.code == ExitCode.SOURCE


def test_a_disk_without_a_byte_is_empty() -> None:
    with pytest.raises(UserError, match="empty"):
        told({"event": "opened", "size": 0})


@pytest.mark.parametrize("said", [None, {"failed": "connect", "why": "\x1b[2J"}, {"done": "open"}])
def test_a_socket_that_is_not_connected_is_no_socket(said: Any) -> None:
    async def connect(container: Container, theirs: socket.socket) -> None:
        async def answer() -> None:
            received = await trio.to_thread.run_sync(channel.receive, theirs)
            assert received is not None
            socket.socket(fileno=received[1][0]).close()
            if said is not None:
                channel.send(theirs, said)
            theirs.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises((GuestGone, ProtocolFault)) as failure:
                await container.connect(relayed=False)
        assert str(failure.value).isprintable()
        container._control.close()

    ours, theirs = channel.pair()
    trios.run(connect, Container(MEDIUM, cast("Child", Silent()), ours), theirs)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    opened.require()
    monkeypatch.setattr(opened, "find_spec", lambda name: None)
    with pytest.raises(MountsafeError, match="nbd is missing") as failure:
        opened.require()
    assert cast("UserError", failure.value).code == ExitCode.DEPENDENCY
