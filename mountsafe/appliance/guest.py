"""The appliance VM through libguestfs: the only module that imports `guestfs`.

libguestfs is C that calls back into Python and blocks, so the process that imports this has one thread and is ended
from outside, never finalised while a call is pending. The medium is not a drive of libguestfs: QEMU takes it as a
descriptor, read-only, when the VM already runs, so no writable overlay is made and a warm VM can serve any medium.
"""

import os
import select
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import guestfs

from mountsafe.appliance import hardware, thaw
from mountsafe.appliance.qmp import MEDIUM_SET, SANDBOX, Qmp, QmpError
from mountsafe.errors import DeadlinePassed, GuestGone, ProtocolFault
from mountsafe.limits import ATTACH_DEADLINE, REMOVED_PORTS, REQUEST_DEADLINE

QMP_SOCKET = "/tmp/qmp"
CACHE = "/var/tmp/guestfs"
MEDIUM = "medium"
CONSOLE_BYTES = 65536
PORTS = 29  # for streams: QEMU's device has 31, the console's and the daemon's among them


class Guest:
    """One VM. `launch` first; then `attach` a medium and `open_stream` as often as needed.

    `thaws`: it starts from its saved state.
    """

    def __init__(self, appliance: str, memory_mib: int, accelerator: str, verbose: bool, thaws: bool) -> None:
        self._appliance = Path(appliance)
        self._memory_mib = memory_mib
        self._accelerator = accelerator
        self._verbose = verbose
        self._thaws = thaws
        self._streams = 0
        self._ports: set[str] = set()  # of streams
        self._opened: set[str] = set()  # ports that have a worker, or had one
        self._closed: set[str] = set()  # ports that their worker has closed
        self._ended: set[str] = set()  # streams without a port, whose host end QEMU may still hold
        self.qmp: Qmp | None = None
        self.console: socket.socket | None = None
        self._prepare_cache(self._appliance)

    def _handle(self) -> guestfs.GuestFS:
        handle = guestfs.GuestFS(python_return_dict=True, close_on_exit=False)
        handle.set_backend("direct")
        handle.set_backend_settings(["force_tcg" if self._accelerator == "tcg" else "force_kvm"])
        handle.set_recovery_proc(False)
        handle.set_autosync(False)
        handle.set_memsize(self._memory_mib)
        handle.set_smp(hardware.PROCESSORS)
        handle.set_append(hardware.KERNEL_OPTIONS)
        handle.set_path(str(self._appliance))
        handle.set_verbose(self._verbose)
        handle.set_event_callback(self._console, guestfs.EVENT_APPLIANCE | guestfs.EVENT_LIBRARY)
        for option, value in hardware.options(self._accelerator):
            handle.config(option, value)
        handle.config("-sandbox", SANDBOX)
        handle.config("-qmp", f"unix:{QMP_SOCKET},server=on,wait=off")
        handle.add_drive_opts("/dev/null", format="raw", readonly=True)  # it refuses to start without any
        return handle

    @staticmethod
    def _prepare_cache(appliance: Path) -> None:
        """Give libguestfs what it would otherwise ask QEMU by running it several times."""
        os.environ["LIBGUESTFS_CACHEDIR"] = CACHE
        os.makedirs(CACHE, exist_ok=True)
        saved = appliance / "qemu-cache"
        if saved.is_dir():
            ours = Path(f"{CACHE}/.guestfs-{os.geteuid()}")
            ours.mkdir(mode=0o755, exist_ok=True)
            for file in saved.iterdir():
                shutil.copyfile(file, ours / file.name)  # contents alone: a box may set no modes and times

    @staticmethod
    def _console(event: int, handle: int, buffer: str | bytes, numbers: list[int]) -> None:
        """Pass on what libguestfs tells: as text in Debian 12, as bytes since 1.51."""
        sys.stderr.buffer.write(buffer.encode(errors="replace") if isinstance(buffer, str) else buffer)
        sys.stderr.flush()

    def launch(self) -> None:
        """Boot the VM, or start it from its saved state; returns when its daemon answers.

        Raises RuntimeError in libguestfs's words. This waits for ever for a VM that never comes to life.
        """
        self._running = self._handle()
        if self._thaws:
            self._thaw()
        else:
            self._running.launch()
        self.qmp = Qmp.connected(QMP_SOCKET, ATTACH_DEADLINE)
        self.console = _console_end()

    def _thaw(self) -> None:
        self._running.config(*thaw.INCOMING)
        sender = thaw.begin(thaw.state(self._appliance, self._accelerator), QMP_SOCKET)
        try:
            self._running.launch()
        except RuntimeError:
            os.kill(sender, signal.SIGKILL)  # it may still wait for a QEMU that has ended
            raise
        finally:
            os.waitpid(sender, 0)

    def pass_console_on(self) -> bool:
        """Say what the guest's console said; False if nothing will come any more.

        libguestfs reads it only while one of its functions runs, and none does after `launch`. Some 300 writes later
        QEMU would wait for a reader, and a kernel that complains about a damaged medium would wait for QEMU.
        """
        assert self.console is not None
        try:
            data = self.console.recv(CONSOLE_BYTES)
        except OSError:
            return False
        sys.stderr.buffer.write(data)
        sys.stderr.flush()
        return bool(data)

    def attach(
        self, fd: int, model: str = "", offset: int = 0, size: int | None = None, writable: bool = False
    ) -> None:
        """Plug the medium behind `fd` into the VM, read-only. A socket leads to whoever serves it by NBD.

        `writable`: what is served there may be written to. QEMU never gets a medium itself for that.
        The VM has `size` bytes of it from `offset` on, or all up to its end: QEMU lets it read no other.
        `model` tells the agent of the medium's sectors. The disk's own are always of 512 bytes: see `agent.sectors`.
        """
        assert self.qmp is not None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self.qmp.execute("getfd", {"fdname": MEDIUM}, fd)
            source = {"driver": "nbd", "server": {"type": "fd", "str": MEDIUM}, "read-only": not writable}
        elif writable:
            raise ProtocolFault("a medium that is not served by another process cannot be written to")
        else:
            source = self.qmp.take_medium(fd)
        node: dict[str, Any] = {"driver": "raw", "node-name": MEDIUM, "read-only": not writable, "file": source}
        node |= ({"offset": offset} if offset else {}) | ({"size": size} if size is not None else {})
        self.qmp.execute("blockdev-add", node)
        place = {"bus": "scsi.0", "channel": 0, "scsi-id": 8, "lun": 0}
        named = {"product": model} if model else {}
        self.qmp.execute("device_add", {"driver": "scsi-hd", "id": MEDIUM, "drive": MEDIUM, **place, **named})

    def detach(self) -> None:
        """Unplug the medium."""
        assert self.qmp is not None
        self.qmp.execute("device_del", {"id": MEDIUM})
        self.qmp.wait_for_end_of(MEDIUM)
        self.qmp.execute("blockdev-del", {"node-name": MEDIUM})
        with suppress(QmpError):  # it came as a socket
            self.qmp.execute("remove-fd", {"fdset-id": MEDIUM_SET})

    def open_stream(self, fd: int) -> None:
        """Give the VM a new virtio-serial port whose host end is the socket `fd`; return when a worker has opened it.

        QEMU tells the guest what becomes of ports in a queue of 32 places, and drops in silence what finds none
        (send_control_msg in hw/char/virtio-serial-bus.c): the port then never appears, has no name, or counts as
        closed at our end. A new port takes four (connected, added, name, connected), a removed one and a closed host
        end one each. When a worker has a port, all was read but that port's last: so ports come one at a time.
        """
        assert self.qmp is not None
        if len(self._ports) == PORTS:
            self._wait_until(lambda: bool(self._closed))
        self.remove_ended_streams()
        self._streams += 1
        name = f"ms{self._streams}"
        self.qmp.execute("getfd", {"fdname": name}, fd)
        address = {"type": "fd", "data": {"str": name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.qmp.execute("chardev-add", {"id": name, "backend": backend})
        port = {"driver": "virtserialport", "id": name, "chardev": name, "name": f"org.mountsafe.{self._streams}"}
        self.qmp.execute("device_add", port)
        self._ports.add(name)
        self._wait_until(lambda: name in self._opened)

    def _hear_of_ports(self) -> None:
        """Note what the guest has done with ports since the last time."""
        assert self.qmp is not None
        for change in self.qmp.take("VSERPORT_CHANGE"):
            if change["id"] in self._ports:
                (self._opened if change["open"] else self._closed).add(change["id"])

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Return when what the guest has done with ports makes it so. Raises GuestGone, DeadlinePassed.

        The console is passed on meanwhile: a guest that waits for somebody to read it does nothing else.
        """
        assert self.qmp is not None
        end = time.monotonic() + REQUEST_DEADLINE
        watched: list[Any] = [self.qmp, self.console]
        self._hear_of_ports()
        while not done():
            ready, _, _ = select.select(watched, [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise DeadlinePassed(f"no answer from the virtual machine's agent in {REQUEST_DEADLINE:.0f} s")
            if self.console in ready and not self.pass_console_on():
                watched.remove(self.console)
            if self.qmp in ready and not self.qmp.drain():
                raise GuestGone("QEMU is gone")
            self._hear_of_ports()

    def remove_ended_streams(self) -> None:
        """Unplug ports whose worker has closed them, some at a time."""
        assert self.qmp is not None
        self._hear_of_ports()
        for name in sorted(self._closed)[:REMOVED_PORTS]:
            self.qmp.execute("device_del", {"id": name})
            for known in (self._ports, self._opened, self._closed):
                known.discard(name)
            self._ended.add(name)
        for name in list(self._ended):
            with suppress(QmpError):  # the port still has it: the next time then
                self.qmp.execute("chardev-remove", {"id": name})
                self._ended.remove(name)


def _console_end() -> socket.socket:
    """Return our end of the guest's console, which libguestfs keeps to itself: a stream without a name at either end.

    Its daemon's socket and QEMU's monitor have paths, and the parent's channel keeps packets apart.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found = socket.socket(fileno=os.dup(int(name)))
            ours = found.family == socket.AF_UNIX and found.type == socket.SOCK_STREAM
            if ours and not found.getsockname() and not found.getpeername():
                return found
            found.close()
    raise RuntimeError("libguestfs keeps no console")
