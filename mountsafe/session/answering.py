"""The supervisor's end of its control socket: who may ask is decided by the folder that it is in. See `asking`."""

import logging
import socket
from collections.abc import Awaitable, Callable

import trio

from mountsafe import channel, pieces
from mountsafe.errors import ExitCode, ProtocolFault
from mountsafe.limits import CONTROL_MESSAGE
from mountsafe.session.messages import ANSWERS, Answer, Done, Failed, Request, Verb
from mountsafe.session.runtime import Runtime

log = logging.getLogger(__name__)
Do = Callable[[Request], Awaitable[Answer]]


async def listen(runtime: Runtime) -> trio.socket.SocketType:
    """Open the control socket."""
    listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with runtime.control() as address:
        await listening.bind(address)
    listening.listen(8)
    return listening


async def answer_all(listening: trio.socket.SocketType, do: Do, nursery: trio.Nursery, medium: int) -> None:
    """Answer whoever connects, each in a task of its own: one that reads nothing keeps nobody waiting.

    `medium`: a descriptor that is lent. Who may ask is the same user, and it is open for reading alone.
    """
    while True:
        client, _ = await listening.accept()
        nursery.start_soon(answer, client, do, medium)


async def answer(client: trio.socket.SocketType, do: Do, medium: int) -> None:
    """Answer a client until it has gone. Whatever goes wrong with it is its loss, and not that of the mounts."""
    with client:
        try:
            while packet := await client.recv(CONTROL_MESSAGE):
                told = await _answered(channel.decode(packet), do)
                fds = channel.descriptors([medium] if told == Done(Verb.LEND) else [])
                for piece in pieces.split(ANSWERS.told(told)):
                    await client.sendmsg([piece], fds)
        except (OSError, ProtocolFault):
            return
        except Exception:
            log.exception("a client could not be answered")


async def _answered(untrusted: channel.Message, do: Do) -> Answer:
    try:
        request = Request.read(untrusted)
    except ProtocolFault as fault:
        return Failed(f"the mount's supervisor does not understand this: {fault}", "", ExitCode.USAGE)
    return await do(request)
