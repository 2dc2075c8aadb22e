"""Saving a booted VM when the appliance is built, for `thaw`.

QEMU must later find the devices that the state was saved with, in the same places, so it is started here with the very
arguments that libguestfs gives it. libguestfs itself cannot be at the other end: its daemon says one word when it is
ready, and the VM is saved while the daemon waits for somebody who hears it. A state is kept if a VM comes to life
from it: its daemon says that word, and its agent opens a port.
"""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mountsafe.appliance import hardware, thaw
from mountsafe.appliance.console import crash_in
from mountsafe.appliance.features import MORTAL, ask_libguestfs
from mountsafe.appliance.qmp import Qmp
from mountsafe.errors import DeadlinePassed, GuestGone, MountsafeError

SETTLED = b"mountsafe: settled"
KEPT = 64 << 10  # bytes of what the console said last
READY = struct.pack(">I", 0xF5F55FF5)  # the daemon's first word: GUESTFS_LAUNCH_FLAG of libguestfs's protocol
PORT = "proof"


class Patience(NamedTuple):
    """How many seconds a VM may take to say its first word, and all in all if it has said one."""

    silent: float = 40.0  # a guest whose first word takes so long, a few seconds' work, will not be ready in time
    booting: float = 120.0


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


def freeze(
    appliance: Path, qemu: str, memory_mib: int, accelerator: str, scratch: Path, patience: Patience | None = None
) -> float:
    """Boot a VM of the appliance and save it into its folder; return how many seconds a VM takes to start from that.

    `scratch` is an existing folder of the caller's alone, in the same file system. Raises `Crashed` if the VM is of no
    use; another `MountsafeError` if only the saving did not work: then the appliance is as good as before, and is
    booted each time, which is noted in it.
    """
    try:
        command = [*MORTAL, qemu, *_changed(_arguments(appliance, qemu, memory_mib, accelerator, scratch), scratch)]
        saved = scratch / "saved"
        with _running(command, scratch) as process:
            _wait_until_settled(process, patience or Patience())
            _save(scratch, saved)
        with _running([*command, *thaw.INCOMING], scratch):
            seconds = _prove(scratch, saved)
        saved.chmod(0o644)
        saved.replace(thaw.state(appliance, accelerator))
        thaw.note(appliance, thaw.conditions(memory_mib, accelerator, qemu), seconds)
    except (OSError, MountsafeError) as error:
        why = f"the virtual machine could not be saved: {error}"
        thaw.state(appliance, accelerator).unlink(missing_ok=True)
        with suppress(OSError):
            thaw.note(appliance, thaw.conditions(memory_mib, accelerator, qemu), 0.0, why)
        if isinstance(error, Crashed):
            raise
        raise GuestGone(why) from error
    return seconds


def _arguments(appliance: Path, qemu: str, memory_mib: int, accelerator: str, scratch: Path) -> list[str]:
    recorder, target = scratch / "recorder", scratch / "arguments.json"
    target.unlink(missing_ok=True)
    recorder.write_text(_RECORDER.format(target=str(target), qemu=qemu))
    recorder.chmod(0o700)
    options = json.dumps(hardware.options(accelerator))
    told = [accelerator, str(memory_mib), str(recorder), hardware.KERNEL_OPTIONS, str(hardware.PROCESSORS), options]
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


def _wait_until_settled(process: subprocess.Popen[bytes], patience: Patience) -> None:
    assert process.stdout is not None
    started, seconds, said = time.monotonic(), patience.silent, b""
    while SETTLED not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, started + seconds - time.monotonic()))
        if not ready:
            raise DeadlinePassed(f"it did not boot in {seconds:.0f} s")
        data = os.read(process.stdout.fileno(), 65536)
        seconds = patience.booting
        said = said[-KEPT:] + data
        lines = said if not data else said[: said.rfind(b"\n") + 1]  # whole ones: the words may still be on their way
        if crash := crash_in(lines.decode("utf-8", "replace")):
            raise Crashed(crash)
        if not data:
            last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise GuestGone(f"QEMU ended: {last}" if last else "QEMU ended")


@contextmanager
def _short(scratch: Path) -> Iterator[str]:
    """Give the folder a path that is short enough for the sockets in it."""
    folder = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}"
    finally:
        os.close(folder)


def _save(scratch: Path, saved: Path) -> None:
    with _short(scratch) as folder:
        qmp = Qmp.connected(f"{folder}/monitor", thaw.DEADLINE)
    ours, theirs = socket.socketpair()
    ours.settimeout(thaw.DEADLINE)
    with closing(qmp), ours, theirs, open(saved, "wb") as file:
        qmp.execute("stop")
        qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        qmp.execute("getfd", {"fdname": thaw.FD}, theirs.fileno())
        theirs.close()
        qmp.execute("migrate", {"uri": f"fd:{thaw.FD}"})
        while data := ours.recv(1 << 20):
            file.write(data)
        status = qmp.execute("query-migrate").get("status")
    if status != "completed":
        raise GuestGone(f"QEMU's migration is {status}")


def _prove(scratch: Path, saved: Path) -> float:
    """Return after how many seconds a VM that starts from the state was alive: its daemon, and its agent."""
    since = time.monotonic()
    with (
        _short(scratch) as folder,
        closing(thaw.connected(f"{folder}/monitor")) as qmp,
        socket.socket(socket.AF_UNIX) as channel,
    ):
        channel.settimeout(thaw.DEADLINE)
        channel.connect(f"{folder}/channel")
        thaw.give(saved, qmp)
        if channel.recv(len(READY), socket.MSG_WAITALL) != READY:
            raise GuestGone("the daemon of the saved virtual machine is not ready")
        qmp.execute("chardev-add", {"id": PORT, "backend": {"type": "null", "data": {}}})
        name = "org.mountsafe.1"
        qmp.execute("device_add", {"driver": "virtserialport", "id": PORT, "chardev": PORT, "name": name})
        while not any(change["open"] for change in qmp.take("VSERPORT_CHANGE") if change["id"] == PORT):
            if not qmp.drain():
                raise GuestGone("the agent of the saved virtual machine does not answer")
    return time.monotonic() - since
