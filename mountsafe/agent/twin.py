"""A second process that does half of a worker's work, on the guest's other processor.

It is forked from a worker that has mounted the medium, so it has the same files open. The worker alone talks to the
host: it gives half of a large question to the twin, answers the other half itself, and puts them together.
"""

import errno
import marshal
import os
import socket
import struct
from collections.abc import Callable

from mountsafe.agent.programs import Refused

_LENGTH = struct.Struct(">i")  # of what follows; -1 says that it failed
_FAILED = _LENGTH.pack(-1)
Work = Callable[..., "bytes | memoryview"]


class Twin:
    """The worker's end. One question at a time, and each must be collected by `result` or `result_into`."""

    def __init__(self, works: dict[str, Work]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._pid = os.fork()
            if not self._pid:
                self._live(theirs, works)

    def _live(self, theirs: socket.socket, works: dict[str, Work]) -> None:
        """In the new process: work until the worker is gone."""
        try:
            self._socket.close()
            while head := theirs.recv(_LENGTH.size, socket.MSG_WAITALL):
                what, arguments = marshal.loads(theirs.recv(_LENGTH.unpack(head)[0], socket.MSG_WAITALL))
                try:
                    found = works[what](*arguments)
                except Exception:  # noqa: BLE001  # the worker meets the same in its own half, or says that it failed
                    theirs.sendall(_FAILED)
                else:
                    theirs.sendall(_LENGTH.pack(len(found)))
                    theirs.sendall(found)
        finally:
            os._exit(0)

    def begin(self, what: str, *arguments: bytes | int | list[bytes]) -> None:
        """Let it call one of its `works`."""
        question = marshal.dumps((what, arguments))
        self._socket.sendall(_LENGTH.pack(len(question)) + question)

    def _length(self) -> int:
        head = self._socket.recv(_LENGTH.size, socket.MSG_WAITALL)
        length: int = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else -1
        if length < 0:
            raise Refused(errno.EIO, "the other process could not do its half")
        return length

    def result(self) -> bytes:
        """Return what it found. Raises Refused."""
        return self._socket.recv(self._length(), socket.MSG_WAITALL)

    def result_into(self, buffer: memoryview) -> int:
        """Put what it found into `buffer`; return how much it is. Raises Refused."""
        length = self._length()
        done = 0
        while done < length and (count := self._socket.recv_into(buffer[done:length])):
            done += count
        return done

    def end(self) -> None:
        """Let it end, and wait for that: what it has open keeps the medium in use."""
        self._socket.close()
        os.waitpid(self._pid, 0)
