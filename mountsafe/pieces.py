"""Messages that may be longer than a packet: what a supervisor says of its mounts, whose paths may be long and many.

A message that fits is one packet, as `channel` has it; a longer one goes in pieces, each after a byte that says whether
more follow. A JSON object begins with neither.
"""

import json
import os
import socket
from collections.abc import Iterator

from mountsafe import channel
from mountsafe.errors import ProtocolFault
from mountsafe.limits import CONTROL_MESSAGE, CONTROL_WHOLE

_MORE, _LAST = b"+", b"."


def split(message: channel.Message) -> list[bytes]:
    """Return the packets of a message. Raises ValueError if it is longer than anything that is said."""
    whole = json.dumps(message).encode()
    if len(whole) <= CONTROL_MESSAGE:
        return [whole]
    if len(whole) > CONTROL_WHOLE:
        raise ValueError(f"a message of {len(whole)} bytes")
    size = CONTROL_MESSAGE - 1
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    return [_MORE + part for part in parts[:-1]] + [_LAST + parts[-1]]


def send(sock: socket.socket, message: channel.Message) -> None:
    """Send a message. Blocks. Raises OSError; ValueError, and nothing is sent, as `split` does."""
    for packet in split(message):
        sock.sendall(packet)


def receive(sock: socket.socket, fds: list[int] | None = None) -> channel.Message | None:
    """Return the next message, None at the end. Blocks. Raises OSError, ProtocolFault.

    Descriptors that come along are added to `fds`, which are then the caller's whatever is raised; without it none is
    taken.
    """
    joined = bytearray()
    for packet in _packets(sock, fds):
        kind, rest = packet[:1], packet[1:]
        if not joined and kind not in (_MORE, _LAST):
            return channel.decode(packet)
        joined += rest
        if kind not in (_MORE, _LAST) or not rest or len(joined) > CONTROL_WHOLE:
            raise ProtocolFault("a message whose pieces do not fit")
        if kind == _LAST:
            return channel.decode(bytes(joined))
    if joined:
        raise ProtocolFault("a message without its end")
    return None


def _packets(sock: socket.socket, fds: list[int] | None) -> Iterator[bytes]:
    while packet := sock.recv(CONTROL_MESSAGE + 1) if fds is None else _packet(sock, fds):
        if len(packet) > CONTROL_MESSAGE:
            raise ProtocolFault("a packet that was cut off")
        yield packet


def _packet(sock: socket.socket, fds: list[int]) -> bytes:
    packet, came, _, _ = socket.recv_fds(sock, CONTROL_MESSAGE + 1, channel.MAX_DESCRIPTORS)
    for fd in came:
        os.set_inheritable(fd, False)
    fds += came
    return packet
