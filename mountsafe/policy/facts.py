"""What a policy may ask about a medium, and which of it comes from the medium itself.

Pure: properties and attributes in, `Facts` out. Where they are read from is the business of whoever has a device.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mountsafe.policy.risk import ENCRYPTED, Risk, risk_of


@dataclass(frozen=True, slots=True)
class Facts:
    """One file system on one device, or an image. Size in bytes.

    `fstype`, `label` and `uuid` are the medium's own words; `vendor`, `model` and `serial` are the device's. All can be
    made to say anything. `unlocked`: it lies in something encrypted.
    """

    device: str = ""
    fstype: str = ""
    label: str = ""
    uuid: str = ""
    bus: str = ""
    external: bool = True
    removable: bool = False
    vendor: str = ""
    model: str = ""
    serial: str = ""
    size: int = 0
    seat: str = ""
    locked: bool = False
    unlocked: bool = False

    @property
    def risk(self) -> Risk:
        """How risky its type is to a kernel."""
        return risk_of(self.fstype)

    @property
    def encrypted(self) -> bool | None:
        """Whether nobody reads it without a key; None where its type is not known (yet)."""
        if self.unlocked or self.fstype in ENCRYPTED:
            return True
        return False if self.fstype else None


# What never is a medium somebody plugged in: memory, and what is made of other devices.
MADE_HERE = ("ram", "zram", "dm-", "md", "nbd", "bcache", "drbd", "rbd", "zd", "pmem", "mtd", "ubiblock")
# Disks that a hypervisor gives to a virtual machine; those on other buses are told by their bus.
PARAVIRTUAL = ("vd", "xvd")
INSIDE_BUSES = ("ata", "nvme", "scsi", "virtio")


def facts_of_device(
    name: str,
    properties: Mapping[str, str],
    size: int,
    ancestors_removable: Sequence[str] = (),
    subsystems: Collection[str] = (),
) -> Facts | None:
    """Return the facts of a block device, or None for one that is made by this machine and no medium.

    `properties` as udev knows them; `ancestors_removable`: the sysfs attribute "removable" of the device's disk and of
    what that hangs on, nearest first: "0" and "1" of a disk tell whether its media can be changed, "removable" of a bus
    device that all of it can be unplugged (Documentation/ABI/testing/sysfs-devices-removable). `subsystems`: those of
    what it hangs on.
    """
    if name.startswith(MADE_HERE) or (name.startswith("loop") and not size):
        return None
    bus = _bus(name, properties, subsystems)
    masked = properties.get("MOUNTSAFE_MANAGED") == "1"
    return Facts(
        device=name,
        fstype=properties.get("MOUNTSAFE_FS_TYPE" if masked else "ID_FS_TYPE", ""),
        label=properties.get("ID_FS_LABEL", ""),
        uuid=properties.get("ID_FS_UUID", ""),
        bus=bus,
        external=_external(name, bus, properties, ancestors_removable),
        removable="1" in ancestors_removable,
        vendor=properties.get("ID_VENDOR", ""),
        model=properties.get("ID_MODEL", ""),
        serial=properties.get("ID_SERIAL_SHORT") or properties.get("ID_SERIAL", ""),
        size=size,
        seat=properties.get("ID_SEAT", "seat0"),
    )


def _bus(name: str, properties: Mapping[str, str], subsystems: Collection[str]) -> str:
    # A disk behind a USB bridge says "ata" in ID_BUS: its own words. Where it is plugged in is the kernel's word.
    if "usb" in subsystems or properties.get("ID_USB_DRIVER") or "-usb-" in properties.get("ID_PATH", ""):
        return "usb"
    for prefix, bus in (("mmcblk", "mmc"), ("nvme", "nvme"), ("loop", "loop"), ("sr", "optical"), ("fd", "floppy")):
        if name.startswith(prefix):
            return bus
    return properties.get("ID_BUS", "")


def _external(name: str, bus: str, properties: Mapping[str, str], ancestors_removable: Sequence[str]) -> bool:
    """What is not clearly inside the machine is external."""
    if properties.get("ID_INTEGRATION") in ("internal", "external"):
        return properties["ID_INTEGRATION"] == "external"
    if bus == "loop":
        return False  # somebody of this machine made it; a rule may say otherwise
    if bus == "mmc":
        return properties.get("MMC_TYPE") != "MMC"  # that is soldered in; "SD" is a card
    if bus in INSIDE_BUSES or name.startswith(PARAVIRTUAL):
        return "removable" in ancestors_removable or "1" in ancestors_removable
    return True
