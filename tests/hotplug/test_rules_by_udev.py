"""The generated rules, run by udev itself over recorded kinds of devices: it decides what `Policy.decide` decides.

umockdev shows udev a /sys with one device in it; `udevadm test` runs all of the machine's rules over it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mountsafe.policy.facts import facts_of_device
from mountsafe.policy.rules import Policy, Verdict
from tests.hotplug.machine import Machine
from tests.pure.test_policy_facts import DEVICES, FILE_SYSTEM

MANY = """
[[rule]]
name = "one stick"
verdict = "kernel"
vendor = "SanDisk"
serial = "4C53"
label = ["B", "A"]

[[rule]]
name = "cards"
verdict = "refuse"
bus = ["mmc", "optical"]
external = true

[[rule]]
name = "changeable"
verdict = "ask"
removable = true
risk = ["medium", "unknown"]
"""


def tree(name: str, properties: dict[str, str], removable: tuple[str, ...]) -> tuple[str, str]:
    """A description of a device for umockdev, and its path in /sys."""
    disk = re.sub(r"(?<=\d)p\d+$|(?<=[a-z])\d+$", "", name) if not name.startswith(("sr", "fd", "loop")) else name
    place, parts = "/devices/pci0000:00/0000:00:01.0", []
    for number, value in reversed(list(enumerate(removable[1:], 1))):
        usb = "usb" if properties.get("ID_USB_DRIVER") else "pci"
        place += f"/{usb}{number}"
        parts.append(f"P: {place}\nE: SUBSYSTEM={usb}\nE: DEVTYPE={usb}_device\nA: removable={value}\n")
    if "MMC_TYPE" in properties:
        place += "/mmc0:0001"
        parts.append(
            f"P: {place}\nE: SUBSYSTEM=mmc\nE: MMC_TYPE={properties['MMC_TYPE']}\nA: type={properties['MMC_TYPE']}\n"
        )
    place += f"/block/{disk}"
    own = removable[0] if removable else "0"
    kinds = {disk: "disk"} | ({name: "partition"} if name != disk else {})
    for node, kind in kinds.items():
        place += "" if node == disk else f"/{node}"
        told = {**(FILE_SYSTEM if node == name else {}), **properties}
        lines = [f"E: {key}={value}" for key, value in told.items() if key != "MMC_TYPE"]
        attributes = ["A: size=2097152"] + ([f"A: removable={own}"] if kind == "disk" else ["A: partition=1"])
        head = [f"P: {place}", f"N: {node}", f"E: DEVNAME=/dev/{node}", "E: SUBSYSTEM=block", f"E: DEVTYPE={kind}"]
        parts.append("\n".join([*head, "E: MAJOR=8", "E: MINOR=200", *lines, *attributes]) + "\n")
    return "\n".join(parts), f"/sys{place}"


@pytest.fixture(scope="module", params=["", MANY], ids=["no rule", "many rules"])
def policy(request: pytest.FixtureRequest, machine: Machine, program: Callable[[str], str]) -> Iterator[Policy]:
    program("umockdev-run")
    machine.write("/etc/mountsafe/policy.toml", request.param)
    machine.mountsafe("policy", "install").ok()
    yield Policy.parse([("policy.toml", request.param)])
    machine.mountsafe("policy", "uninstall").ok()
    machine.remove("/etc/mountsafe/policy.toml")


def verdict_of_udev(machine: Machine, scratch: Path, description: str, path: str) -> tuple[str, str]:
    (scratch / "device").write_text(description)
    machine.remove("/run/udev/data/b8:200")  # `udevadm test` would take up what it has left there the last time
    done = machine.run("umockdev-run", "-d", scratch / "device", "--", "udevadm", "test", "--action=add", path).ok()
    found = dict(re.findall(r"^ *([A-Z_]+)=(.*)$", done.out, re.MULTILINE))  # systemd 257 indents them
    assert found["ID_FS_LABEL"] == "A", done
    return found.get("MOUNTSAFE_VERDICT", "kernel"), found["ID_FS_TYPE"]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
def test_udev_decides_as_the_policy_does(
    machine: Machine, policy: Policy, device: tuple[Any, ...], tmp_path: Path
) -> None:
    name, properties, removable, _, _ = device
    facts = facts_of_device(name, {**FILE_SYSTEM, **properties}, 1 << 30, removable)
    assert facts is not None
    expected = policy.decide(facts).verdict
    verdict, fstype = verdict_of_udev(machine, tmp_path, *tree(name, properties, removable))
    assert verdict == expected
    assert fstype == ("ext4" if expected == Verdict.KERNEL else "mountsafe")


@pytest.mark.parametrize("name", ["dm-0", "md127", "zram0", "ram3", "nbd0"])
def test_udev_leaves_alone_what_is_made_here(machine: Machine, policy: Policy, name: str, tmp_path: Path) -> None:
    assert policy
    assert verdict_of_udev(machine, tmp_path, *tree(name, {}, ("0",))) == ("kernel", "ext4")
