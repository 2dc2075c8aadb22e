"""What the daemon tells of one medium. There may be others: one that is going, or what is lost of one that was."""

from typing import Any

from tests.hotplug.machine import Machine, wait_for

NOT_KEPT = "not kept"  # the state of what it tells nothing of


def medium(machine: Machine, device: str) -> dict[str, Any]:
    """What is told of a device (/dev/...)."""
    name = device.removeprefix("/dev/")
    found: list[dict[str, Any]] = machine.mountsafe("devices", "--json").ok().json()
    nothing = {"device": name, "state": NOT_KEPT, "lost": "", "changing": []}
    return next((each for each in found if each["device"] == name), nothing)


def state(machine: Machine, device: str) -> str:
    """The state that it is in."""
    return str(medium(machine, device)["state"])


def become(machine: Machine, device: str, wanted: str) -> dict[str, Any]:
    """Wait until it is in a state; return what is told of it then."""
    wait_for(lambda: state(machine, device) == wanted, wanted, lambda: str(medium(machine, device)))
    return medium(machine, device)
