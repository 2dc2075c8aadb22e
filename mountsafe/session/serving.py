"""How a session process serves a file system that is open: over FUSE, or over a stream."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from mountsafe.filesystem.opened import FileSystem
from mountsafe.filesystem.streaming import Streaming
from mountsafe.session.conversation import Assignment, Connection

Changed = Callable[[FileSystem, Any], Any]
Started = Callable[[], Awaitable[None]]  # called when questions can come


@dataclass(frozen=True, slots=True)
class Server:
    """`release` as in `filesystem.index.Index`; `serve` returns when nobody asks any more.

    It gets what was assigned and given to the process, and the descriptor that came along; and what makes the handlers
    of a file system that may be changed of it and its view.
    """

    release: Callable[[int, bytes], None]
    serve: Callable[[FileSystem, Assignment, Connection, int, Changed | None, Started], Awaitable[None]]


def server_of(fuse: bool) -> Server:
    """Return how it is served. To be called while modules can be imported: libfuse is for who needs it."""
    if fuse:
        from mountsafe.session.mounted import SERVER

        return SERVER
    return Server(lambda parent, name: None, _serve_stream)


async def _serve_stream(
    opened: FileSystem, assigned: Assignment, given: Connection, fd: int, changed: Changed | None, started: Started
) -> None:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))
    await started()
    await Streaming(opened, stream).serve()
