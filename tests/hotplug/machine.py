"""A machine within this one: real udevd, D-Bus, polkit and udisks, whose rules and state nobody else sees.

All of them run in a mount namespace with its own /run, /media and configuration folders, and in a network namespace, so
that what another udevd says of the same devices is not heard. The kernel, its events and the loop devices are this
machine's. When the namespaces' processes have ended, everything is gone.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.appliance import put
from tests.done import Done

UDEVD = "/usr/lib/systemd/systemd-udevd"
POLKITD = "/usr/lib/polkit-1/polkitd"
UDISKSD = "/usr/libexec/udisks2/udisksd"
DEADLINE = 300.0  # seconds; nothing is timed, and where all is busy a virtual machine takes a minute to start
SETTLE = ("udevadm", "settle", "--timeout=180")
STATE = "/var/lib/mountsafe"
OWN_FOLDERS = ("/etc/udev/rules.d", "/etc/polkit-1/rules.d", "/etc/modprobe.d", "/etc/mountsafe", STATE)
REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Folders of the system with a file of ours in them, as `./dev install` puts it there.
OWN_COPIES = {
    "/usr/share/dbus-1/system.d": REPOSITORY / "dbus/org.mountsafe.Manager1.conf",
    "/usr/share/polkit-1/actions": REPOSITORY / "dbus/org.mountsafe.policy",
}
OWN_MEMORY = ("/run", "/media", "/var/lib/udisks2")
USER = "nobody"
BUS = "/run/dbus/system_bus_socket"
# Both read the same configuration.
BUSES = {
    "dbus-daemon": ("dbus-daemon", "--system", "--nofork", "--nopidfile"),
    "dbus-broker": (sys.executable, "-m", "tests.hotplug.broker", BUS),
}

# Without a session on a seat polkit would refuse everything: it must be our rules that refuse.
ALLOW = """
polkit.addRule(function(action, subject) {
    var open = action.id.indexOf("org.freedesktop.udisks2.") === 0 || action.id.indexOf("-own") > 0;
    return open ? polkit.Result.YES : polkit.Result.NOT_HANDLED;
});
"""

# A free loop device is still read-only where a daemon was killed that had made the last medium on it so.
ATTACH = 'device=$(losetup --find) && blockdev --setrw "$device" && losetup "$@" "$device" "$0" && echo "$device"'


def wait_for(condition: Callable[[], bool], what: str, instead: Callable[[], str] = str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {DEADLINE:.0f} s: {instead()}"
        time.sleep(0.05)


def attached() -> set[str]:
    """Return the names of the loop devices that are in use."""
    return {path.parent.parent.name for path in Path("/sys/block").glob("loop*/loop/backing_file")}


@dataclass
class Machine:
    """The namespace, by a process that holds it."""

    holder: subprocess.Popen[bytes]
    scratch: Path
    services: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: frozenset[str] = field(default_factory=lambda: frozenset(attached()))
    kind: str = "dbus-daemon"

    def command(self, *words: str | Path) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--mount", "--net", "--", *map(str, words)]

    def run(self, *words: str | Path, user: bool = False) -> Done:
        person = ["setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups"] if user else []
        done = subprocess.run(
            self.command(*person, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE
        )
        return Done(tuple(map(str, words)), done.returncode, done.stdout, done.stderr)

    def mountsafe(self, *words: str | Path, user: bool = False) -> Done:
        return self.run(sys.executable, "-m", "mountsafe", *words, user=user)

    def put_appliance(self) -> None:
        """Have an appliance, and know whether KVM works."""
        put(self.scratch / f"own{OWN_FOLDERS.index(STATE)}/appliance")

    def findings(self) -> list[tuple[str, str]]:
        """Return what `policy check` finds, (device, who), but for loop devices that others had before."""
        found = self.mountsafe("policy", "check", "--json")
        assert found.code in (0, 1), found.err
        return [(each["device"], each["who"]) for each in found.json() if each["device"] not in self.others]

    def start(self, *words: str, ready: Callable[[], bool]) -> None:
        path = self.scratch / f"{Path(words[0]).name}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.services.append(process)

        def is_ready() -> bool:
            assert process.poll() is None, f"{words[0]} ended: {path.read_text(errors='replace')}"
            return ready()

        wait_for(is_ready, words[0])

    def start_bus(self) -> subprocess.Popen[bytes]:
        """Start the system's bus, of our kind; who was on another one does not come back by itself."""
        self.remove(BUS, "/run/systemd/journal/socket")
        self.start(*BUSES[self.kind], ready=lambda: self.run("test", "-S", BUS).code == 0)
        return self.services[-1]

    def write(self, path: str, text: str) -> None:
        """Write a file that only this machine sees."""
        subprocess.run(
            self.command("sh", "-c", 'mkdir -p "${0%/*}"; cat >"$0"', path),
            input=text.encode(),
            check=True,
            timeout=DEADLINE,
        )

    def remove(self, *paths: str) -> None:
        self.run("rm", "-rf", *paths).ok()

    def properties(self, device: str) -> dict[str, str]:
        """udev's properties of a device, once it has dealt with all events."""
        self.run(*SETTLE).ok()
        lines = self.run("udevadm", "info", "--query=property", f"--name={device}").ok().out.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def kernel_mounts(self, device: str) -> list[str]:
        """The mounts of a device by this kernel itself, a line of mountinfo each."""
        lines = self.run("cat", "/proc/self/mountinfo").ok().out.splitlines()
        return [line for line in lines if line.split(" - ")[1].split()[1] == device]

    def _unmounted(self, device: str) -> bool:
        """Try to end what the kernel mounted of a device: who has just done that may still be busy with it."""
        return self.kernel_mounts(device) == [] or self.run("umount", "--all-targets", device).code == 0

    @contextmanager
    def loop(self, image: Path, *options: str) -> Iterator[str]:
        """Attach an image: a medium is plugged in. `options`: of losetup."""
        with self.loop_now(image, *options) as device:
            self.run(*SETTLE).ok()
            yield device

    @contextmanager
    def loop_now(self, image: Path, *options: str) -> Iterator[str]:
        """Attach an image, and do not wait for what comes of it."""
        device = self.run("sh", "-c", ATTACH, image, *options).ok().out.strip()
        try:
            yield device
        finally:
            wait_for(lambda: self._unmounted(device), f"the end of {device}'s mounts")
            self.run("losetup", "--detach", device)
            self.run(*SETTLE)


