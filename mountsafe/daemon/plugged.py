"""Which medium is plugged in, and whether it is still the same one."""

from mountsafe.daemon.keeper import Keeper
from mountsafe.errors import ExitCode, UserError
from mountsafe.hotplug.devices import Device, devices, of_disk
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision
from mountsafe.system.inuse import InUse
from mountsafe.text import printable


def plugged_in(device: str) -> tuple[Device, list[Device], Facts]:
    """Return a device; the disk that it is, or is a part of, with its parts; and its facts. Raises UserError."""
    name = device.removeprefix("/dev/")
    found = next((each for each in devices() if each.name == name), None)
    nodes = of_disk(found.disk) if found else []
    if found is None or not nodes or nodes[0].facts is None:
        raise UserError(f"{printable(name)} is no medium that is plugged in", "lsblk shows them.", ExitCode.SOURCE)
    return found, nodes, nodes[0].facts


def is_idle(drive: str) -> bool:
    """Whether nothing of a drive is in use."""
    in_use = InUse()
    return not any(in_use.why(each.name, each.number) for each in devices() if each.drive == drive)


def alike(one: Decision, other: Decision) -> bool:
    """Whether two decisions come to the same."""
    return (one.verdict, one.wished) == (other.verdict, other.wished)


def stands(keeper: Keeper, node: Device, decision: Decision) -> bool:
    """Whether a medium is to be kept as it is: the same one still, of which the same is known.

    When another comes into the same device the kernel counts it at once, and for a moment udev knows the last one's
    words: what was decided by them is decided anew.
    """
    return same(keeper.device, node) and (keeper.device.facts == node.facts or keeper.decided == decision)


def same(kept: Device, node: Device) -> bool:
    """Whether it is the same medium still."""
    facts, now = kept.facts, node.facts
    if facts is None or now is None:
        return False
    return (kept.number, kept.sequence, facts.size) == (node.number, node.sequence, now.size)
