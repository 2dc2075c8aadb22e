"""A VM that starts from the state it was saved in when the appliance was built: 0.1 s, where booting takes 2 to 10.

The saved VM is booted, its daemon waits with its first word to libguestfs, its agent waits for a port, the programs
that a medium needs are in its memory. QEMU takes the state as an incoming migration, so its devices, memory and
accelerator must be those it was saved with; if they are not, QEMU ends, and the VM must be booted after all. With KVM
the processor is the host's, and so is what KVM can do: such a state is for one processor and one kernel.

A thawed VM differs from a booted one in two ways: its clock stands where it was saved until it is set, and its random
numbers start from the same state each time. Neither may matter for what the appliance does; it makes no keys.
"""

import json
import os
import socket
import time
from pathlib import Path

from mountsafe.appliance.acceleration import circumstances
from mountsafe.appliance.qmp import Qmp, QmpError
from mountsafe.errors import GuestGone

INCOMING = ("-incoming", "defer")  # for libguestfs's `config`: QEMU waits for the state that `begin` sends
DEADLINE = 60.0  # of each step; on a host that is emulated and busy QEMU alone takes 20 s to open its monitor
PATIENCE = 20.0  # for all of a start from a state, and
TIMES = 10.0  # if that is more, how many times longer than at the state's proof: the host may be busy
FD = "state"


def state(appliance: Path, accelerator: str) -> Path:
    """Return where the state for this accelerator is, if there is one: QEMU's migration stream."""
    return appliance / f"state-{accelerator}"


def _record(appliance: Path, accelerator: str) -> Path:
    return appliance / f"state-{accelerator}.json"


def conditions(memory_mib: int, accelerator: str, qemu: str) -> dict[str, object]:
    """Return what must be the same for a state to be taken. `qemu` is the program's path."""
    status = os.stat(qemu)
    identity = [qemu, status.st_size, status.st_mtime_ns]
    host = circumstances() if accelerator == "kvm" else []
    return {"memory_mib": memory_mib, "accelerator": accelerator, "qemu": identity, "host": host}


def note(appliance: Path, known: dict[str, object], seconds: float, why: str = "") -> None:
    """Write down under which conditions a state was made, and how long a VM took to start from it.

    `why`: there is none, for this reason. Raises OSError.
    """
    record = _record(appliance, str(known["accelerator"]))
    fresh = record.with_suffix(".new")
    fresh.write_text(json.dumps({"conditions": known, "seconds": seconds, "why": why}) + "\n", encoding="utf-8")
    fresh.chmod(0o644)
    fresh.replace(record)


def tried(appliance: Path, memory_mib: int, accelerator: str) -> tuple[str, float] | None:
    """Return what is known of the state for these settings on this host: None if it was not tried to make one.

    Else why there is none, or "", and how many seconds a VM took to start from it.
    """
    try:
        noted = json.loads(_record(appliance, accelerator).read_bytes())
        why, seconds = str(noted["why"]), float(noted["seconds"])
        same = noted["conditions"] == conditions(memory_mib, accelerator, noted["conditions"]["qemu"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return (why, seconds) if same and (why or state(appliance, accelerator).is_file()) else None


def fits(appliance: Path, memory_mib: int, accelerator: str) -> bool:
    """Say whether a VM with these settings can start from the appliance's state."""
    known = tried(appliance, memory_mib, accelerator)
    return known is not None and not known[0]


def patience(appliance: Path, memory_mib: int, accelerator: str) -> float:
    """Return how many seconds a VM may take to start from the state that fits."""
    known = tried(appliance, memory_mib, accelerator)
    return max(PATIENCE, TIMES * known[1] if known else 0.0)


def begin(saved: Path, monitor: str) -> int:
    """Fork a process that gives the state to the QEMU that is about to listen on the socket `monitor`; return its pid.

    To be called before libguestfs's blocking launch, by a process with one thread. The child uses the monitor before
    anyone else does, and ends with code 0. If QEMU does not take the state it ends QEMU, and launch fails.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        give(saved, connected(monitor))
        code = 0
    finally:
        os._exit(code)


def give(saved: Path, qmp: Qmp) -> None:
    """Give the state to a QEMU that waits for it; return when its VM runs. Raises GuestGone, QmpError, OSError."""
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs, open(saved, "rb") as file:
            qmp.execute("getfd", {"fdname": FD}, theirs.fileno())
            qmp.execute("migrate-incoming", {"uri": f"fd:{FD}"})
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


def connected(monitor: str) -> Qmp:
    """Return a connection to the monitor of a QEMU that is about to open it. Raises GuestGone."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            return Qmp.connected(monitor, DEADLINE)
        except OSError:
            if time.monotonic() > end:
                raise GuestGone("QEMU did not open its monitor") from None
        time.sleep(0.002)
