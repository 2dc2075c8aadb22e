"""Saving a booted VM when the appliance is built, for `thaw`.

QEMU must later find the devices that the state was saved with, in the same places, so it is started here with the very
arguments that libguestfs gives it. libguestfs itself cannot be at the other end: its daemon says one word when it is
ready, and the VM is saved while the daemon waits for somebody who hears it.
"""

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mountsafe.appliance import hardware, thaw
from mountsafe.appliance.console import crash_in
from mountsafe.appliance.features import MORTAL, ask_libguestfs
from mountsafe.appliance.qmp import Qmp
from mountsafe.errors import DeadlinePassed, GuestGone, MountsafeError

BOOT_DEADLINE = 120.0
SILENCE_DEADLINE = 40.0  # a guest whose first word takes so long, a few seconds' work, will not be ready in time
SETTLED = b"mountsafe: settled"
ACCELERATOR = "tcg"  # where KVM works, a VM boots in 2 s
KEPT = 64 << 10  # bytes of what the console said last


class Crashed(MountsafeError):
    """The guest's kernel crashed, in its words: so it will whenever it is booted."""


# In QEMU's place: keeps the arguments of the launch, and is QEMU for libguestfs's questions before that.
_RECORDER = """\
#!/usr/bin/python3 -I
import json, os, sys
if "-kernel" in sys.argv:
    with open({target!r}, "w") as file:
        json.dump(sys.argv[1:], file)
    sys.exit(1)
os.execv({qemu!r}, [{qemu!r}, *sys.argv[1:]])
"""

_LAUNCH = """\
import json, sys, guestfs
handle = guestfs.GuestFS(python_return_dict=True)
handle.set_backend("direct")
handle.set_backend_settings(["force_" + sys.argv[3]])
handle.set_recovery_proc(False)
handle.set_memsize(int(sys.argv[4]))
handle.set_path(sys.argv[1])
handle.set_cachedir(sys.argv[2])
handle.set_hv(sys.argv[5])
handle.set_append(sys.argv[6])
handle.set_smp(int(sys.argv[7]))
for option, value in json.loads(sys.argv[8]):
    handle.config(option, value)
handle.add_drive_opts("/dev/null", format="raw", readonly=True)
try:
    handle.launch()
except RuntimeError:
    pass
"""


def freeze(appliance: Path, qemu: str, memory_mib: int, scratch: Path) -> None:
    """Boot a VM of the appliance and save it into its folder. `scratch` is an existing folder of the caller's alone.

    Raises `Crashed` if the VM is of no use; another `MountsafeError` if only the saving did not work: then the
    appliance is as good as before, and is booted each time.
    """
    arguments = _arguments(appliance, qemu, memory_mib, scratch)
    state = appliance / thaw.STATE
    try:
        with _running([*MORTAL, qemu, *_changed(arguments, scratch)], scratch) as process:
            _wait_until_settled(process)
            _save(scratch, state)
    except Crashed:
        raise
    except (OSError, MountsafeError) as error:
        state.unlink(missing_ok=True)
        raise GuestGone(f"the virtual machine could not be saved: {error}") from error
    known = thaw.conditions(memory_mib, ACCELERATOR, qemu)
    (appliance / thaw.CONDITIONS).write_text(json.dumps(known) + "\n")


def _arguments(appliance: Path, qemu: str, memory_mib: int, scratch: Path) -> list[str]:
    recorder, target = scratch / "recorder", scratch / "arguments.json"
    recorder.write_text(_RECORDER.format(target=str(target), qemu=qemu))
    recorder.chmod(0o700)
    options = json.dumps(hardware.options(ACCELERATOR))
    told = [ACCELERATOR, str(memory_mib), str(recorder), hardware.KERNEL_OPTIONS, str(hardware.PROCESSORS), options]
    ask_libguestfs(_LAUNCH, appliance, scratch, told)
    try:
        arguments: list[str] = json.loads(target.read_bytes())
    except (OSError, ValueError):
        raise GuestGone("libguestfs did not come to starting QEMU") from None
    return arguments


def _changed(arguments: list[str], scratch: Path) -> list[str]:
    """Return the arguments with nobody at the daemon's channel, a monitor, and a file for libguestfs's empty drive."""
    changed = []
    for argument in arguments:
        if argument.startswith("socket,") and argument.endswith(",id=channel0"):
            changed.append("socket,path=channel,server=on,wait=off,id=channel0")
        elif argument.startswith("file=") and argument.endswith("id=hd0,if=none"):
            empty = scratch / "empty"
            empty.touch()
            os.truncate(empty, 4096)
            changed.append("file=empty," + argument.partition(",")[2])
        elif argument.startswith("panic="):
            changed.append(f"{argument} mountsafe.freeze")
        else:
            changed.append(argument)
    return [*changed, "-qmp", "unix:monitor,server=on,wait=off"]


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run QEMU in `folder`, where it makes its sockets: their whole path may be longer than a socket's may be."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        bufsize=0,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _wait_until_settled(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    started, patience, said = time.monotonic(), SILENCE_DEADLINE, b""
    while SETTLED not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, started + patience - time.monotonic()))
        if not ready:
            raise DeadlinePassed(f"it did not boot in {patience:.0f} s")
        data = os.read(process.stdout.fileno(), 65536)
        patience = BOOT_DEADLINE
        said = said[-KEPT:] + data
        lines = said if not data else said[: said.rfind(b"\n") + 1]  # whole ones: the words may still be on their way
        if crash := crash_in(lines.decode("utf-8", "replace")):
            raise Crashed(crash)
        if not data:
            raise GuestGone("QEMU ended")


def _save(scratch: Path, state: Path) -> None:
    folder = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
    try:
        qmp = Qmp(f"/proc/self/fd/{folder}/monitor", thaw.DEADLINE)
    finally:
        os.close(folder)
    ours, theirs = socket.socketpair()
    ours.settimeout(thaw.DEADLINE)
    with closing(qmp), ours, theirs, open(state, "wb") as file:
        qmp.execute("stop")
        qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        qmp.execute("getfd", {"fdname": thaw.STATE}, theirs.fileno())
        theirs.close()
        qmp.execute("migrate", {"uri": f"fd:{thaw.STATE}"})
        while data := ours.recv(1 << 20):
            file.write(data)
        status = qmp.execute("query-migrate").get("status")
    if status != "completed":
        raise GuestGone(f"QEMU's migration is {status}")
