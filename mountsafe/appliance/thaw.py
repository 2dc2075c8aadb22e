"""A VM that starts from the state it was saved in when the appliance was built: 0.1 s, where booting takes 4.

The saved VM is booted, its daemon waits with its first word to libguestfs, its agent waits for a port, the programs
that a medium needs are in its memory. QEMU takes the state as an incoming migration, so its devices, memory and
accelerator must be those it was saved with; if they are not, QEMU ends, and the VM must be booted after all.

A thawed VM differs from a booted one in two ways: its clock stands where it was saved until it is set, and its random
numbers start from the same state each time. Neither may matter for what the appliance does; it makes no keys.
"""

import json
import os
import socket
import time
from pathlib import Path

from mountsafe.appliance.qmp import Qmp, QmpError
from mountsafe.errors import GuestGone

STATE = "state"  # in the appliance's folder: QEMU's migration stream
CONDITIONS = "state.json"  # and what it was saved with
INCOMING = ("-incoming", "defer")  # for libguestfs's `config`: QEMU waits for the state that `begin` sends
DEADLINE = 20.0


def conditions(memory_mib: int, accelerator: str, qemu: str) -> dict[str, object]:
    """Return what must be the same for a state to be taken. `qemu` is the program's path."""
    status = os.stat(qemu)
    identity = [qemu, status.st_size, status.st_mtime_ns]
    return {"memory_mib": memory_mib, "accelerator": accelerator, "qemu": identity}


def fits(appliance: Path, memory_mib: int, accelerator: str) -> bool:
    """Say whether a VM with these settings can start from the appliance's state."""
    try:
        saved = json.loads((appliance / CONDITIONS).read_bytes())
        return bool((appliance / STATE).is_file() and saved == conditions(memory_mib, accelerator, saved["qemu"][0]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def begin(appliance: Path, monitor: str) -> int:
    """Fork a process that gives the state to the QEMU that is about to listen on the socket `monitor`; return its pid.

    To be called before libguestfs's blocking launch, by a process with one thread. The child uses the monitor before
    anyone else does, and ends with code 0. If QEMU does not take the state it ends QEMU, and launch fails.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _send_state(appliance / STATE, monitor)
        code = 0
    finally:
        os._exit(code)


def _send_state(state: Path, monitor: str) -> None:
    qmp = _connect(monitor)
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs, open(state, "rb") as file:
            qmp.execute("getfd", {"fdname": STATE}, theirs.fileno())
            qmp.execute("migrate-incoming", {"uri": f"fd:{STATE}"})
            theirs.close()
            ours.sendfile(file)
        end = time.monotonic() + DEADLINE
        while (status := qmp.execute("query-status")["status"]) == "inmigrate" and time.monotonic() < end:
            time.sleep(0.002)
        if status != "running":
            qmp.execute("cont")
    except (OSError, QmpError):
        qmp.execute("quit")
        raise


def _connect(monitor: str) -> Qmp:
    end = time.monotonic() + DEADLINE
    while True:
        try:
            return Qmp(monitor, DEADLINE)
        except OSError:
            if time.monotonic() > end:
                raise GuestGone("QEMU did not open its monitor") from None
        time.sleep(0.002)
