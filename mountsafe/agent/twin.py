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


class Gone(Exception):
    """The twin has ended."""


class Twin:
    """The worker's end. One question at a time, and each must be collected by `result` or `result_into`.

    Each of the three raises Gone if the twin has ended, `begin` too.
    """

    def __init__(self, works: dict[str, Work]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._pid = os.fork()
            except BaseException:
                self._socket.close()
                raise
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
        try:
            self._socket.sendall(_LENGTH.pack(len(question)) + question)
        except ConnectionError as error:
            raise Gone from error

    def _length(self) -> int:
        head = bytearray(_LENGTH.size)
        self._receive(memoryview(head))
        length: int = _LENGTH.unpack(head)[0]
        if length < 0:
            raise Refused(errno.EIO, "the other process could not do its half")
        return length

    def _receive(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = self._socket.recv_into(buffer[done:])
            except ConnectionError as error:
                raise Gone from error
            if not count:
                raise Gone
            done += count

    def result(self) -> bytearray:
        """Return what it found. Raises Refused."""
        found = bytearray(self._length())
        self._receive(memoryview(found))
        return found

    def result_into(self, buffer: memoryview) -> int:
        """Put what it found into `buffer`; return how much it is. Raises Refused."""
        length = self._length()
        self._receive(buffer[:length])
        return length

    def end(self) -> None:
        """Let it end, and wait for that: what it has open keeps the medium in use."""
        self._socket.close()
        os.waitpid(self._pid, 0)
