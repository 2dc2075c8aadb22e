"""The appliance process: boots the VM and does what its parent asks over a control channel. One thread, no trio.

Requests: {"do": "attach", "model": ...} with the medium's descriptor, {"do": "stream"} with a socket, {"do": "detach"}.
Answers: {"event": "launched"}, {"done": ...}, {"failed": ..., "why": ...}. It ends when the parent closes the channel,
when QEMU is gone, or by a signal from outside.
"""

import json
import os
import select
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

from mountsafe import channel, landlock
from mountsafe.appliance.guest import Guest
from mountsafe.errors import GuestGone, MountsafeError, ProtocolFault
from mountsafe.sandbox import DEVICES, WRITABLE


def _end(code: int) -> NoReturn:
    # No finalisation: libguestfs's handle may be in the middle of a call, and the namespace's end kills QEMU anyway.
    sys.stderr.flush()
    os._exit(code)


def _say_how_it_ended(guest: Guest) -> None:
    """Log how QEMU ended, and its last words: it is our child, and nobody else is told."""
    while guest.pass_console_on():
        pass
    with suppress(ChildProcessError):
        _, status = os.waitpid(-1, 0)
        code = os.waitstatus_to_exitcode(status)
        sys.stderr.write(f"QEMU ended {f'by signal {-code}' if code < 0 else f'with code {code}'}\n")


def _do(guest: Guest, message: channel.Message, fds: list[int]) -> None:
    what, model = str(message.get("do")), str(message.get("model", ""))
    if what == "detach" and not fds:
        guest.detach()
    elif what == "attach" and len(fds) == 1:
        part = message.get("offset", 0), message.get("size")
        guest.attach(fds[0], model, *part, writable=message.get("writable") is True)
    elif what == "stream" and len(fds) == 1:
        guest.open_stream(fds[0])
    else:
        raise ProtocolFault(f"unknown request {what!r} with {len(fds)} descriptors")


def _answer(guest: Guest, control: socket.socket) -> bool:
    received = channel.receive(control)
    if received is None:
        return False
    message, fds = received
    what = str(message.get("do"))
    try:
        _do(guest, message, fds)
    except GuestGone:
        return False
    except (MountsafeError, OSError) as error:
        channel.send(control, {"failed": what, "why": str(error)})
    else:
        channel.send(control, {"done": what})
    finally:
        for fd in fds:
            os.close(fd)
    return True


def main() -> None:
    """Run with one argument: the settings as JSON, {control, appliance, memory_mib, accelerator, verbose, thaws}."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    control.set_inheritable(False)
    landlock.write_only_in(WRITABLE, [DEVICES])
    told = (settings[name] for name in ("appliance", "memory_mib", "accelerator", "verbose", "thaws"))
    guest = Guest(*told)
    try:
        guest.launch()
    except (RuntimeError, MountsafeError, OSError) as error:  # libguestfs's words, or QEMU ended when it had launched
        channel.send(control, {"failed": "launch", "why": str(error).partition("\n")[0]})
        _end(1)
    assert guest.qmp is not None
    channel.send(control, {"event": "launched"})
    watched: list[Any] = [control, guest.qmp, guest.console]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if guest.qmp in ready and not guest.qmp.drain():
            _say_how_it_ended(guest)
            _end(1)
        if control in ready and not _answer(guest, control):
            _end(0)
        if guest.console in ready and not guest.pass_console_on():
            watched.remove(guest.console)
