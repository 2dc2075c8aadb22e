"""A stick whose partition table the host does not parse: what the virtual machine finds inside decides and shows."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hotplug.daemon import MEDIA, RULES, Daemon, label
from tests.hotplug.machine import USER, Machine, wait_for
from tests.hotplug.test_agent import Desktop, desktop
from tests.hotplug.test_control import call

__all__ = ["desktop"]  # a fixture

Image = Callable[[str], Path]
MIB = 1 << 20
SECTOR = 512
LINUX = 0x83


def stick(path: Path, *contents: Path) -> Path:
    """Write a disk with an MBR and a partition for each file system."""
    entries, parts, start = b"", b"", MIB
    for content in contents:
        data = content.read_bytes()
        data += bytes(-len(data) % MIB)
        entries += struct.pack("<B3sB3sII", 0, bytes(3), LINUX, bytes(3), start // SECTOR, len(data) // SECTOR)
        parts += data
        start += len(data)
    path.write_bytes(bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa" + bytes(MIB - SECTOR) + parts)
    return path


def medium(machine: Machine, device: str) -> dict[str, str]:
    found: list[dict[str, str]] = machine.mountsafe("devices", "--json").ok().json()
    return next((each for each in found if each["device"] == device.removeprefix("/dev/")), {"state": "not kept"})


def become(machine: Machine, device: str, state: str) -> dict[str, str]:
    wait_for(lambda: medium(machine, device)["state"] == state, state, lambda: str(medium(machine, device)))
    return medium(machine, device)


@contextmanager
def rules(machine: Machine, text: str) -> Iterator[None]:
    machine.write("/etc/mountsafe/policy.toml", text)
    machine.mountsafe("reload").ok()
    try:
        yield
    finally:
        machine.write("/etc/mountsafe/policy.toml", RULES)
        machine.mountsafe("reload").ok()


def test_what_is_inside_is_shown_by_its_name_and_type(
    desktop: Desktop, daemon: Daemon, image: Image, tmp_path: Path
) -> None:
    desktop.start_server()
    desktop.start_agent()
    name = label("vfat")
    with desktop.machine.loop(stick(tmp_path / "stick.img", image("vfat"))) as device:
        daemon.wait_for_mounts(name)
        told = become(desktop.machine, device, "open")
        assert (told["fstype"], told["label"]) == ("vfat", name)
        desktop.wait_for(f"{name} is open", "vfat, read-only, in a virtual machine")
        assert name in desktop.machine.mountsafe("devices").ok().out


def test_several_file_systems_are_all_named(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    with machine.loop(stick(tmp_path / "stick.img", image("vfat"), image("ext4"))) as device:
        told = become(machine, device, "open")
        assert told["fstype"] == "vfat, ext4"
        assert told["label"] == f"{label('vfat')}, {label('ext4')}"


def test_a_type_that_is_refused_is_refused_in_a_partition_as_well(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    with machine.loop(stick(tmp_path / "stick.img", image("jfs"))) as device:
        told = become(machine, device, "refuse")
        assert (told["fstype"], told["reason"], told["mounts"]) == ("jfs", "nobody has that", [])
        assert daemon.mounts() == []
        assert "is refused: nobody has that" in call(machine, "Open", f"string:{device}", user=False).err


def test_what_is_not_refused_beside_it_is_shown(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    with machine.loop(stick(tmp_path / "stick.img", image("jfs"), image("vfat"))) as device:
        told = become(machine, device, "open")
        assert daemon.mounts() == [f"{MEDIA}/{label('vfat')}"]
        assert "1 of its file systems are not shown" in told["problem"]
        assert "the policy refuses it: nobody has that" in told["problem"]


def test_what_is_asked_about_inside_waits_for_an_answer(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    asking = f'[[rule]]\nverdict = "ask"\nbus = "loop"\nlabel = "{label("vfat")}"\nreason = "that label"\n{RULES}'
    with rules(machine, asking), machine.loop(stick(tmp_path / "stick.img", image("vfat"))) as device:
        told = become(machine, device, "ask")
        assert (told["reason"], told["label"]) == ("that label", label("vfat"))
        assert daemon.mounts() == []
        call(machine, "Open", f"string:{device}").ok()
        daemon.wait_for_mounts(label("vfat"))
        become(machine, device, "open")


def test_what_failed_says_what_it_is(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    with machine.loop(stick(tmp_path / "stick.img", image("encrypted-luks"))) as device:
        told = become(machine, device, "failed")
        assert told["fstype"] == "crypto_LUKS"
        assert told["problem"] == f"partition 1 of {told['device']} is encrypted: crypto_LUKS"
        assert "is encrypted: crypto_LUKS" in machine.mountsafe("devices").ok().out


def test_a_file_managers_eject_is_an_eject(desktop: Desktop, daemon: Daemon, image: Image) -> None:
    desktop.start_server()
    desktop.start_agent()
    machine, name = desktop.machine, label("vfat")
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(name)
        machine.run("umount", f"{MEDIA}/{name}", user=True).ok()
        told = become(machine, device, "unmounted")
        assert told["user"] != ""
        desktop.wait_for(f"{name} can be pulled out", "It is unmounted")
        assert "it can be pulled out" in machine.mountsafe("devices").ok().out
        call(machine, "Eject", f"string:{device}").ok()
        become(machine, device, "ejected")
        assert "is ejected" in call(machine, "Open", f"string:{device}", user=False).err


def test_opening_waits_and_says_where(daemon: Daemon, image: Image) -> None:
    machine, name = daemon.machine, label("vfat")
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(name)
        machine.run("umount", f"{MEDIA}/{name}", user=True).ok()
        become(machine, device, "unmounted")
        assert machine.mountsafe("open", device, "--json").ok().json()["mounts"] == [f"{MEDIA}/{name}"]
        assert daemon.mounts() == [f"{MEDIA}/{name}"]
        again = machine.mountsafe("open", device).ok()
        assert again.out == f"{device.removeprefix('/dev/')} is open on {MEDIA}/{name}\n"


def test_what_a_rule_hides_is_hidden_though_only_the_guest_can_tell_its_type(
    daemon: Daemon, image: Image, tmp_path: Path
) -> None:
    hidden = f"/run/mountsafe/hidden/{USER}/{label('romfs')}"
    with daemon.machine.loop(stick(tmp_path / "stick.img", image("romfs"))):
        daemon.wait_for_words(f"is on {hidden}")
        assert daemon.mounts() == []
    wait_for(lambda: daemon.machine.run("ls", hidden).code != 0, "its folder's end")
