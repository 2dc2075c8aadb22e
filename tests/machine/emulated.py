"""A whole machine in QEMU, whose emulated processor has AMD's virtualisation: KVM works in it where it does not here.

It is driven from outside: sticks are plugged and pulled by QMP, and commands go over two virtio ports, one to root and
one to the user who sits at the machine. Everything has a deadline.
"""

import base64
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from mountsafe.appliance.features import MORTAL
from mountsafe.appliance.qmp import Qmp, QmpError
from tests.done import Done
from tests.machine.base import PORT, USER

QEMU = "qemu-system-x86_64"
BOOT_DEADLINE = 480.0
DEADLINE = 180.0
GRACE = 20.0  # how much later than the command's own deadline its answer may come
KERNEL_LINE = "root=/dev/vda rw console=tty0 console=ttyS0 quiet mitigations=off random.trust_cpu=on"


class FrozenError(Exception):
    """The emulated machine has stopped: no command of root's, however small, is answered."""


class Port:
    """The way to one of the agents."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._rest = b""
        self._id = 0

    def close(self) -> None:
        self._socket.close()

    def message(self, seconds: float) -> dict[str, Any]:
        """Return the next thing that the agent says. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("QEMU is gone")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        told: dict[str, Any] = json.loads(line)
        return told

    def ask(self, argv: tuple[str, ...], data: bytes, seconds: float) -> Done:
        self._id += 1
        question = {"id": self._id, "argv": argv, "input": base64.b64encode(data).decode(), "seconds": seconds}
        self._socket.settimeout(seconds + GRACE)
        self._socket.sendall(json.dumps(question).encode() + b"\n")
        while (told := self.message(seconds + GRACE)).get("id") != self._id:
            pass
        out, err = (base64.b64decode(told[key]).decode(errors="replace") for key in ("out", "err"))
        return Done(argv, told["code"], out, err)


