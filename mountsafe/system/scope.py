"""Where what we start runs: in a control group of its own, or apart from us. Both are systemd's to give."""

import secrets
import shutil
from pathlib import Path

from mountsafe.limits import MIB

SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
SLICE = "mountsafe.slice"


def limited(memory_mib: int, cpu_percent: int, processes: int) -> list[str]:
    """Return the words to put before a command so that it runs in a scope with these limits; none without systemd.

    A percentage of 100 is one processor's time. systemd-run becomes the command: the process id and what the process
    inherits stay. The scope goes with its last process.
    """
    if not (run := _systemd_run()):
        return []
    properties = (
        f"MemoryMax={memory_mib * MIB}",
        f"CPUQuota={cpu_percent}%",
        f"TasksMax={processes}",
        "CPUWeight=50",  # half of what others get where there is not enough for all
    )
    name = f"--unit=mountsafe-medium-{secrets.token_hex(4)}"
    words = [*run, "--scope", name, f"--slice={SLICE}", "--description=mountsafe, a medium"]
    return [*words, *(f"--property={each}" for each in properties), "--"]


def apart() -> list[str]:
    """Return the words before a command that has the user's service manager start it; none without systemd.

    What we start ourselves inherits the filters of our unit, and ends with it.
    """
    return [*run, "--user", "--"] if (run := _systemd_run()) else []


def _systemd_run() -> list[str]:
    program = shutil.which("systemd-run")
    return [program, "--quiet", "--collect"] if program and SYSTEMD.is_dir() else []
