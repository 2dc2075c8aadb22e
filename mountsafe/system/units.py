"""Where the processes that we start run: in a systemd unit of their own, or apart from us."""

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mountsafe.environment import TOLD
from mountsafe.limits import MIB

SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
SLICE = "mountsafe.slice"
_SCREEN = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_CURRENT_DESKTOP", "LANG", "LC_ALL")


@dataclass(frozen=True, slots=True)
class Unit:
    """`start`: words to put before a command. `stop`: the command that ends it; none: it is the child itself."""

    start: Sequence[str] = ()
    stop: Sequence[str] = ()


def for_medium(memory_mib: int, cpu_percent: int, processes: int) -> Unit:
    """Return a unit with these limits; without systemd one that has none, and is our child.

    The service manager starts the command, with our standard input: so it may what systemd/mountsafe-medium-.service.d
    says, and we need not. The words stay until it has ended. A percentage of 100 is one processor's time.
    """
    if not (run := _systemd_run()):
        return Unit()
    name = f"mountsafe-medium-{secrets.token_hex(4)}.service"
    properties = (
        f"MemoryMax={memory_mib * MIB}",
        f"CPUQuota={cpu_percent}%",
        f"TasksMax={processes}",
        "CPUWeight=50",  # half of what others get where there is not enough for all
    )
    words = [*run, "--pipe", "--service-type=exec", f"--unit={name}", f"--slice={SLICE}"]
    words += ["--description=mountsafe, a medium", *(f"--property={each}" for each in properties)]
    words += [f"--setenv={told}" for told in TOLD if told in os.environ]
    return Unit([*words, "--"], ["systemctl", "--quiet", "--no-block", "stop", name])


def once() -> list[str]:
    """Return the words before a command of root's that the service manager does and waits for; none without systemd.

    It has all of root's rights, which who asks for it may lack.
    """
    return [*run, "--pipe", "--wait", "--"] if (run := _systemd_run()) else []


def apart() -> list[str]:
    """Return the words before a command that has the user's service manager start it; none without systemd.

    What we start ourselves inherits the filters of our unit, and ends with it.
    """
    return [*run, "--user", "--"] if (run := _systemd_run()) else []


def piped() -> list[str]:
    """Return the words before a command that the user's service manager starts and waits for, with our pipes.

    It shows a window; what we are held by is not made for that.
    """
    if not (run := _systemd_run()):
        return []
    return [*run, "--user", "--pipe", "--wait", *(f"--setenv={name}" for name in _SCREEN if name in os.environ), "--"]


def _systemd_run() -> list[str]:
    program = shutil.which("systemd-run")
    return [program, "--quiet", "--collect"] if program and SYSTEMD.is_dir() else []
