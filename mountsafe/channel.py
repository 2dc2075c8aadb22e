"""Small JSON messages, with descriptors, between our own processes: one SOCK_SEQPACKET packet each.

A receiver trusts neither the length nor the keys: the other end may be a process of an outer zone. Descriptors travel
down only (from the one that starts a process to the one that is started), so receiving them is asked for by name.
"""

import array
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mountsafe.errors import ProtocolFault
from mountsafe.limits import CONTROL_MESSAGE

Message = dict[str, Any]
MAX_DESCRIPTORS = 8


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextmanager
def handed_down() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two connected ends, the second for a process that is started meanwhile; keep the first if it was."""
    ours, theirs = pair()
    with theirs:
        try:
            yield ours, theirs
        except BaseException:
            ours.close()
            raise


def only(fds: list[int]) -> int | None:
    """Return the one descriptor that came with a message; None, and none stays open, if it was not one."""
    if len(fds) == 1:
        return fds[0]
    close(fds)
    return None


def close(fds: list[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def encode(message: Message) -> bytes:
    """Return the packet of a message."""
    packet = json.dumps(message).encode()
    if len(packet) > CONTROL_MESSAGE:
        raise ValueError(f"control message of {len(packet)} bytes")
    return packet


def decode(packet: bytes) -> Message:
    """Return the message of a packet; `ProtocolFault` if it is none."""
    try:
        message = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise ProtocolFault("a control message is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolFault("a control message is not an object")
    return message


def descriptors(fds: list[int]) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data that carries descriptors."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


def send(sock: socket.socket, message: Message, fds: list[int] | None = None) -> None:
    """Send a message and copies of descriptors. Blocks."""
    sock.sendmsg([encode(message)], descriptors(fds or []))


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """Return the next message and the descriptors that came with it, or None at the end. Blocks."""
    # recv_fds of Python 3.11 drops its flags: MSG_CMSG_CLOEXEC would not arrive.
    packet, fds, flags, _ = socket.recv_fds(sock, CONTROL_MESSAGE, MAX_DESCRIPTORS)
    for fd in fds:
        os.set_inheritable(fd, False)
    try:
        if not packet and not fds:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolFault("a control message was cut off")
        return decode(packet), fds
    except ProtocolFault:
        close(fds)
        raise
