"""Passes NBD between a client and QEMU's server, and keeps the two from agreeing on structured replies.

QEMU's server (7.2, nbd/server.c) ends a connection if a read of an image fails and its answer would be a structured
one, and the client, another QEMU, cannot disable them: one unreadable cluster would cost the whole disk. A simple reply
reports the error, and the connection goes on.

Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

import socket
import struct
from contextlib import suppress
from threading import Thread

GREETING = 18  # bytes from the server: NBDMAGIC, IHAVEOPT, flags
OPTION = struct.Struct(">8sII")  # IHAVEOPT, the option, bytes that follow
REPLY = struct.Struct(">QIII")  # magic, the option, the answer, bytes that follow
REPLY_MAGIC = 0x3E889045565A9
EXPORT_NAME, ABORT, GO, STRUCTURED_REPLY = 1, 2, 7, 8
LAST = (EXPORT_NAME, ABORT, GO)  # what comes after them is no option, or none that matters
ACKNOWLEDGED, FAILED = 1, 1 << 31
UNSUPPORTED = FAILED | 1
MOST = 64 << 10  # bytes of an option
PIECE = 256 << 10


class _Ended(Exception):
    """One of the two is gone, or speaks another language."""


def relay(client: socket.socket, server: socket.socket) -> None:
    """Pass on, in threads, until one of the two is gone; then close both."""
    Thread(target=_until_the_end, args=(client, server), daemon=True).start()


def _until_the_end(client: socket.socket, server: socket.socket) -> None:
    with client, server:
        try:
            _shake_hands(client, server)
        except (OSError, _Ended):
            return
        back = Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()


def _shake_hands(client: socket.socket, server: socket.socket) -> None:
    client.sendall(_exactly(server, GREETING))
    server.sendall(_exactly(client, 4))  # its flags
    while True:
        head = _exactly(client, OPTION.size)
        _, option, length = OPTION.unpack(head)
        if length > MOST:
            raise _Ended
        body = _exactly(client, length)
        if option == STRUCTURED_REPLY:
            client.sendall(REPLY.pack(REPLY_MAGIC, option, UNSUPPORTED, 0))
            continue
        server.sendall(head + body)
        if option in LAST:
            return
        _pass_replies(server, client)


def _pass_replies(server: socket.socket, client: socket.socket) -> None:
    """Pass on the answers to an option: informations, then an acknowledgement or an error."""
    while True:
        head = _exactly(server, REPLY.size)
        _, _, answer, length = REPLY.unpack(head)
        if length > MOST:
            raise _Ended
        client.sendall(head + _exactly(server, length))
        if answer == ACKNOWLEDGED or answer & FAILED:
            return


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise _Ended
        data += piece
    return data


def _copy(source: socket.socket, target: socket.socket) -> None:
    buffer = memoryview(bytearray(PIECE))
    with suppress(OSError):
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    for sock in (source, target):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # the other thread waits for one of them
