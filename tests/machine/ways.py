"""How mountsafe comes to the machine and goes again: from a checkout, or as a package. Both leave it as it was."""

import re
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Protocol

from tests.machine.base import REPOSITORY, run
from tests.machine.emulated import Machine

DEADLINE = 1500.0
CHECKOUT = "/root/mountsafe"
# What `./dev install` reads.
PARTS = (
    *("dev", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"),
    *("mountsafe", "dbus", "udev", "systemd", "packaging"),
)
AGENT = "mountsafe-agent"
# What packages, services and logs note of themselves is no change.
THEIRS = ("/var/lib/dpkg", "/var/lib/apt", "/var/lib/systemd", "/var/lib/udisks2", "/var/lib/dbus", "/var/lib/private")

Held = dict[str, set[str]]


def held(machine: Machine) -> Held:
    """What of a machine installing may change: its files, by content or size and mode. Units and policy are files."""
    pruned = " -o ".join(f"-path {path}" for path in THEIRS)
    files = f"find /etc /usr /opt /var/lib /boot -xdev \\( {pruned} \\) -prune -o"
    return {
        "files": set(machine.sh(f"{files} -printf '%p %y %m %U:%G %l\\n'").splitlines()),
        "sizes": set(machine.sh(f"{files} -type f -printf '%p %s\\n'").splitlines()),
        "settings": set(machine.sh("find /etc -xdev -type f -exec sha256sum {} +").splitlines()),
    }


class Way(Protocol):
    """What the README tells the user to do."""

    def bring(self, machine: Machine) -> None:
        """Have it installed, with the policy in force and the service running."""

    def take(self, machine: Machine) -> None:
        """Remove it."""


class FromCheckout:
    """`./dev install` and `./dev uninstall`."""

    def bring(self, machine: Machine) -> None:
        packed = BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for part in PARTS:
                if (REPOSITORY / part).exists():
                    tar.add(REPOSITORY / part, part, filter=_plain)
        machine.sh(f"mkdir -p {CHECKOUT}")
        machine.run("tar", "-xzf", "-", "-C", CHECKOUT, data=packed.getvalue()).ok()
        with machine.step("./dev install"):
            done = machine.run("bash", "-c", f"cd {CHECKOUT} && ./dev install", seconds=DEADLINE).ok()
        for line in done.out.splitlines():
            if line.endswith(" s"):
                machine.say(f"  {line}")

    def take(self, machine: Machine) -> None:
        with machine.step("./dev uninstall"):
            machine.run("bash", "-c", f"cd {CHECKOUT} && ./dev uninstall", seconds=DEADLINE).ok()


class FromPackage:
    """`apt install` and `mountsafe setup`; `mountsafe setup --undo` and `apt purge`."""

    def __init__(self, deb: Path) -> None:
        self.deb = deb

    def bring(self, machine: Machine) -> None:
        self.install(machine, self.deb)
        assert state(machine, "is-enabled") == "disabled", "until it is told"
        assert state(machine, "is-active") == "inactive"
        with machine.step("mountsafe setup"):
            machine.run("mountsafe", "setup", seconds=DEADLINE).ok()

    def install(self, machine: Machine, deb: Path) -> None:
        machine.run("dd", f"of=/root/{deb.name}", "status=none", data=deb.read_bytes()).ok()
        with machine.step(f"apt install ./{deb.name}"):
            machine.run("apt-get", "install", "--yes", f"/root/{deb.name}", seconds=DEADLINE).ok()

    def upgrade(self, machine: Machine, folder: Path) -> None:
        """Install a newer version, whose virtual machines have another agent. It is made in `folder`."""
        files = folder / "newer"
        run("dpkg-deb", "--raw-extract", self.deb, files)
        control = files / "DEBIAN/control"
        control.write_text(re.sub(r"(?m)^Version: .*", r"\g<0>+newer", control.read_text()))
        with (files / "usr/lib/python3/dist-packages/mountsafe/agent/worker.py").open("a") as agent:
            agent.write("# newer\n")
        deb = folder / "newer.deb"
        run("dpkg-deb", "--build", files, deb)
        self.install(machine, deb)

    def take(self, machine: Machine) -> None:
        machine.run("systemctl", "--user", "start", AGENT, user=True).ok()
        with machine.step("mountsafe setup --undo"):
            machine.run("mountsafe", "setup", "--undo", seconds=DEADLINE).ok()
        # The package is still there, and media are handled as if it were not.
        assert state(machine, "is-active") == "inactive"
        assert state(machine, "is-enabled") == "disabled"
        agent = machine.run("systemctl", "--user", "is-active", AGENT, user=True)
        assert agent.out.strip() == "inactive"
        assert machine.sh("find /etc -xdev -iname '*mountsafe*'").split() == []
        assert machine.run("mountsafe", "policy", "check").code != 0, "it would tell who may mount what again"
        with machine.step("apt purge mountsafe"):
            machine.run("apt-get", "purge", "--yes", "mountsafe", seconds=DEADLINE).ok()
        assert machine.run("systemctl", "is-active", "mountsafe.slice").out.strip() == "inactive"


def state(machine: Machine, question: str) -> str:
    """What systemctl answers of the service."""
    return machine.run("systemctl", question, "mountsafe").out.strip()


def copied(deb: Path, folder: Path) -> Path:
    """Return a package of one's own: that in dist/ may be built anew meanwhile."""
    return Path(shutil.copy(deb, folder))


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in member.name:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
