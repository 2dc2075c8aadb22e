"""`doctor --sandbox`: what holds the processes of each live mount in, as the kernel tells it."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mountsafe import landlock
from mountsafe.cli import screen
from mountsafe.errors import ExitCode, UserError
from mountsafe.mountinfo import mounted
from mountsafe.process import descendants
from mountsafe.session import start
from mountsafe.system import layers
from mountsafe.system.layers import Layers
from mountsafe.text import size

BOX = "bwrap"  # bubblewrap's own processes wait, and run none of what is in the box


def show(json: bool) -> None:
    """Print the layers of every mount of this user. Raises UserError (NOT_MOUNTED) if there is none."""
    found = [_medium(record) for record in start.status()]
    if not found:
        hint = "The layers are those of live mounts: mountsafe mount IMAGE DIR, then again."
        raise UserError("nothing is mounted", hint, ExitCode.NOT_MOUNTED)
    if json:
        screen.print_json(found)
        return
    for medium in found:
        _print(medium)


def _medium(record: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a medium's processes and mounts, for programs."""
    points = {each.point: each for each in mounted()}
    boxes = {"appliance": [record["virtual_machine"]], "container": [record["container"]]}
    boxes |= {"session": [mount["session"] for mount in record["mounts"]]}
    processes = [{"role": "supervisor", **_seen(record["supervisor"])}]
    for role, pids in boxes.items():
        for pid in filter(None, pids):
            processes += [{"role": role, **_seen(each)} for each in (pid, *descendants(pid))]
    mounts = [
        {"target": target, "flags": list(points[target].options) if target in points else [], "landlock": told}
        for target, told in ((mount["target"], mount.get("landlock", 0)) for mount in record["mounts"])
    ]
    return {"source": record["source"], "mounts": mounts, "kernel_landlock": landlock.version(), "processes": processes}


def _seen(pid: int) -> dict[str, Any]:
    try:
        return asdict(layers.read(pid))
    except OSError as error:
        raise UserError(
            f"process {pid} cannot be looked at: {error.strerror}", "Try again: it may have ended."
        ) from error


def _print(medium: dict[str, Any]) -> None:
    for mount in medium["mounts"]:
        flags = " ".join(mount["flags"])
        screen.say(f"{medium['source']} on {mount['target']}: {flags}")
    shown = [each for each in medium["processes"] if each["program"] != BOX]
    columns = [dict(_rows(each)) for each in shown]
    screen.table(
        ["", *(_title(each) for each in shown)],
        [[name, *(column[name] for column in columns)] for name in columns[0]],
    )
    told = ", ".join(f"version {mount['landlock']}" if mount["landlock"] else "none" for mount in medium["mounts"])
    screen.say(
        f"Landlock: the kernel has version {medium['kernel_landlock'] or 'none'}; it tells of no process whether it is"
        f" held by it. What the session processes said when they had asked for it: {told}"
    )
    if all(each["role"] != "appliance" for each in medium["processes"]):
        screen.say("No virtual machine runs at the moment: nobody has asked it anything.")
    screen.say("")


def _title(process: dict[str, Any]) -> str:
    role = str(process["role"])
    if process["program"].startswith("qemu"):
        return "QEMU" if role == "appliance" else "QEMU, container"
    return role


def _rows(process: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the table's rows for one process: names and words."""
    seen = Layers(**{name: process[name] for name in Layers.__dataclass_fields__})
    yield "process", str(seen.pid)
    yield "user", f"{seen.uid}, map {'; '.join(seen.uid_map)}"
    yield "own namespaces", " ".join(seen.namespaces) or "none"
    yield "capabilities", ", ".join(f"{name} {mask:x}" for name, mask in seen.capabilities.items()) or "none"
    yield "no new privileges", "yes" if seen.no_new_privileges else "no"
    yield "seccomp", f"{seen.seccomp}, {seen.seccomp_filters}" if seen.seccomp_filters else seen.seccomp
    for name, value in seen.limits.items():
        yield name, size(int(value)) if value.isdigit() and name in ("address space", "locked memory") else value
    yield "group limits", "\n".join(f"{Path(file).name} {value}" for file, value in seen.group_limits.items()) or "none"
    yield "descriptors", "\n".join(f"{count} {kind}" for kind, count in seen.descriptors.items())
