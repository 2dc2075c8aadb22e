"""Talk to a supervisor that runs, on its control socket."""

import os
import select
import shlex
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress

from mountsafe import channel, codec, pieces
from mountsafe.errors import ProtocolFault, UserError
from mountsafe.session.messages import ANSWERS, Answer, Failed, Request, Verb
from mountsafe.session.runtime import RecordFault, Runtime
from mountsafe.text import shown_path

PATIENCE = 1.0  # seconds that somebody waits without a word


class NoAnswer(UserError):
    """A supervisor that lives, and does nothing."""


def ask(
    runtime: Runtime,
    request: Request,
    until_gone: bool = False,
    deadline: float | None = None,
    late: Callable[[], None] | None = None,
) -> Answer | None:
    """Ask a supervisor; `until_gone` waits for its end after the answer. None: it has ended. Raises UserError.

    `late` is called once the answer is awaited for PATIENCE.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, ExitStack() as stack:
        try:
            sock.settimeout(deadline)
            with runtime.control() as address:
                sock.connect(address)
            supervisor = _pidfd(sock)
            stack.callback(os.close, supervisor)
            channel.send(sock, codec.plain(request))
            if late is not None and not select.select([sock], [], [], PATIENCE)[0]:
                late()
            told = pieces.receive(sock)
            answer = None if told is None else ANSWERS.read(told)
            if isinstance(answer, Failed):
                raise answer.error()
            if until_gone and not select.select([supervisor], [], [], deadline)[0]:
                raise TimeoutError("it does not end")
        except (OSError, ProtocolFault) as error:
            if not runtime.alive():
                return None
            raise NoAnswer(f"no answer from the mount's supervisor: {error}", _how_to_end(runtime)) from error
    return answer


def lent(runtime: Runtime, deadline: float) -> int | None:
    """Return a descriptor of the medium, which may be a device that is held alone; None if there is none to be had."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, suppress(OSError, ProtocolFault):
        sock.settimeout(deadline)
        with runtime.control() as address:
            sock.connect(address)
        channel.send(sock, codec.plain(Request(Verb.LEND)))
        _, fds = channel.receive(sock) or ({}, [])
        return fds[0] if fds else None  # an earlier version does not lend
    return None


def _how_to_end(runtime: Runtime) -> str:
    try:
        record = runtime.read()
    except RecordFault as fault:
        return fault.hint
    if record is None:
        return ""
    force = f"mountsafe unmount --force {shlex.quote(shown_path(record.target))}"
    return f"It may be stopped: ps -fp {record.supervisor} shows it; {force} ends it."


def _pidfd(sock: socket.socket) -> int:
    """Return a descriptor of the process that listens at the other end; it is readable when that has ended."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return os.pidfd_open(pid)
