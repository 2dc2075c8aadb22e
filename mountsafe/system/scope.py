"""A control group of its own for what a process starts, where systemd is the one who gives them."""

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
    program = shutil.which("systemd-run")
    if program is None or not SYSTEMD.is_dir():
        return []
    properties = (
        f"MemoryMax={memory_mib * MIB}",
        f"CPUQuota={cpu_percent}%",
        f"TasksMax={processes}",
        "CPUWeight=50",  # half of what others get where there is not enough for all
    )
    name = f"--unit=mountsafe-medium-{secrets.token_hex(4)}"
    words = [program, "--scope", "--quiet", "--collect", name, f"--slice={SLICE}", "--description=mountsafe, a medium"]
    return [*words, *(f"--property={each}" for each in properties), "--"]
