"""The container process: has QEMU's block layer open an image, and serves the disk in it by NBD. No trio.

It says {"event": "opened", "size": bytes of the disk}, or {"failed": "open"} with a "fault" (`formats.Fault`) or a
"why". After that the requests are {"do": "connect"} and {"do": "relay"} (as `relay` says) with a socket, which this end
connects: a socket's name means something in its maker's box alone, so none is needed outside. It ends when the parent
closes the channel or QEMU ends.

An image can name other files: a backing file, a data file, extents. Who names one is refused by what its header says,
before QEMU sees it. Should QEMU understand a header in another way, it still follows no name: it is told that there is
no backing file, nothing of the host but /usr is in the box, and while it reads headers it cannot have one more
descriptor, of a file or of anything else.
"""

import json
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NoReturn

from mountsafe import channel, landlock
from mountsafe.appliance.qmp import SANDBOX, Qmp
from mountsafe.container.relay import relay
from mountsafe.errors import MountsafeError, ProtocolFault
from mountsafe.limits import CONTAINER_CONNECTIONS, CONTAINER_DEADLINE
from mountsafe.medium.formats import SECTOR, Format, fault
from mountsafe.sandbox import DEVICES, WRITABLE

SOCKET, RELAYED = "/tmp/nbd", "/tmp/relayed"
MEDIUM, DISK = "medium", "disk"
WHY = 1000  # characters of QEMU's words
WITH_BACKING = (Format.QCOW2, Format.VMDK)  # QEMU's drivers that know of a backing file
# The program that is the virtual machine, without a machine. Debian 12's qemu-storage-daemon and qemu-nbd cannot be
# handed an open file: they open a name themselves, and in a box of another user may not.
QEMU = [
    *("qemu-system-x86_64", "-machine", "none", "-accel", "tcg,tb-size=1", "-nodefaults", "-no-user-config", "-S"),
    *("-display", "none", "-sandbox", SANDBOX),
]


def start() -> tuple["subprocess.Popen[bytes]", Qmp]:
    """Start QEMU; return it and its monitor."""
    ours, theirs = socket.socketpair()
    with theirs:
        monitor = ["-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "monitor,mode=control"]
        child = subprocess.Popen([*QEMU, *monitor], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    return child, Qmp(ours, CONTAINER_DEADLINE)


def open_disk(qemu: int, qmp: Qmp, fd: int, format_: Format) -> int:
    """Open the image behind `fd`; return the size of the disk in it, in bytes.

    `qemu`: the process. Raises QmpError in QEMU's words.
    """
    qmp.execute("blockdev-add", {**qmp.take_medium(fd), "node-name": MEDIUM})
    node: dict[str, Any] = {"driver": format_, "node-name": DISK, "file": MEDIUM, "read-only": True}
    with no_more_descriptors(qemu):
        qmp.execute("blockdev-add", node | ({"backing": None} if format_ in WITH_BACKING else {}))
    nodes = qmp.execute("query-named-block-nodes", {"flat": True})
    [size] = [node["image"]["virtual-size"] for node in nodes if node["node-name"] == DISK]
    return int(size) // SECTOR * SECTOR  # NBD serves no part of one


def serve_disk(qmp: Qmp, name: str) -> None:
    """Serve the disk by NBD, on a socket that gets this name."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        qmp.execute("getfd", {"fdname": "nbd"}, listening.fileno())
    address = {"type": "fd", "data": {"str": "nbd"}}
    qmp.execute("nbd-server-start", {"addr": address, "max-connections": CONTAINER_CONNECTIONS})
    qmp.execute("block-export-add", {"type": "nbd", "id": DISK, "node-name": DISK, "name": ""})


class Refused(MountsafeError):
    """The header says why the image is not to be opened: the name of a `formats.Fault`."""


@contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """Let a process have no descriptor but those that it has: the kernel gives out the lowest that is free."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = next(number for number in count() if number not in taken)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)  # the end of the box ends QEMU


def _open(settings: dict[str, Any]) -> tuple["subprocess.Popen[bytes]", Qmp, channel.Message]:
    """Open the medium; return QEMU, its monitor, and what to say of it. Raises Refused."""
    fd, format_ = settings["medium"], Format(settings["format"])
    why = fault(format_, lambda offset, length: os.pread(fd, length, offset), os.lseek(fd, 0, os.SEEK_END))
    if why is not None:
        raise Refused(why.name)
    child, qmp = start()
    size = open_disk(child.pid, qmp, fd, format_)
    serve_disk(qmp, SOCKET)
    return child, qmp, {"event": "opened", "size": size}


def _answer(control: socket.socket, relayed: socket.socket) -> bool:
    received = channel.receive(control)
    if received is None:
        return False
    message, fds = received
    what = str(message.get("do"))
    if what not in ("connect", "relay") or len(fds) != 1:
        raise ProtocolFault(f"unknown request {what!r} with {len(fds)} descriptors")
    try:
        with socket.socket(fileno=fds[0]) as theirs:
            if what == "connect":
                theirs.connect(SOCKET)
            else:
                _relay(theirs, relayed)
    except OSError as error:
        channel.send(control, {"failed": what, "why": str(error)})
    else:
        channel.send(control, {"done": what})
    return True


def _relay(theirs: socket.socket, relayed: socket.socket) -> None:
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(SOCKET)
        theirs.connect(RELAYED)
        client, _ = relayed.accept()
    except BaseException:
        server.close()
        raise
    relay(client, server)


def main() -> None:
    """Run with one argument, the settings as JSON: {control, medium, format}."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    control.set_inheritable(False)
    landlock.write_only_in(WRITABLE, [DEVICES])
    try:
        qemu, qmp, said = _open(settings)
    except Refused as refused:
        channel.send(control, {"failed": "open", "fault": str(refused)})
        _end(1)
    except (MountsafeError, OSError) as error:
        channel.send(control, {"failed": "open", "why": str(error)[:WHY]})
        _end(1)
    relayed = socket.socket(socket.AF_UNIX)
    relayed.bind(RELAYED)
    relayed.listen()
    channel.send(control, said)
    watched: list[Any] = [control, qmp]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if qmp in ready and not qmp.drain():
            code = qemu.wait()
            sys.stderr.write(f"QEMU ended {f'by signal {-code}' if code < 0 else f'with code {code}'}\n")
            _end(1)
        if control in ready and not _answer(control, relayed):
            _end(0)
