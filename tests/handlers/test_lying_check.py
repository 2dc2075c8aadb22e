"""A guest that is asked for a check and lies, is silent or goes: that is said, and ends it."""

import errno
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mountsafe import wire
from mountsafe.jobs.checking import asked
from mountsafe.jobs.checks import MAX_LINE, MAX_LINES, Outcome, Result
from mountsafe.medium.volumes import Volume
from tests.guest import HangUp, Liar, Silence
from tests.handlers.opened import serve

VOLUME = Volume("sda1", "partition", 1, 1 << 20, 1 << 20, "ext4", "filesystem", "A", "", "", "", "1")
CLEAN = wire.Checked(wire.CheckOutcome.CLEAN, wire.MountState.CLEAN, 0, b"")


async def check(say: Callable[[bytes], bytes]) -> tuple[Result, list[str]]:
    """Check with a guest that says so; return what came of it, and why it was ended."""
    liar = Liar()
    liar.say[wire.Kind.CHECK] = say
    ended: list[str] = []
    async with trio.open_nursery() as nursery:

        async def numbered(_: object) -> tuple[socket.socket, int]:
            ours, theirs = socket.socketpair()
            nursery.start_soon(serve, liar, theirs)
            await trio.lowlevel.checkpoint()
            return ours, 7

        async def end_misbehaving(number: int, why: str) -> None:
            await trio.lowlevel.checkpoint()
            ended.append(f"{number}: {why}")

        machines: Any = SimpleNamespace(numbered=numbered, end_misbehaving=end_misbehaving, crash="")
        result = await asked(machines, VOLUME, 60, nursery, None)
        nursery.cancel_scope.cancel()
    return result, ended


def raising(error: Exception) -> Callable[[bytes], bytes]:
    def say(_: bytes) -> bytes:
        raise error

    return say


async def test_an_honest_one() -> None:
    result, ended = await check(lambda body: wire.pack_checked(CLEAN) if wire.unpack_check(body)[0] == b"sda1" else b"")
    assert (result.outcome, ended) == (Outcome.CLEAN, [])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        wire.pack_checked(CLEAN) + b"x",
        wire.pack_checked(CLEAN._replace(outcome=7)),
        wire.pack_checked(CLEAN._replace(journal=wire.MountState.REPAIRED)),
        wire.pack_checked(CLEAN._replace(outcome=wire.CheckOutcome.REPAIRED)),
        wire.pack_checked(CLEAN._replace(words=bytes(wire.MAX_CHECK_WORDS + 1))),
    ],
    ids=["nothing", "more", "outcome", "journal", "repaired", "words"],
)
async def test_what_cannot_be_said(body: bytes) -> None:
    result, ended = await check(lambda _: body)
    assert result.outcome is Outcome.LOST
    assert len(ended) == 1


async def test_silence_and_an_end() -> None:
    result, ended = await check(raising(Silence()))
    assert (result.outcome, result.why) == (Outcome.TIME, "its checker was not done in 60 s")
    assert ended == ["7: no answer from the virtual machine in 90 s"]
    result, ended = await check(raising(HangUp()))
    assert (result.outcome, result.why) == (Outcome.LOST, "the virtual machine was lost: the virtual machine is gone")


async def test_a_refusal_is_no_lie() -> None:
    result, ended = await check(raising(OSError(errno.ENODEV, "no")))
    assert (result.outcome, ended) == (Outcome.FAILED, [])


async def test_words_are_shown_as_they_can_be() -> None:
    words = b"\x1b[2J\xff\xe2\x80\xae" + b"a" * 1000 + b"\n" + b"line\r\n" * 3000
    result, _ = await check(lambda _: wire.pack_checked(wire.Checked(wire.CheckOutcome.ERRORS, 0, 4, words)))
    assert len(result.words) == MAX_LINES
    assert result.words[0].startswith(r"\x1b[2J\xff\u202eaaa")
    assert all(line.isprintable() and len(line) <= MAX_LINE for line in result.words)
