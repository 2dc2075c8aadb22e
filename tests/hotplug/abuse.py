"""The daemon under abuse of its D-Bus service by ordinary users, while media are plugged in and out.

`sudo .venv/bin/python -m tests.hotplug.abuse MINUTES` says what was done and what came of it, and fails if a medium was
not claimed within 0.5 s of its event, or the service does not answer at the end. `MINUTES dbus-broker`: on that bus.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from images import images
from tests.hotplug.daemon import RULES, Daemon
from tests.hotplug.machine import DEADLINE, Machine, machine

ABUSERS = 2
CLAIM_BOUND = 0.5  # seconds


@dataclass
class Came:
    """What came of it. `claims`: seconds from a device's being there to its claim, for each plug."""

    done: Counter[str] = field(default_factory=Counter)
    claims: list[float] = field(default_factory=list)
    lost: int = 0  # media that were never claimed
    answers: bool = False
    same_process: bool = False

    def told(self) -> str:
        slowest = max(self.claims, default=0.0)
        late = sum(each > CLAIM_BOUND for each in self.claims)
        lines = [f"{number:8} {kind}" for kind, number in sorted(self.done.items())]
        lines.append(f"{len(self.claims):8} plugs; slowest claim {slowest:.3f} s, {late} above {CLAIM_BOUND} s")
        lines.append(f"{self.lost:8} plugs without a claim")
        lines.append(f"service answers: {self.answers}; the daemon lives: {self.same_process}")
        return "\n".join(lines)


def claim_of(machine: Machine, image: Path) -> float | None:
    """Plug a medium in; return how long its claim took, which makes it read-only; None if none came."""
    with machine.loop_now(image) as device:
        began = time.monotonic()
        read_only = Path("/sys/block", device.removeprefix("/dev/"), "ro")
        while read_only.read_text().strip() != "1":
            if time.monotonic() > began + DEADLINE:
                return None
            time.sleep(0.002)
        return time.monotonic() - began


def abuse(daemon: Daemon, image: Path, seconds: float) -> Came:
    came = Came()
    command = daemon.machine.command(sys.executable, "-m", "tests.hotplug.abuser", str(seconds))
    abusers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(ABUSERS)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        took = claim_of(daemon.machine, image)
        if took is None:
            came.lost += 1
        else:
            came.claims.append(took)
    for abuser in abusers:
        came.done.update(json.loads(abuser.communicate(timeout=DEADLINE)[0]))
    came.same_process = daemon.process.poll() is None
    came.answers = daemon.machine.mountsafe("status", "--json").code == 0
    return came


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, machine(Path(scratch), *sys.argv[2:]) as made:
        made.write("/etc/mountsafe/policy.toml", RULES)
        made.mountsafe("policy", "install").ok()
        made.put_appliance()
        daemon = Daemon(made, Path(scratch, "log"))
        came = abuse(daemon, images.unpack("jfs", Path(scratch)), float(sys.argv[1]) * 60)
        daemon.stop()
    sys.stdout.write(came.told() + "\n")
    bad = came.lost or not came.answers or not came.same_process or max(came.claims) > CLAIM_BOUND
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
