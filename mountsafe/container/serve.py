"""The container process: has QEMU's block layer open an image, and serves the disk in it by NBD. One thread, no trio.

It says {"event": "opened", "size": bytes of the disk}, or {"failed": "open"} with a "fault" (`formats.Fault`) or a
"why". After that the one request is {"do": "connect"} with a socket, which this end connects: a socket's name means
something in its maker's box alone, so none is needed outside. It ends when the parent closes the channel or QEMU ends.

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

from mountsafe import channel
from mountsafe.appliance.qmp import SANDBOX, Qmp
from mountsafe.errors import MountsafeError, ProtocolFault
from mountsafe.limits import CONTAINER_CONNECTIONS, CONTAINER_DEADLINE
from mountsafe.medium.formats import Format, fault

SOCKET = "/tmp/nbd"
MEDIUM, DISK = "medium", "disk"
WITH_BACKING = (Format.QCOW2, Format.VMDK)  # QEMU's drivers that know of a backing file
# The program that is the virtual machine, without a machine. Debian 12's qemu-storage-daemon and qemu-nbd cannot be
# handed an open file: they open a name themselves, and in a box of another user may not.
QEMU = [
    *("qemu-system-x86_64", "-machine", "none", "-accel", "tcg,tb-size=1", "-nodefaults", "-no-user-config", "-S"),
    *("-display", "none", "-sandbox", SANDBOX),
]


class Storage:
    """QEMU, and the disk that it sees in the medium behind `fd`. Raises QmpError in QEMU's words if it sees none."""

    def __init__(self, fd: int, format_: Format) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            monitor = ["-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "monitor,mode=control"]
            self.child = subprocess.Popen([*QEMU, *monitor], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self.qmp = Qmp(ours, CONTAINER_DEADLINE)
        self.qmp.execute("blockdev-add", {**self.qmp.take_medium(fd), "node-name": MEDIUM})
        node: dict[str, Any] = {"driver": format_, "node-name": DISK, "file": MEDIUM, "read-only": True}
        with no_more_descriptors(self.child.pid):
            self.qmp.execute("blockdev-add", node | ({"backing": None} if format_ in WITH_BACKING else {}))
        self._listen()

    def _listen(self) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(SOCKET)
            listening.listen()
            self.qmp.execute("getfd", {"fdname": "nbd"}, listening.fileno())
        address = {"type": "fd", "data": {"str": "nbd"}}
        self.qmp.execute("nbd-server-start", {"addr": address, "max-connections": CONTAINER_CONNECTIONS})
        self.qmp.execute("block-export-add", {"type": "nbd", "id": DISK, "node-name": DISK, "name": ""})

    def size(self) -> int:
        """The disk's size in bytes, in whole sectors: NBD serves no part of one."""
        nodes = self.qmp.execute("query-named-block-nodes", {"flat": True})
        [size] = [node["image"]["virtual-size"] for node in nodes if node["node-name"] == DISK]
        return int(size) & ~511


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


def _opened(settings: dict[str, Any], control: socket.socket) -> Storage:
    """Open the medium, and say what came of it."""
    fd, format_ = settings["medium"], Format(settings["format"])
    try:
        if why := fault(format_, lambda offset, length: os.pread(fd, length, offset), os.lseek(fd, 0, os.SEEK_END)):
            channel.send(control, {"failed": "open", "fault": why.name})
            _end(1)
        storage = Storage(fd, format_)
        channel.send(control, {"event": "opened", "size": storage.size()})
    except (MountsafeError, OSError) as error:
        channel.send(control, {"failed": "open", "why": str(error)[:1000]})
        _end(1)
    return storage


def _answer(control: socket.socket) -> bool:
    received = channel.receive(control)
    if received is None:
        return False
    message, fds = received
    what = str(message.get("do"))
    if what != "connect" or len(fds) != 1:
        raise ProtocolFault(f"unknown request {what!r} with {len(fds)} descriptors")
    try:
        with socket.socket(fileno=fds[0]) as theirs:
            theirs.connect(SOCKET)
    except OSError as error:
        channel.send(control, {"failed": what, "why": str(error)})
    else:
        channel.send(control, {"done": what})
    return True


def main() -> None:
    """Run with one argument, the settings as JSON: {control, medium, format}."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    control.set_inheritable(False)
    storage = _opened(settings, control)
    watched: list[Any] = [control, storage.qmp]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if storage.qmp in ready and not storage.qmp.drain():
            code = storage.child.wait()
            sys.stderr.write(f"QEMU ended {f'by signal {-code}' if code < 0 else f'with code {code}'}\n")
            _end(1)
        if control in ready and not _answer(control):
            _end(0)
