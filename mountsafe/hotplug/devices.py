"""Block devices in udev's database, as facts that a policy can judge: the only module that imports `pyudev`.

Reading it needs no right, and no byte of a medium is read.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pyudev

from mountsafe.errors import ExitCode, UserError
from mountsafe.policy.facts import Facts, facts_of_device
from mountsafe.text import printable, shown_path

log = logging.getLogger(__name__)
SECTOR = 512  # the unit of the sysfs attribute "size", whatever the device's own is


@dataclass(frozen=True, slots=True)
class Device:
    """A block device as udev knows it. `disk`: the name of the whole disk; `facts` None: it is no medium.

    `drive`: the folder in /sys of the USB device that it is behind, "" if there is none.
    `properties` are fit to be shown: many of them are the device's own words, or its medium's.
    """

    name: str
    disk: str
    node: str
    number: tuple[int, int]
    properties: dict[str, str]
    links: tuple[str, ...]
    facts: Facts | None
    settled: bool = True  # udev has dealt with it
    drive: str = ""

    @property
    def sequence(self) -> int:
        """A number that no other medium of this machine has had since it started; 0 if the kernel does not tell."""
        number = self.properties.get("DISKSEQ", "")
        return int(number) if number.isdecimal() else 0

    @property
    def managed(self) -> bool:
        """Whether the installed udev rules have masked it."""
        return self.properties.get("MOUNTSAFE_MANAGED") == "1"

    def values(self, key: str) -> tuple[str, ...]:
        """Return what a udev match key is compared with: KERNEL, SYMLINK or ENV{...}."""
        if key == "KERNEL":
            return (self.name,)
        if key == "SYMLINK":
            return self.links
        return (self.properties.get(key.removeprefix("ENV{").removesuffix("}"), ""),)


def devices() -> list[Device]:
    """Return all block devices, by name."""
    return sorted(map(_device, pyudev.Context().list_devices(subsystem="block")), key=lambda device: device.name)


def of_disk(name: str) -> list[Device]:
    """Return a disk and its partitions, the disk first; nothing if it is not there."""
    context = pyudev.Context()
    try:
        disk = pyudev.Devices.from_name(context, "block", name)
        found = [_device(each) for each in context.list_devices(subsystem="block").match_parent(disk)]
    except (pyudev.DeviceNotFoundError, OSError):
        return []
    return sorted(found, key=lambda device: (device.name != device.disk, device.name))


def facts_of(path: Path) -> list[Facts]:
    """Return the facts of a block device and of its partitions; those that are no medium are left out.

    Raises UserError (SOURCE) if udev does not know it.
    """
    context = pyudev.Context()
    try:
        device = pyudev.Devices.from_device_file(context, os.path.realpath(path))
    except (pyudev.DeviceNotFoundError, OSError, ValueError) as error:
        shown = shown_path(path)
        raise UserError(f"udev does not know {shown}", "lsblk shows what is there.", ExitCode.SOURCE) from error
    found = [_facts(each) for each in context.list_devices(subsystem="block").match_parent(device)]
    return sorted((facts for facts in found if facts is not None), key=lambda facts: facts.device)


def is_to_be_detached(name: str) -> bool | None:
    """Whether a loop device goes as soon as nobody has it open; None if it is no loop device.

    `losetup -d` sets that on a device that somebody has open. Who sets it for other reasons has it mounted.
    """
    try:
        return Path("/sys/block", name, "loop/autoclear").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return None


def cut_power(drive: str) -> None:
    """Let the USB port of a drive cut its power, as udisks does: it can be pulled out, and is gone until then."""
    try:
        Path(drive, "remove").write_text("1", encoding="ascii")
    except OSError as error:
        log.warning("the drive keeps its power: %s", error)


def disk_of(device: pyudev.Device) -> str:
    """Return the name of the whole disk that a block device is, or is a part of; by its path, so nothing is read."""
    if device.device_type != "partition":
        return str(device.sys_name)
    return os.path.basename(os.path.dirname(str(device.device_path))).replace("!", "/")


def _device(device: pyudev.Device) -> Device:
    number = device.device_number
    return Device(
        name=device.sys_name,
        disk=disk_of(device),
        node=device.device_node or "",
        number=(os.major(number), os.minor(number)),
        properties=_properties(device),
        links=tuple(link.removeprefix("/dev/") for link in device.device_links),
        facts=_facts(device),
        settled=bool(device.is_initialized),
        drive=usb.sys_path if (usb := device.find_parent("usb", "usb_device")) else "",
    )


def _facts(device: pyudev.Device) -> Facts | None:
    above = list(device.ancestors)
    removable = [_attribute(each, "removable") for each in (device, *above)]
    properties: dict[str, str] = {}
    for each in above:
        if each.subsystem == "mmc":  # whether it is a card or soldered in
            properties.update(_properties(each))
    properties.update(_properties(device))
    size = int(_attribute(device, "size") or 0) * SECTOR
    subsystems = {each.subsystem for each in above}
    return facts_of_device(device.sys_name, properties, size, [each for each in removable if each], subsystems)


def _properties(device: pyudev.Device) -> dict[str, str]:
    """Return udev's properties of a device, fit to be shown: many of them are its own words, or its medium's."""
    return {str(key): printable(str(value), 500) for key, value in device.properties.items()}


def _attribute(device: pyudev.Device, name: str) -> str:
    try:
        return str(device.attributes.asstring(name))
    except (KeyError, OSError, UnicodeDecodeError):
        return ""
