"""A stick whose partition table the host does not parse: what the virtual machine finds inside decides and shows."""

import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mountsafe.errors import ExitCode
from tests.done import Done
from tests.hotplug.daemon import MEDIA, RULES, Daemon, label
from tests.hotplug.machine import USER, Machine, wait_for
from tests.hotplug.media import become
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
        desktop.wait_for(f"{name} is open", "vfat, read-write, in a virtual machine")
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


def test_what_is_locked_in_a_partition_says_what_it_is(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    with machine.loop(stick(tmp_path / "stick.img", image("encrypted-luks"))) as device:
        told = become(machine, device, "locked")
        assert (told["fstype"], told["locked"], told["problem"]) == ("crypto_LUKS", "LUKS2", "")
        assert "it is encrypted: LUKS2 (mountsafe unlock" in machine.mountsafe("devices").ok().out


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


# --- by hand ---------------------------------------------------------------------------------------------------------
def as_user(machine: Machine, *words: str) -> Done:
    """Run mountsafe as the user, who needs a place for records."""
    place = "/run/user-of-tests"
    machine.run("install", "-d", "-o", USER, "-m", "700", place).ok()
    return machine.run("env", f"XDG_RUNTIME_DIR={place}", sys.executable, "-m", "mountsafe", *words, user=True)


def test_what_the_daemon_shows_is_listed_and_mounting_it_says_where(
    daemon: Daemon, image: Image, tmp_path: Path
) -> None:
    machine = daemon.machine
    with machine.loop(stick(tmp_path / "stick.img", image("vfat"), image("ext2"))) as device:
        become(machine, device, "open")
        shown = [(f"{MEDIA}/{label('vfat')}", "vfat"), (f"{MEDIA}/{label('ext2')}", "ext2")]
        for mountsafe in (machine.mountsafe, lambda *words: as_user(machine, *words)):
            (told,) = mountsafe("list", "--json").ok().json()
            assert (told["source"], told["shown_by"], told["user"]) == (device, "daemon", USER)
            assert [(each["target"], each["fstype"]) for each in told["mounts"]] == shown
            assert [line.split()[-1] for line in mountsafe("list").ok().out.splitlines()] == ["BY", "daemon", "daemon"]
            again = mountsafe("mount", "--json", device).ok().json()
            assert [each["target"] for each in again["mounts"]] == [target for target, _ in shown]
            assert f"{device} is already shown on {shown[0][0]}" in mountsafe("mount", device).ok().out
        assert len(daemon.mounts()) == len(shown)


REFUSED = '[[rule]]\nname = "no FAT"\nverdict = "refuse"\nfstype = "vfat"\nreason = "not here"\n'


def test_by_hand_nothing_is_shown_that_the_policy_refuses(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    disk = stick(tmp_path / "two.img", image("vfat"), image("ext2"))
    with rules(machine, REFUSED):
        done = machine.mountsafe("mount", "--json", image("vfat"), "/run/by-hand")
        assert done.code == ExitCode.SOURCE
        assert done.json()["error"]["message"] == 'the policy refuses vfat.img: not here (rule "no FAT")'
        assert machine.run("ls", "/run/by-hand").code != 0
        part = machine.mountsafe("mount", "--json", disk, "/run/by-hand")
        try:
            assert part.code == ExitCode.PARTIAL
            assert [each["fstype"] for each in part.json()["mounts"]] == ["ext2"]
            assert "the policy refuses it: not here" in part.json()["missing"][0]["message"]
        finally:
            machine.mountsafe("unmount", disk)
    with rules(machine, REFUSED.replace("refuse", "ask")):
        done = machine.mountsafe("mount", image("vfat"), "/run/by-hand").ok()  # who names it has answered
        assert "the policy asks before it opens vfat.img: not here" in done.err
        machine.mountsafe("unmount", image("vfat")).ok()