class Machine:
    """A running machine. `say` tells the person how long each step took."""

    def __init__(self, base: Path, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self._boots: set[str] = set()
        self._connections = ExitStack()
        self._qemu = subprocess.Popen(
            self._command(base), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        try:
            self._qmp = self._connections.enter_context(closing(Qmp.connected(str(self._socket("qmp")), DEADLINE)))
            self._root = self._connections.enter_context(closing(Port(self._socket("root"))))
            self._user = self._connections.enter_context(closing(Port(self._socket(USER))))
        except BaseException:
            self.end()
            raise

    def _command(self, base: Path) -> list[str]:
        ports = []
        for name in ("root", USER):
            ports += ["-chardev", f"socket,id={name},path={self.folder / name},server=on,wait=off"]
            ports += ["-device", f"virtserialport,chardev={name},name={PORT}.{name}"]
        return [
            *(*MORTAL, QEMU, "-nodefaults", "-display", "none", "-nic", "none"),
            # One processor. Linux changes its own code while it runs (static keys: KVM's change whenever a virtual
            # machine starts), with an INT3 in the place of what is being changed. With two, QEMU 7.2 can keep the
            # translation of an INT3 that is gone again, and who meets that stays there for ever.
            *("-machine", "q35,accel=tcg", "-cpu", "EPYC,+svm,+npt", "-smp", "1", "-m", "4096"),
            *("-kernel", str(base / "vmlinuz"), "-initrd", str(base / "initrd.img"), "-append", KERNEL_LINE),
            # The disk is never written: what the machine writes goes to a file that is gone with it.
            *("-drive", f"if=virtio,format=raw,snapshot=on,cache=unsafe,file={base / 'disk.img'}"),
            *("-device", "qemu-xhci,id=xhci", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *ports,
            *("-serial", f"file:{self.folder / 'console'}"),
            *("-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"),
        ]

    def _socket(self, name: str) -> Path:
        path = self.folder / name
        end = time.monotonic() + DEADLINE
        while not path.exists():
            assert self._qemu.poll() is None, f"QEMU ended with {self._qemu.returncode}"
            assert time.monotonic() < end, "QEMU does not start"
            time.sleep(0.05)
        return path

    def end(self) -> None:
        """Pull the machine's own plug."""
        self._connections.close()
        self._qemu.kill()
        self._qemu.wait()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.tell(what, time.monotonic() - started)

    def tell(self, what: str, seconds: float) -> None:
        self.say(f"  {what:<58}{seconds:6.1f} s")

    # --- commands ----------------------------------------------------------------------------------------------------
    def run(self, *argv: str, user: bool = False, data: bytes = b"", seconds: float = DEADLINE) -> Done:
        """Run a command as root, or as the user in his session. Raises TimeoutError, or FrozenError if all hangs."""
        try:
            return (self._user if user else self._root).ask(argv, data, seconds)
        except TimeoutError:
            try:
                self._root.ask(("true",), b"", DEADLINE)
            except TimeoutError:
                registers = self._qmp.execute("human-monitor-command", {"command-line": "info registers -a"})
                where = [line for line in registers.splitlines() if line.startswith(("CPU#", "RIP="))]
                raise FrozenError("\n".join((f"no answer to {argv}, nor to `true`", *where))) from None
            raise

    def sh(self, script: str, user: bool = False, seconds: float = DEADLINE) -> str:
        """Run a shell script that is expected to succeed, and return what it prints."""
        return self.run("bash", "-c", f"set -e -o pipefail; {script}", user=user, seconds=seconds).ok().out

    def wait_for_boot(self) -> None:
        """Return when root's and the user's agents of a boot that was not seen yet are there, and systemd is done."""
        end = time.monotonic() + BOOT_DEADLINE
        seen = set(self._boots)
        for port in (self._root, self._user):
            while (boot := port.message(max(1.0, end - time.monotonic())).get("boot")) is None or boot in seen:
                pass
            self._boots.add(boot)
        self.run("systemctl", "is-system-running", "--wait", seconds=BOOT_DEADLINE)

    def reboot(self) -> None:
        self.run("systemctl", "--no-block", "reboot")
        self.wait_for_boot()

    def sleep(self, seconds: float) -> None:
        """Suspend it to memory (S3), as closing a lid does, and wake it again."""
        # A moment later, so that the command is answered before.
        self.sh("echo deep >/sys/power/mem_sleep; (sleep 1; echo mem >/sys/power/state) >/dev/null 2>&1 &")
        self.wait_for(lambda: self._qmp.execute("query-status")["status"] == "suspended", "its sleep")
        time.sleep(seconds)
        self._qmp.execute("system_wakeup")

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> float:
        """Return after how many seconds a condition held."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() < started + seconds, f"{what} did not come within {seconds:.0f} s"
            time.sleep(0.2)
        return time.monotonic() - started

    def report(self) -> str:
        """The last words of the journal and of the console: why something failed."""
        console = (self.folder / "console").read_text(errors="replace")[-2000:]
        try:
            journal = self.run("journalctl", "--no-pager", "--lines=60", "--output=short-monotonic", seconds=30).out
        except (OSError, AssertionError, FrozenError) as error:
            journal = f"(no answer: {error})"
        return f"--- journal\n{journal}\n--- console\n{console}"

    # --- sticks ------------------------------------------------------------------------------------------------------
    def plug(self, name: str, image: Path, removable: bool = True) -> None:
        """Plug a stick with this content in; one that is not `removable` is a USB disk."""
        file = {"driver": "file", "filename": str(image)}
        self._qmp.execute("blockdev-add", {"node-name": f"node-{name}", "driver": "raw", "file": file})
        device = {"driver": "usb-storage", "bus": "xhci.0", "id": name, "drive": f"node-{name}", "removable": removable}
        self._qmp.execute("device_add", {**device, "serial": name})

    def pull(self, name: str) -> None:
        """Pull a stick out, whoever uses it."""
        self._qmp.execute("device_del", {"id": name})
        end = time.monotonic() + DEADLINE
        while True:
            try:
                self._qmp.execute("blockdev-del", {"node-name": f"node-{name}"})
            except QmpError:
                assert time.monotonic() < end, f"{name} stays plugged in"
                time.sleep(0.05)
            else:
                return
