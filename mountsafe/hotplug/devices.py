"""Block devices in udev's database, as facts that a policy can judge: the only module that imports `pyudev`.

Reading it needs no right, and no byte of a medium is read.
"""

import os
from pathlib import Path

import pyudev

from mountsafe.errors import ExitCode, UserError
from mountsafe.policy.facts import Facts, facts_of_device
from mountsafe.text import printable

SECTOR = 512  # the unit of the sysfs attribute "size", whatever the device's own is


def facts_of(path: Path) -> list[Facts]:
    """Return the facts of a block device and of its partitions; those that are no medium are left out.

    Raises UserError (SOURCE) if udev does not know it.
    """
    context = pyudev.Context()
    try:
        device = pyudev.Devices.from_device_file(context, os.path.realpath(path))
    except (pyudev.DeviceNotFoundError, OSError, ValueError) as error:
        shown = printable(os.fsencode(path))
        raise UserError(f"udev does not know {shown}", "lsblk shows what is there.", ExitCode.SOURCE) from error
    found = [_facts(each) for each in context.list_devices(subsystem="block").match_parent(device)]
    return sorted((facts for facts in found if facts is not None), key=lambda facts: facts.device)


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
