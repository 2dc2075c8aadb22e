"""A virtual machine's end, at whatever moment, is told as such: nothing else may come of it."""

import socket
from typing import Any, cast

import pytest
import trio
import trio.testing

from mountsafe import channel, trios
from mountsafe.appliance.console import Console
from mountsafe.appliance.machine import Machine
from mountsafe.errors import DeadlinePassed, GuestGone
from mountsafe.process import Child


class Ended:
    """A process that is gone and said nothing."""

    last_line = ""


class Talking:
    """A process whose guest says something while it boots."""

    last_line = "starting up"


@pytest.mark.parametrize("reads", [True, False], ids=["after it read the request", "before it read the request"])
def test_an_appliance_process_that_ends_while_it_is_asked(reads: bool) -> None:
    async def ask(machine: Machine, theirs: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end, theirs)
            with pytest.raises(GuestGone):
                await machine.open_stream()
        machine._control.close()

    async def end(theirs: socket.socket) -> None:
        await trio.testing.wait_all_tasks_blocked()
        if reads:
            _, fds = cast("tuple[Any, list[int]]", channel.receive(theirs))
            socket.socket(fileno=fds[0]).close()
        theirs.close()  # with a request that was not read, the other end is told of a reset

    ours, theirs = channel.pair()
    trios.run(ask, Machine(cast("Child", Ended()), ours, Console(print), "tcg"), theirs)


@pytest.mark.parametrize(
    ("process", "seconds", "starts"),
    [(Talking(), 50, True), (Talking(), 70, False), (Ended(), 50, False), (Ended(), 10, True)],
    ids=["slow", "too slow", "silent", "quick"],
)
def test_a_guest_that_says_something_is_given_more_time(process: object, seconds: float, starts: bool) -> None:
    async def launch(machine: Machine, theirs: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_it_runs, theirs)
            if starts:
                await machine.launched(20.0, 40.0)
            else:
                with pytest.raises(DeadlinePassed):
                    await machine.launched(20.0, 40.0)
            nursery.cancel_scope.cancel()
        machine._control.close()
        theirs.close()

    async def say_it_runs(theirs: socket.socket) -> None:
        await trio.sleep(seconds)
        channel.send(theirs, {"event": "launched"})

    ours, theirs = channel.pair()
    clock = trio.testing.MockClock(autojump_threshold=0.01)
    trios.run(launch, Machine(cast("Child", process), ours, Console(print), "kvm"), theirs, clock=clock)


@pytest.mark.parametrize(
    "words",
    [
        "Kernel panic - not syncing: EXT4-fs (device sdc): panic forced after error",
        "kernel BUG at fs/ocfs2/super.c:1234!",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
    ],
)
def test_why_a_guests_kernel_crashed_is_kept(words: str) -> None:
    heard: list[str] = []
    console = Console(heard.append)
    lines = ["guest: [    8.67] EXT4-fs error (device sdc): iget: bad extra_isize", f"guest: [    8.68] {words}"]
    for line in lines:
        assert console.crash == ""
        console.hear(line)
    console.hear("guest: [    8.69] Kernel panic - not syncing: Fatal exception")
    assert console.crash == words
    assert heard[:2] == lines