@contextmanager
def machine(scratch: Path, bus: str = "dbus-daemon") -> Iterator[Machine]:
    holder = subprocess.Popen(["unshare", "--mount", "--net", "--propagation=private", "sleep", "infinity"])
    made = Machine(holder, scratch, kind=bus)
    try:
        own = os.readlink("/proc/self/ns/mnt")
        wait_for(lambda: os.readlink(f"/proc/{holder.pid}/ns/mnt") != own, "the namespace")
        wait_for(lambda: Path(f"/proc/{holder.pid}/comm").read_text().strip() == "sleep", "its holder")
        for name in made.others:
            # Rules for loop devices are refused where one is in use; here its mounts are another's, and end here alone.
            made.run("umount", "--all-targets", f"/dev/{name}")
        for folder in OWN_MEMORY:
            made.run("mkdir", "-p", folder).ok()
            made.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder).ok()
        for number, folder in enumerate(OWN_FOLDERS):
            copy = scratch / f"own{number}"
            copy.mkdir()
            made.run("mkdir", "-p", folder).ok()
            made.run("mount", "--bind", copy, folder).ok()
        for folder, file in OWN_COPIES.items():
            copy = scratch / Path(folder).name
            made.run("cp", "-a", folder, copy).ok()
            made.run("cp", "--no-preserve=mode", file, copy).ok()
            made.run("mount", "--bind", copy, folder).ok()
        made.run("mkdir", "-p", "/run/dbus", "/run/udev", "/run/lock").ok()
        made.start(UDEVD, ready=lambda: made.run("udevadm", "control", "--ping").code == 0)
        made.start_bus()
        owned = "org.freedesktop.DBus.NameHasOwner"
        for program, name in ((POLKITD, "org.freedesktop.PolicyKit1"), (UDISKSD, "org.freedesktop.UDisks2")):
            ask = (
                "dbus-send",
                "--system",
                "--print-reply",
                "--dest=org.freedesktop.DBus",
                "/",
                owned,
                f"string:{name}",
            )
            made.start(program, "--no-debug", ready=lambda ask=ask: "true" in made.run(*ask).out)  # type: ignore[misc]
        made.write("/etc/polkit-1/rules.d/90-test.rules", ALLOW)
        yield made
    finally:
        for process in [*reversed(made.services), holder]:
            process.terminate()  # udevd then ends its workers too
            process.wait(timeout=DEADLINE)
