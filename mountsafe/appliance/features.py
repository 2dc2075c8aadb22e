"""What libguestfs learns about this host's QEMU, kept with the appliance.

Before its first launch libguestfs runs QEMU four times to ask for its version, devices and options: 0.25 s here. It
keeps the answers in its cache folder, which is empty whenever a sandbox starts. They are valid for a QEMU binary of the
recorded size and time; libguestfs compares, and asks again if QEMU was replaced.
"""

import os
import shutil
import subprocess
from pathlib import Path

from mountsafe import distribution
from mountsafe.errors import ExitCode, GuestGone, UserError

PYTHON = "/usr/bin/python3"  # the interpreter that has Debian's python3-guestfs
DEADLINE = 60.0

# Before a command of the build: it ends with the builder, even if that is killed.
MORTAL = ("setpriv", "--pdeathsig", "KILL", "--")

# QEMU refuses the option and ends at once; by then libguestfs has asked and written everything down.
_ASK = """\
import sys, guestfs
handle = guestfs.GuestFS(python_return_dict=True)
handle.set_backend("direct")
handle.set_backend_settings(["force_tcg"])
handle.set_recovery_proc(False)
handle.set_path(sys.argv[1])
handle.set_cachedir(sys.argv[2])
handle.config("-mountsafe-asks", "nothing")
handle.add_drive_opts("/dev/null", format="raw", readonly=True)
try:
    handle.launch()
except RuntimeError:
    pass
print(handle.get_hv())
"""


def ask_libguestfs(script: str, appliance: Path, scratch: Path, arguments: list[str]) -> str:
    """Run a script with libguestfs in a process of its own and return what it prints.

    The script gets the appliance's folder, a cache folder in `scratch`, and `arguments`. Raises `UserError` if
    libguestfs or its Python binding is missing, `GuestGone` if it does not end.
    """
    cache = scratch / "cache"
    cache.mkdir(exist_ok=True)
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"}
    command = [*MORTAL, PYTHON, "-I", "-c", script, str(appliance), str(cache), *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GuestGone(f"libguestfs did not end in {DEADLINE:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"libguestfs does not work: {words}", distribution.install("python3-guestfs"), ExitCode.DEPENDENCY
        )
    return done.stdout.strip()


def record(appliance: Path, target: Path, scratch: Path) -> str | None:
    """Write libguestfs's answers about QEMU to the new folder `target`; return the path of QEMU.

    None if there are no answers: QEMU is missing or does not start.
    """
    qemu = ask_libguestfs(_ASK, appliance, scratch, [])
    answers = scratch / "cache" / f".guestfs-{os.geteuid()}"
    if not any(answers.glob("*.stat")):
        return None
    shutil.copytree(answers, target)
    return qemu
