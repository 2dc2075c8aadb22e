"""`doctor --sandbox`: what confines the processes of each live mount, as reported by the kernel."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mountsafe import landlock
from mountsafe.cli import screen
from mountsafe.errors import ExitCode, UserError
from mountsafe.mountinfo import mounted
from mountsafe.process import descendants
from mountsafe.session.record import READ_WRITE, Record
from mountsafe.session.running import status
from mountsafe.system import layers
from mountsafe.system.layers import Layers
from mountsafe.text import size

AGAIN = "Try again: it may have ended."
SUPERVISOR = "supervisor"
WRITING = "writing"
CLOSED = "closed"  # what the kernel tells root alone
BOX = "bwrap"  # bubblewrap's own processes wait, and run none of what is in the box


@dataclass(frozen=True, slots=True)
class Held:
    """A process of a mount, what it does there, and what holds it in."""

    role: str
    layers: Layers

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        return {"role": self.role, **asdict(self.layers)}


def show(json: bool) -> None:
    """Print the layers of every mount of this user. Raises UserError (NOT_MOUNTED) if there is none."""
    found = [_looked_at(record) for record in status(screen.warn)]
    if not found:
        hint = "The layers are those of live mounts: mountsafe mount IMAGE DIR, then again."
        raise UserError("nothing is mounted", hint, ExitCode.NOT_MOUNTED)
    if json:
        screen.print_json([{**medium, "processes": [each.facts() for each in held]} for medium, held in found])
        return
    for medium, held in found:
        _print(medium, held)


def _looked_at(record: Record) -> tuple[dict[str, Any], list[Held]]:
    held = list(_held(record))
    try:
        sealed = _sealed(held)
    except OSError as error:
        raise UserError(f"what is open cannot be looked at: {error.strerror}", AGAIN) from error
    return _medium(record) | {"sealed": sealed}, held


def _sealed(held: list[Held]) -> dict[str, bool] | None:
    """Say of the medium that the boxes have open whether it stays read-only; None if none has it open now.

    All have the same descriptor of it, so one that is closed to the caller need not be looked at.
    """
    [supervisor] = [process.layers.pid for process in held if process.role == SUPERVISOR]
    ours = {each.number for each in layers.sources(supervisor)}
    open_ones = [process for process in held if process.layers.descriptors is not None]
    boxed = [process.layers.pid for process in open_ones if process.role not in (SUPERVISOR, WRITING)]
    media = [each for pid in boxed for each in layers.sources(pid) if each.number in ours]
    if not media:
        return None
    device = any(each.block_device for each in media)
    sealed = all(each.sealed for each in media)
    return {"by_mount": sealed and not device, "by_device": sealed and device, "by_landlock": bool(landlock.version())}


def _medium(record: Record) -> dict[str, Any]:
    """Return what is known of a medium and its mounts."""
    points = {each.point: each for each in mounted()}
    mounts = [
        {
            "target": mount.target,
            "access": mount.access,
            "flags": list(points[mount.target].options) if mount.target in points else [],
            "landlock": mount.landlock,
        }
        for mount in record.mounts
    ]
    return {"source": record.source, "mounts": mounts, "kernel_landlock": landlock.version()}


def _held(record: Record) -> Iterator[Held]:
    """Yield the processes of a medium."""
    yield Held(SUPERVISOR, _layers(record.supervisor))
    boxes: dict[str, Sequence[int | None]] = {
        "appliance": [record.virtual_machine, *record.writing_machines],
        "container": [record.container],
        "decrypting": record.decrypting,
        WRITING: record.writing,
    }
    boxes["session"] = [mount.session for mount in record.mounts]
    for role, pids in boxes.items():
        for pid in filter(None, pids):
            for each in (pid, *descendants(pid)):
                yield Held(role, _layers(each))


def _layers(pid: int) -> Layers:
    try:
        return layers.read(pid)
    except OSError as error:
        raise UserError(f"process {pid} cannot be looked at: {error.strerror}", AGAIN) from error


def _print(medium: dict[str, Any], held: list[Held]) -> None:
    for mount in medium["mounts"]:
        flags = " ".join(mount["flags"])
        screen.say(f"{medium['source']} on {mount['target']}: {flags}")
    shown = [each for each in held if each.layers.program != BOX]
    columns = [dict(_rows(each.layers)) for each in shown]
    screen.table(
        ["", *(_title(each) for each in shown)],
        [[name, *(column[name] for column in columns)] for name in columns[0]],
    )
    screen.say(_seal_in_words(medium["sealed"]))
    if any(mount["access"] == READ_WRITE for mount in medium["mounts"]):
        now = "It runs" if any(each.role == WRITING for each in held) else "It does not run"
        screen.say(
            f"What is {READ_WRITE}: while somebody changes it, one process in a box of its own has the medium open for"
            f" writing, and writes to the bytes of that file system alone. {now} at the moment."
        )
    told = ", ".join(f"version {mount['landlock']}" if mount["landlock"] else "none" for mount in medium["mounts"])
    screen.say(
        f"Landlock: the kernel has version {medium['kernel_landlock'] or 'none'}; it tells of no process whether it is"
        f" held by it. What the session processes said when they had asked for it: {told}"
    )
    if any(each.layers.descriptors is None for each in held):
        screen.say(
            f"{CLOSED}: its memory has a key in it, which no other process of its user reads. Root sees the rest."
        )
    if all(each.role != "appliance" for each in held):
        screen.say("No virtual machine runs at the moment: nobody has asked it anything.")
    screen.say("")


def _seal_in_words(sealed: dict[str, bool] | None) -> str:
    if sealed is None:
        return "The medium: no process in a box has it open at the moment."
    if sealed["by_mount"]:
        return "The medium: open through a read-only mount of that file alone, so nobody in a box can write to it."
    if sealed["by_device"]:
        return "The medium: the device is read-only, so nobody in a box can write to it."
    if sealed["by_landlock"]:
        return "The medium: what it is on can be written to; that the boxes do not is held by Landlock alone."
    return "The medium: what it is on can be written to; that the boxes do not is held by its mode and owner alone."


def _title(process: Held) -> str:
    if process.layers.program.startswith("qemu"):
        return "QEMU" if process.role == "appliance" else f"QEMU, {process.role}"
    return process.role


def _rows(seen: Layers) -> Iterator[tuple[str, str | list[str]]]:
    """Yield the table's rows for one process: names, and words or lines of them."""
    yield "process", str(seen.pid)
    yield "user", f"{seen.uid}, map {'; '.join(seen.uid_map)}"
    yield "own namespaces", CLOSED if seen.namespaces is None else " ".join(seen.namespaces) or "none"
    yield "capabilities", ", ".join(f"{name} {mask:x}" for name, mask in seen.capabilities.items()) or "none"
    yield "no new privileges", "yes" if seen.no_new_privileges else "no"
    yield "seccomp", f"{seen.seccomp}, {seen.seccomp_filters}" if seen.seccomp_filters else seen.seccomp
    for name, value in seen.limits.items():
        yield name, size(int(value)) if value.isdigit() and name in ("address space", "locked memory") else value
    yield "group limits", [f"{Path(file).name} {value}" for file, value in seen.group_limits.items()] or "none"
    descriptors = seen.descriptors
    yield "descriptors", CLOSED if descriptors is None else [f"{count} {kind}" for kind, count in descriptors.items()]
