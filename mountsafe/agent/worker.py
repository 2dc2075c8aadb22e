"""Answer one stream; and the main process, which starts a worker for each."""

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from mountsafe import changes, wire
from mountsafe.agent import localtimes
from mountsafe.agent.amended import Amended
from mountsafe.agent.changing import Changing
from mountsafe.agent.fsck import check
from mountsafe.agent.localtimes import LocalTimes
from mountsafe.agent.mounting import CowLayer, Target, mount_medium
from mountsafe.agent.patched import Patched
from mountsafe.agent.programs import Refused, read_text, run
from mountsafe.agent.receiving import Receiver
from mountsafe.agent.tree import Tree
from mountsafe.agent.volumes import device_of, find_medium, probe
from mountsafe.agent.writable import mount_writable

PORT_PREFIX = "org.mountsafe."
READ_ONLY = "it is mounted to be read"


class Worker:
    """Answers the requests of one stream."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._where = f"/run/mountsafe/fs-{tag}"
        self._mounted: Tree | None = None
        self._changing: Changing | None = None  # if it is mounted to be changed
        self._ended = False  # by UNMOUNT
        self._target: Target | None = None
        self._read_frame = memoryview(bytearray(wire.HEADER.size + wire.MAX_READ))
        self._answers: dict[int, Callable[[bytes], bytes]] = {
            wire.Kind.HELLO: self._hello,
            wire.Kind.PROBE: lambda _: wire.pack_volumes(probe()),
            wire.Kind.MOUNT: self._mount,
            wire.Kind.CHECK: self._check,
            wire.Kind.LIST: lambda body: self._tree.list_page(*wire.unpack_list(body)),
            wire.Kind.EXTENTS: lambda body: self._tree.extents(*wire.unpack_extents_request(body)),
            wire.Kind.LAYOUT: lambda body: self._tree.layout(*wire.unpack_layout_request(body)),
            wire.Kind.XATTRS: lambda body: self._tree.xattrs(body),
            wire.Kind.STATFS: lambda _: self._tree.statfs(),
            wire.Kind.CHANGE: lambda body: self._changed.change(body),
            wire.Kind.WRITE: lambda body: self._changed.write(body),
            wire.Kind.SYNC: lambda _: self._changed.sync(),
            wire.Kind.BATCH: self._batch,
            wire.Kind.UNMOUNT: lambda _: self._unmount(),
        }

    @property
    def _tree(self) -> Tree:
        if self._mounted is None:
            raise Refused(errno.ENOTCONN, "nothing is mounted")
        return self._mounted

    @property
    def _changed(self) -> Changing:
        if self._changing is None:
            raise Refused(errno.EROFS, READ_ONLY)
        return self._changing

    def _require_turn(self, kind: int) -> None:
        if self._ended and kind != wire.Kind.UNMOUNT:
            raise Refused(errno.ENOTCONN, "it is unmounted")
        if self._mounted is None and (kind in wire.AFTER_MOUNT or kind in wire.CHANGING):
            raise Refused(errno.ENOTCONN, "nothing is mounted")
        if kind in wire.CHANGING and self._changing is None:
            raise Refused(errno.EROFS, READ_ONLY)
        if kind in wire.BEFORE_MOUNT and self._mounted is not None:
            raise Refused(errno.EISCONN, "it is mounted already")

    def _hello(self, body: bytes) -> bytes:
        # A VM that was started from a saved state thinks that it is still then.
        localtimes.set_clock(wire.unpack_hello_request(body))
        return wire.pack_hello(wire.VERSION, os.uname().release.encode())

    def _mount(self, body: bytes) -> bytes:
        request = wire.unpack_mount(body)
        device, placed = _only_disk() if request.writable else device_of(os.fsdecode(request.device))
        layers = (CowLayer(device, self._tag), Patched(self._tag))
        options = tuple(map(os.fsdecode, request.options))
        self._target = Target(device, request.fstype, self._where, *layers, options=options)
        mount = mount_writable(self._target, request.again) if request.writable else mount_medium(self._target)
        times = LocalTimes(request.zone, f"/run/mountsafe/zone-{self._tag}")
        amended = Amended(mount.fstype, self._target.layer.device, times)
        tree = Tree(self._where, mount.fstype, not placed, mount.changed, device, amended)
        if request.writable:
            if mount.fstype in localtimes.STAMPED:
                localtimes.set_clock_ahead(times)
            os.umask(0)
            self._changing = Changing(tree, amended, mount.fstype, self._where, device)
        else:
            tree.share_work()
        self._mounted = tree
        told = wire.Mounted(mount.fstype.encode(), mount.state, tree.direct, tree.root(), mount.resorts)
        return wire.pack_mounted(told)

    def _check(self, body: bytes) -> bytes:
        device, fstype, seconds, repair = wire.unpack_check(body)
        path, _ = _only_disk() if repair else device_of(os.fsdecode(device))
        return wire.pack_checked(check(path, fstype, seconds, repair, CowLayer(path, f"check-{self._tag}")))

    def _unmount(self) -> bytes:
        """Unmount what was changed. Even if that fails there is nothing any more that could be asked."""
        self._ended = True
        answer = self._changed.unmount()
        self._target = None
        return answer

    def close(self) -> None:
        """Let go of the medium, so that it can be unplugged from the VM."""
        if self._changing is not None:
            self._changing.close()
        elif self._mounted is not None:
            self._mounted.close()
        if self._target is not None:
            run("umount", "-n", "-l", self._where)
            self._target.layer.stop()
            self._target.patched.stop()

    def _read(self, request: wire.Frame) -> memoryview:
        """Return the frame with a file's bytes. It is valid until the next one: fresh memory for each would cost more
        than reading does.
        """
        head = wire.HEADER.size
        if request.kind == wire.Kind.READ:
            path, offset, length = wire.unpack_read(request.body)
            count = self._tree.read_into(path, offset, self._read_frame[head : head + length])
        else:
            number, offset, length = changes.unpack_read(request.body)
            count = self._changed.read_into(number, offset, self._read_frame[head : head + length])
        wire.HEADER.pack_into(self._read_frame, 0, count, request.ident, request.kind)
        return self._read_frame[: head + count]

    def answer(self, request: wire.Frame) -> bytes | memoryview:
        """Return the frame that answers `request`; a failure becomes an ERROR frame."""
        try:
            self._require_turn(request.kind)
            if request.kind in (wire.Kind.READ, wire.Kind.HANDLE_READ):
                return self._read(request)
            if (handler := self._answers.get(request.kind)) is None:
                raise Refused(errno.ENOSYS, f"unknown request {request.kind}")
            return wire.frame(request.ident, request.kind, handler(request.body))
        except Exception as error:  # noqa: BLE001  # a bug here must not end the stream: the host is told, and decides
            return wire.frame(request.ident, wire.Kind.ERROR, wire.pack_error(*_refusal(error)))

    def _batch(self, body: bytes) -> bytes:
        results = []
        for kind, question in changes.unpack_batch(body):
            try:
                results.append(changes.Result(0, self._answers[kind](question)))
            except Exception as error:  # noqa: BLE001  # as in `answer`
                number, words = _refusal(error)
                results.append(changes.Result(number, words[: wire.MAX_MESSAGE]))
        return changes.pack_results(results)

    def serve(self, fd: int) -> None:
        """Answer requests until the host closes the stream."""
        receiver = Receiver(fd)
        patience = time.monotonic() + 5.0
        while True:
            request = receiver.next()
            if request is None:
                # Until the host's end is announced to the guest, a virtio port reads as closed.
                if receiver.spoken or time.monotonic() > patience:
                    return
                time.sleep(0.002)
                continue
            view = memoryview(self.answer(request))
            while view:
                view = view[os.write(fd, view) :]
            # What is made ahead may be old when it is asked for.
            idle = not receiver.waiting and not select.select([fd], [], [], 0)[0]
            if idle and self._mounted is not None and self._changing is None:
                self._mounted.work_ahead()


def _only_disk() -> tuple[str, bool]:
    """Return what `device_of` does in a virtual machine that may write: it has one disk, whatever the host calls it."""
    return f"/dev/{find_medium()}", True


def _refusal(error: Exception) -> tuple[int, bytes]:
    """Return the errno and the words of a failure."""
    if isinstance(error, Refused):
        return error.errno, error.message.encode("utf-8", "replace")
    if isinstance(error, OSError):
        return error.errno or errno.EIO, (error.strerror or "").encode("utf-8", "replace")
    return errno.EIO, repr(error).encode("utf-8", "replace")


def ports() -> dict[str, str]:
    """Return the device of each of our ports by its name."""
    found = {}
    for device in os.listdir("/sys/class/virtio-ports"):
        name = read_text(f"/sys/class/virtio-ports/{device}/name")
        if name.startswith(PORT_PREFIX):
            found[name] = device
    return found


def start_worker(name: str, device: str) -> None:
    """Fork a worker for a port."""
    if os.fork():
        return
    code = 1
    try:
        fd = os.open(f"/dev/{device}", os.O_RDWR | os.O_CLOEXEC)
        worker = Worker(name.removeprefix(PORT_PREFIX))
        worker.serve(fd)
        worker.close()
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """Start a worker for every port, as the kernel announces them."""
    os.makedirs("/run/mountsafe", exist_ok=True)
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 15)  # NETLINK_KOBJECT_UEVENT
    events.bind((0, 1))
    served: dict[str, str] = {}
    while True:
        current = ports() if os.path.isdir("/sys/class/virtio-ports") else {}
        served = {name: device for name, device in served.items() if name in current}
        for name, device in current.items():
            if name not in served and os.path.exists(f"/dev/{device}"):
                served[name] = device
                start_worker(name, device)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        with suppress(OSError):  # ENOBUFS: events were lost, and the next turn looks at everything anyway
            events.recv(65536)
