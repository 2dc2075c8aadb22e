"""The generated rules on a machine with real udev, polkit and udisks: nobody mounts what they manage."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hotplug.machine import Machine

Image = Callable[[str], Path]

MANAGE_LOOPS = """
[[rule]]
name = "this one is the system's"
verdict = "kernel"
bus = "loop"
fstype = "xfs"

[[rule]]
name = "images as media"
verdict = "sandbox"
bus = "loop"
"""


@pytest.fixture
def rules(machine: Machine) -> Iterator[Machine]:
    """The rules are in force, and gone afterwards."""
    machine.write("/etc/mountsafe/policy.toml", MANAGE_LOOPS)
    machine.mountsafe("policy", "install").ok()
    yield machine
    machine.mountsafe("policy", "uninstall", "--force").ok()
    machine.remove("/etc/mountsafe/policy.toml")


def mount_by_udisks(machine: Machine, device: str, user: bool) -> str:
    """Return "" if udisks mounts it (it is unmounted again), or udisks's refusal."""
    done = machine.run("udisksctl", "mount", "--no-user-interaction", "-b", device, user=user)
    if done.code == 0:
        machine.run("udisksctl", "unmount", "--no-user-interaction", "-b", device, user=user).ok()
        return ""
    return done.err.strip()


def test_without_rules_udisks_mounts_what_it_is_told(machine: Machine, image: Image) -> None:
    """Else the refusals below would prove nothing."""
    with machine.loop(image("ext4")) as device:
        assert machine.properties(device)["ID_FS_TYPE"] == "ext4"
        assert mount_by_udisks(machine, device, user=True) == ""
        assert mount_by_udisks(machine, device, user=False) == ""


def test_udisks_mounts_nothing_that_is_managed(rules: Machine, image: Image) -> None:
    with rules.loop(image("ext4")) as device:
        found = rules.properties(device)
        assert (found["MOUNTSAFE_FS_TYPE"], found["MOUNTSAFE_VERDICT"]) == ("ext4", "sandbox")
        assert (found["ID_FS_TYPE"], found["UDISKS_IGNORE"], found["SYSTEMD_READY"]) == ("mountsafe", "1", "0")
        for user in (True, False):
            assert "is not a mountable filesystem" in mount_by_udisks(rules, device, user)
        assert "ext4" in rules.mountsafe("policy", "explain", device).ok().out


def test_a_change_of_the_device_does_not_show_it_again(rules: Machine, image: Image) -> None:
    with rules.loop(image("ext4")) as device:
        rules.run("udevadm", "trigger", "--action=change", "--settle", f"--name-match={device}").ok()
        found = rules.properties(device)
        assert (found["ID_FS_TYPE"], found["MOUNTSAFE_FS_TYPE"]) == ("mountsafe", "ext4")


def test_polkit_refuses_even_what_udisks_would_mount(rules: Machine, image: Image) -> None:
    """The backstop: a type that udisks takes for a file system's, with our mask's name."""
    rules.write("/etc/udev/rules.d/99-unmask.rules", 'ENV{MOUNTSAFE_MANAGED}=="1", ENV{ID_FS_USAGE}="filesystem"\n')
    rules.run("udevadm", "control", "--reload").ok()
    try:
        with rules.loop(image("ext4")) as device:
            assert "NotAuthorized" in mount_by_udisks(rules, device, user=True)
    finally:
        rules.remove("/etc/udev/rules.d/99-unmask.rules")
        rules.run("udevadm", "control", "--reload").ok()


def test_what_a_rule_leaves_to_the_system_is_mounted_as_before(rules: Machine, image: Image) -> None:
    with rules.loop(image("xfs")) as device:
        assert rules.properties(device)["ID_FS_TYPE"] == "xfs"
        assert mount_by_udisks(rules, device, user=True) == ""


def test_check_finds_nothing_where_the_rules_are_in_force(rules: Machine, image: Image) -> None:
    with rules.loop(image("ext4")) as device:
        # As root it tells that root's mount(8) is not stopped: nothing claims the device yet.
        assert rules.findings() == [(device.removeprefix("/dev/"), "root, with mount(8)")]
        assert rules.mountsafe("policy", "check").code == 1
    assert rules.findings() == []
    if not rules.others:
        assert rules.mountsafe("policy", "check").ok().out.startswith("no findings")


def test_check_finds_who_could_still_mount(rules: Machine, image: Image) -> None:
    rules.write("/etc/udev/rules.d/99-unmask.rules", 'ENV{MOUNTSAFE_FS_TYPE}=="ext4", ENV{ID_FS_TYPE}="ext4"\n')
    rules.run("udevadm", "control", "--reload").ok()
    try:
        with rules.loop(image("ext4")) as device:
            found = rules.findings()
            assert ("", "udev") in found
            assert (device.removeprefix("/dev/"), "udisks, desktops") in found
    finally:
        rules.remove("/etc/udev/rules.d/99-unmask.rules")
        rules.run("udevadm", "control", "--reload").ok()


def test_check_finds_a_device_that_was_there_before(machine: Machine, image: Image) -> None:
    with machine.loop(image("ext4")) as device:
        machine.write("/etc/mountsafe/policy.toml", MANAGE_LOOPS)
        machine.mountsafe("policy", "install").ok()
        try:
            found = machine.findings()
            name = device.removeprefix("/dev/")
            assert (name, "udisks, desktops") in found
            assert (name, "udisks") in found
        finally:
            machine.mountsafe("policy", "uninstall").ok()
            machine.remove("/etc/mountsafe/policy.toml")


def test_install_refuses_to_hide_what_the_machine_uses(machine: Machine, image: Image, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    machine.write("/etc/mountsafe/policy.toml", MANAGE_LOOPS)
    try:
        with machine.loop(image("ext4")) as device:
            machine.run("mount", "-o", "ro", device, tmp_path / "mnt").ok()
            done = machine.mountsafe("policy", "install")
            assert done.code == 4
            assert f"{device.removeprefix('/dev/')} is mounted on {tmp_path}/mnt" in done.err
            assert machine.run("test", "-e", "/etc/udev/rules.d/61-mountsafe.rules").code == 1
            machine.run("umount", tmp_path / "mnt").ok()
            machine.mountsafe("policy", "install").ok()
            machine.mountsafe("policy", "uninstall").ok()
    finally:
        machine.remove("/etc/mountsafe/policy.toml")


def test_after_uninstall_udisks_mounts_as_before(machine: Machine, image: Image) -> None:
    machine.write("/etc/mountsafe/policy.toml", MANAGE_LOOPS)
    machine.mountsafe("policy", "install").ok()
    shown = machine.mountsafe("policy", "uninstall").ok().out
    assert "remove  /etc/udev/rules.d/61-mountsafe.rules" in shown
    machine.remove("/etc/mountsafe/policy.toml")
    assert machine.run("sh", "-c", "ls /etc/udev/rules.d /etc/modprobe.d").ok().out.split() == [
        "/etc/modprobe.d:",
        "/etc/udev/rules.d:",
    ]
    with machine.loop(image("ext4")) as device:
        assert mount_by_udisks(machine, device, user=True) == ""


def test_strict_mode_keeps_the_kernel_from_loading_a_parser(machine: Machine, image: Image) -> None:
    asked = ("modprobe", "--dry-run", "--verbose", "jfs")
    machine.mountsafe("policy", "install", "--strict", "critical").ok()
    try:
        assert "/bin/false" in machine.run(*asked).out
        assert machine.mountsafe("policy", "diff").ok().out == ""
    finally:
        machine.mountsafe("policy", "uninstall").ok()
    assert "/bin/false" not in machine.run(*asked).out
