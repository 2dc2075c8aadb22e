"""Which devices are media, and which of them are external: recorded udev properties of real kinds of devices."""

from typing import Any

import pytest

from mountsafe.policy.facts import facts_of_device
from mountsafe.policy.rules import Policy, Verdict

FILE_SYSTEM = {"ID_FS_USAGE": "filesystem", "ID_FS_TYPE": "ext4", "ID_FS_LABEL": "A", "ID_FS_UUID": "1"}
# name -> (device, properties, "removable" of its ancestors, bus, external)
DEVICES: dict[str, tuple[str, dict[str, str], tuple[str, ...], str, bool]] = {
    "a USB stick": (
        "sdb1",
        {"ID_BUS": "usb", "ID_USB_DRIVER": "usb-storage", "ID_VENDOR": "SanDisk", "ID_SERIAL_SHORT": "4C53"},
        ("1", "removable"),
        "usb",
        True,
    ),
    "a USB stick in a port that is inside": (
        "sdb1",
        {"ID_BUS": "usb", "ID_USB_DRIVER": "usb-storage"},
        ("1", "fixed"),
        "usb",
        True,
    ),
    "a USB disk whose bridge says ata": (
        "sdc1",
        {"ID_BUS": "ata", "ID_USB_DRIVER": "uas", "ID_PATH": "pci-0000:00:14.0-usb-0:2:1.0-scsi-0:0:0:0"},
        ("0", "removable"),
        "usb",
        True,
    ),
    "the same, known by its place alone": (
        "sdc",
        {"ID_BUS": "ata", "ID_PATH": "pci-0000:00:14.0-usb-0:2:1.0-scsi-0:0:0:0"},
        ("0",),
        "usb",
        True,
    ),
    "an SD card": ("mmcblk0p1", {"MMC_TYPE": "SD", "ID_DRIVE_FLASH_SD": "1"}, ("0",), "mmc", True),
    "an eMMC chip": ("mmcblk1p2", {"MMC_TYPE": "MMC"}, ("0", "fixed"), "mmc", False),
    "an NVMe disk": ("nvme0n1p3", {"ID_SERIAL": "Samsung_SSD"}, ("0", "fixed"), "nvme", False),
    "an NVMe disk behind Thunderbolt": ("nvme1n1p1", {}, ("0", "fixed", "removable"), "nvme", True),
    "a SATA disk": ("sda2", {"ID_BUS": "ata", "ID_PATH": "pci-0000:00:17.0-ata-1"}, ("0",), "ata", False),
    "a SATA tray whose media change": ("sdd1", {"ID_BUS": "ata"}, ("1",), "ata", True),
    "a virtual machine's disk": ("vda1", {}, ("0",), "", False),
    "an optical disc": ("sr0", {"ID_CDROM": "1", "ID_BUS": "ata", "ID_CDROM_MEDIA": "1"}, ("1",), "optical", True),
    "a floppy": ("fd0", {}, ("1",), "floppy", True),
    "an image on a loop device": ("loop3", {}, ("0",), "loop", False),
    "a disk on a bus nobody knows": ("sde1", {"ID_BUS": "ieee1394"}, ("0",), "ieee1394", True),
    "a USB disk that the hardware database calls internal": (
        "sdf1",
        {"ID_USB_DRIVER": "usb-storage", "ID_INTEGRATION": "internal"},
        ("0",),
        "usb",
        False,
    ),
}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
def test_what_is_external_goes_to_a_virtual_machine_and_nothing_else(device: tuple[Any, ...]) -> None:
    name, properties, removable, bus, external = device
    facts = facts_of_device(name, {**FILE_SYSTEM, **properties}, 1 << 30, removable)
    assert facts is not None
    assert (facts.bus, facts.external, facts.fstype, facts.label) == (bus, external, "ext4", "A")
    assert Policy.parse([]).decide(facts).verdict == (Verdict.SANDBOX if external else Verdict.KERNEL)


@pytest.mark.parametrize("name", ["dm-0", "md127", "zram0", "ram3", "nbd0"])
def test_what_is_made_here_is_no_medium(name: str) -> None:
    assert facts_of_device(name, FILE_SYSTEM, 1 << 30) is None


def test_an_empty_loop_device_is_no_medium() -> None:
    assert facts_of_device("loop0", {}, 0) is None


def test_what_hangs_on_usb_is_external_whatever_it_says_itself() -> None:
    facts = facts_of_device("sda", {"ID_BUS": "ata"}, 1, ["0"], ["scsi", "usb", "pci"])
    assert facts is not None
    assert (facts.bus, facts.external) == ("usb", True)


@pytest.mark.parametrize("fstype", ["jfs", ""])
def test_the_type_is_known_when_it_is_masked(fstype: str) -> None:
    masked = {"ID_FS_TYPE": "mountsafe", "MOUNTSAFE_FS_TYPE": fstype, "MOUNTSAFE_MANAGED": "1"}
    facts = facts_of_device("sdb1", masked, 1)
    assert facts is not None
    assert facts.fstype == fstype
