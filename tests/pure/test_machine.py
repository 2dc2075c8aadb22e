"""A virtual machine's end, at whatever moment, is told as such: nothing else may come of it."""

import socket
from typing import Any, cast

import pytest
import trio
import trio.testing

from mountsafe import channel
from mountsafe.appliance.machine import Machine
from mountsafe.errors import GuestGone
from mountsafe.process import Child


class Ended:
    """A process that is gone and said nothing."""

    last_line = ""


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
    trio.run(ask, Machine(cast("Child", Ended()), ours, "tcg"), theirs)
