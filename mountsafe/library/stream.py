"""The caller's end of a stream of `mountsafe.reading`: blocking, for any number of threads, with no thread of its own.

Whoever waits for an answer reads the stream if nobody else does, and hands out what comes; so answers come as they are
ready, and nothing runs while nobody waits. The other end is counted as hostile: what breaks a rule ends the stream, and
whoever asks is told so (OSError, EIO).
"""

import errno
import itertools
import os
import select
import socket
import struct
import threading
import time
from contextlib import suppress

from mountsafe import wire
from mountsafe.limits import CALL_DEADLINE
from mountsafe.reading import Answer, Incoming, Kind

PATIENCE = CALL_DEADLINE + 30.0  # seconds: the session process answers in CALL_DEADLINE, whatever the guest does
ENDED = "the session process has ended"
# What a file system says to the kernel and not to a program, or what Python has a meaning of its own for.
_NOT_FOR_PROGRAMS = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOSYS, errno.EPIPE, errno.ECHILD})


class Stream:
    """Questions and their answers. All of it raises OSError: what was answered, EIO once the stream has ended.

    `_changed` guards `_answers` (of questions that were asked, None until there is one), `_reads` and `_why`; what is
    read belongs to the one who has set `_reads`.
    """

    def __init__(self, sock: socket.socket) -> None:
        # What is asked has a deadline too, and blocks: a far end may be stopped.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE), 0))
        self._sock = sock
        self._owner = os.getpid()
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._answers: dict[int, Answer | None] = {}
        self._unwanted: set[int] = set()
        self._closed = False
        self._reads = False
        self._incoming = Incoming()
        self._why = ""

    def ask(self, kind: int, body: bytes = b"") -> bytearray:
        """Return the body of the answer, untrusted. Raises OSError; ValueError after `close`, or a fork."""
        return self.answer(self.begin(kind, body), kind)

    def begin(self, kind: int, body: bytes = b"") -> int:
        """Ask, and return a number to get the `answer` by."""
        if os.getpid() != self._owner:
            raise ValueError("this image was opened by another process: open it again in this one")
        if self._closed:
            raise ValueError("this image is closed")
        ident = next(self._numbers) & 0xFFFFFFFF
        with self._changed:
            self._check()
            self._answers[ident] = None
        try:
            with self._sending:
                self._sock.sendall(wire.frame(ident, kind, body))
        except OSError as error:
            self.end(ENDED)
            raise self._lost() from error
        except BaseException:  # half of it may have been sent
            self.end("it was interrupted")
            raise
        return ident

    def answer(self, ident: int, kind: int) -> bytearray:
        """Wait for the answer to a question of this kind, which `begin` has asked."""
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                with self._changed:
                    if (found := self._answers.get(ident)) is not None:
                        break
                    self._check()
                    if self._reads:
                        self._changed.wait(max(0.0, deadline - time.monotonic()))
                        self._check_time(deadline)
                        continue
                    self._reads = True
                try:
                    self._read(deadline)
                finally:
                    with self._changed:
                        self._reads = False
                        self._changed.notify_all()
        finally:
            self.forget(ident)
        return self._body(found, kind)

    def forget(self, ident: int) -> None:
        """Want an answer no longer, which may be there already."""
        with self._changed:
            if self._answers.pop(ident, None) is None:
                self._unwanted.add(ident)

    def _read(self, deadline: float) -> None:
        """Read until something was answered, or what there is to read is read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self._check_time(deadline)
            return
        try:
            while (count := self._taken()) is not None:
                if (answer := self._incoming.took(count)) is not None:
                    self._deliver(answer)
                    return
        except wire.WireError as error:
            self.end(f"the session process broke the protocol ({error})")
        except BaseException:  # what was read of it may be lost
            self.end("it was interrupted")
            raise

    def _taken(self) -> int | None:
        """Return how many bytes were read; None if there are none now, or never again."""
        try:
            count = self._sock.recv_into(self._incoming.room(), 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            count = 0
        if not count:
            self.end(ENDED)
            return None
        return count

    def _deliver(self, answer: Answer) -> None:
        with self._changed:
            if answer.ident in self._unwanted:
                self._unwanted.remove(answer.ident)
            elif answer.ident in self._answers and self._answers[answer.ident] is None:
                self._answers[answer.ident] = answer
                self._changed.notify_all()
            else:
                raise wire.WireError(f"an answer to question {answer.ident}, which nobody asked")

    def _body(self, answer: Answer, kind: int) -> bytearray:
        if answer.kind == kind:
            return answer.body
        try:
            if answer.kind != Kind.ERROR:
                raise wire.WireError(f"an answer of kind {answer.kind} to a question of kind {kind}")
            untrusted_number, _ = wire.unpack_error(bytes(answer.body))
        except wire.WireError as error:
            raise self.broken(str(error)) from error
        known = untrusted_number in errno.errorcode and untrusted_number not in _NOT_FOR_PROGRAMS
        number = untrusted_number if known else errno.EIO
        raise OSError(number, os.strerror(number))

    def broken(self, how: str) -> OSError:
        """End the stream, because an answer was not what it must be; return what to raise."""
        self.end(f"the session process broke the protocol ({how})")
        return self._lost()

    def _check(self) -> None:
        if self._why:
            raise self._lost()

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            self.end(f"no answer in {PATIENCE:.0f} s")
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _lost(self) -> OSError:
        return OSError(errno.EIO, self._why)

    def end(self, why: str) -> None:
        """Ask nothing more: whoever waits is told why. The first reason stays."""
        with self._changed:
            self._why = self._why or why
            self._changed.notify_all()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # whoever reads wakes up

    def close(self) -> None:
        """End it, and let go of the socket; in a process that was forked, of its copy alone."""
        if os.getpid() == self._owner:
            self._closed = True
            self.end("it is closed")
        self._sock.close()
