"""A whole Debian with systemd, udisks and a user at the seat: mountsafe comes, sticks come and go, it goes.

The tests are one story and run in this order, on one machine; each plugs its own stick and pulls it. What the kernel
would say of a mount is seen at the end, when mountsafe is gone.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from images import images
from tests.machine.base import USER
from tests.machine.emulated import Machine
from tests.machine.ways import DEADLINE, FromPackage, Held, Way, held

Image = Callable[[str], Path]
MEDIA = f"/run/media/{USER}"
# On the emulated KVM a virtual machine starts from its saved state in 10 to 40 s, as busy as the host is, and boots in
# 60 to 190 s where that is not taken.
SHOWN_DEADLINE = 480.0
STICK = "/dev/sda"  # the machine's own disk is vda

# Prints what a user sees below a folder: [path, kind, size, hash], names as Latin-1, which keeps every byte.
WALK = """
import hashlib, json, os, sys
top, found = os.fsencode(sys.argv[1]), []
for folder, folders, files in os.walk(top):
    for name in folders + files:
        path = os.path.join(folder, name)
        shown = os.path.relpath(path, top).decode("latin-1")
        if os.path.islink(path):
            found.append([shown, "link", None, None])
        elif os.path.isdir(path):
            found.append([shown, "folder", None, None])
        elif os.path.isfile(path):
            data = open(path, "rb").read()
            found.append([shown, "file", len(data), hashlib.sha256(data).hexdigest()])
print(json.dumps(found))
"""
# What a kernel says when it mounts, or fails to mount, what is on a stick.
KERNEL_WORDS = re.compile(r"(EXT4-fs|FAT-fs|exFAT-fs|hfsplus|hfs:|NTFS|ntfs3).*")
PARSERS = ("hfsplus", "hfs", "vfat", "fat", "exfat", "ntfs3", "fuseblk")


@pytest.fixture(scope="module")
def before(machine: Machine) -> Held:
    """What the machine has without mountsafe."""
    return held(machine)


@pytest.fixture(scope="module", autouse=True)
def installed(machine: Machine, before: Held, way: Way) -> None:
    """As the README tells the user."""
    # As where KVM worked before: then a slow start, of which a host that others use has many, does not mean that it is
    # broken. Whether it works is found out here all the same.
    worked = json.dumps({"verdict": "kvm", "circumstances": []}).encode()
    machine.sh("mkdir -p /var/lib/mountsafe")
    machine.run("tee", "/var/lib/mountsafe/kvm.json", data=worked).ok()
    way.bring(machine)


def is_let_go(machine: Machine) -> bool:
    """Whether no stick is kept any more: until then the kernel gives its name to no other one."""
    told = machine.run("sh", "-c", "mountsafe devices --json")  # it may be uninstalled
    return told.code != 0 or {each["state"] for each in told.json()} <= {"lost"}


@contextmanager
def plugged(machine: Machine, image: Path, written: bool = False, removable: bool = True) -> Iterator[None]:
    """A stick is plugged in and pulled out; no byte of it may change unless it is `written`."""
    before = hashlib.sha256(image.read_bytes()).digest()
    machine.plug("stick", image, removable)
    try:
        yield
        assert written or hashlib.sha256(image.read_bytes()).digest() == before
    finally:
        machine.pull("stick")
        machine.wait_for(lambda: machine.run("test", "-e", STICK).code != 0, "the stick's end")
        machine.wait_for(lambda: mounts(machine) == [], "the end of its mounts")
        machine.wait_for(lambda: is_let_go(machine), "what the service still has of it")


def by_hand(machine: Machine, device: str) -> str:
    """Return why root's mount(8) fails: by mount(2), for of the newer calls Debian 13's prints no reason."""
    return machine.run("env", "LIBMOUNT_FORCE_MOUNT2=always", "mount", "-o", "ro", device, "/mnt").err


def mounts(machine: Machine) -> list[str]:
    """Where mountsafe shows something."""
    return sorted(machine.run("findmnt", "-rn", "-o", "TARGET", "-t", "fuse.mountsafe").out.split())


def units(machine: Machine) -> list[str]:
    """What shows media."""
    told = machine.run("systemctl", "list-units", "--plain", "--no-legend", "mountsafe-medium-*.service")
    return [line.split()[0] for line in told.ok().out.splitlines()]


def notes(machine: Machine) -> list[str]:
    """The records of mounts and of claims."""
    told = machine.sh("ls -A /run/mountsafe/mounts /run/mountsafe/claims")
    return [line for line in told.split() if not line.endswith(":")]


def appliance_is_current(machine: Machine) -> bool:
    """Whether virtual machines start from what is installed now."""
    told = machine.run("mountsafe", "appliance", "info", "--json")
    return told.code == 0 and bool(told.json()["current"])


def states(machine: Machine) -> list[str]:
    """What the daemon says of the media that it keeps."""
    return [each["state"] for each in machine.run("mountsafe", "devices", "--json").ok().json()]


def shown(machine: Machine, *labels: str) -> float:
    """Return how long it took until the user could read a README in each of these."""
    files = [f"{MEDIA}/{label}/README.txt" for label in labels]
    what = f"what is in {', '.join(labels)}"
    return machine.wait_for(lambda: machine.run("cat", *files, user=True).code == 0, what, SHOWN_DEADLINE)


def seen(machine: Machine, folder: str) -> dict[bytes, tuple[object, ...]]:
    """What the user sees below a folder."""
    told = json.loads(machine.run("python3", "-c", WALK, folder, user=True).ok().out)
    return {path.encode("latin-1"): tuple(rest) for path, *rest in told if path != "lost+found"}


def expected(entries: list[images.Entry]) -> dict[bytes, tuple[object, ...]]:
    """What was put there, of the kinds that any user can look at."""
    kinds = {"file", "folder", "link"}
    return {
        entry.path: (entry.kind, *((entry.size, entry.sha256) if entry.kind == "file" else (None, None)))
        for entry in entries
        if entry.kind in kinds
    }


def journal(machine: Machine) -> str:
    """What the service has said since the last boot."""
    return machine.run("journalctl", "--boot", "--unit=mountsafe", "--no-pager", "--output=cat").ok().out


def kernel_mounts(machine: Machine) -> list[str]:
    """The traces of any mount of a stick by this kernel since it booted."""
    words = machine.run("journalctl", "--boot", "--dmesg", "--no-pager", "--output=cat").ok().out
    found = [line for line in words.splitlines() if KERNEL_WORDS.match(line) and "(vda)" not in line]
    found += [name for name in machine.sh("ls /proc/fs/ext4").split() if name != "vda"]
    loaded = {line.split()[0] for line in machine.sh("cat /proc/modules").splitlines()}
    found += sorted(loaded.intersection(PARSERS))
    # Of all processes: one may have a namespace of its own.
    found += machine.sh(
        "cat /proc/[0-9]*/mountinfo 2>/dev/null | grep -E ' - [^ ]+ /dev/sd' | sort -u || true"
    ).splitlines()
    return found


def test_systemd_has_started_the_service(machine: Machine) -> None:
    machine.wait_for(lambda: "watching" in journal(machine), "the service")
    assert machine.run("systemctl", "is-active", "mountsafe").out.strip() == "active"
    assert machine.run("systemctl", "is-enabled", "mountsafe").out.strip() == "enabled"
    assert machine.run("mountsafe", "policy", "check").ok().out.startswith("no findings")


def test_a_stick_is_shown_and_ejected(machine: Machine, image: Image) -> None:
    with plugged(machine, image("hfsplus")):
        machine.tell("plugged in until it can be read, hfsplus", shown(machine, "HFSPLUS"))
        assert mounts(machine) == [f"{MEDIA}/HFSPLUS"]
        logged = machine.sh("cat /run/mountsafe/mounts/*/log")
        assert "virtual machine started with kvm, from its saved state" in logged
        with machine.step("321 files read"):
            found = seen(machine, f"{MEDIA}/HFSPLUS")
        assert found == expected(images.expected("hfsplus"))
        assert kernel_mounts(machine) == []
        (unit,) = units(machine)
        wanted = {"MemoryMax=2147483648", "Slice=mountsafe.slice", "TasksMax=1024"}
        wanted |= {"DevicePolicy=closed", "NoNewPrivileges=yes", "KillMode=mixed"}  # mountsafe-medium-.service.d
        names = ",".join(each.partition("=")[0] for each in wanted)
        assert set(machine.run("systemctl", "show", f"--property={names}", unit).ok().out.split()) == wanted
        with machine.step("mountsafe eject"):
            machine.run("mountsafe", "eject", f"{MEDIA}/HFSPLUS", user=True).ok()
        assert mounts(machine) == []
        machine.wait_for(lambda: machine.run("test", "-e", STICK).code != 0, "the end of the drive's power")
        machine.wait_for(lambda: units(machine) == [], "the end of its processes")


def test_the_users_agent_runs_in_its_unit(machine: Machine) -> None:
    """As far as it can without a desktop: nobody takes notifications yet, so it waits for that."""
    machine.run("systemctl", "--user", "start", "mountsafe-agent", user=True).ok()
    machine.run("sleep", "5")
    told = machine.run("systemctl", "--user", "show", "--property=ActiveState,NRestarts", "mountsafe-agent", user=True)
    assert sorted(told.ok().out.split()) == ["ActiveState=active", "NRestarts=0"]


def test_the_virtual_machine_runs_on_kvm(machine: Machine) -> None:
    findings = {each["what"]: each for each in machine.run("mountsafe", "doctor", "--json").ok().json()}
    assert {each["what"]: each for each in findings.values() if each["state"] != "ok"} == {}
    assert findings["KVM"]["detail"] == "works"


def windows(disk: Path) -> dict[int, tuple[int, int]]:
    """Return the first byte and the size of each partition of an image, by its number."""
    told = subprocess.run(["sfdisk", "--json", disk], check=True, capture_output=True).stdout
    parts = json.loads(told)["partitiontable"]["partitions"]
    return {number: (part["start"] * 512, part["size"] * 512) for number, part in enumerate(parts, 1)}


def test_a_disk_with_partitions_shows_each_and_nobody_else_mounts_it(
    machine: Machine, image: Image, tmp_path: Path
) -> None:
    """One file is saved on it, as a person does who drags it there; another machine's programs read it."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(image("disk-gpt").read_bytes())
    with plugged(machine, disk, written=True):
        machine.tell("plugged in until it can be read, three partitions", shown(machine, "ESP", "DATA", "SHARED"))
        for volume in images.volumes("disk-gpt"):
            if volume.entries:
                assert seen(machine, f"{MEDIA}/{volume.label.decode()}") == expected(volume.entries)
        for user in (True, False):
            refused = machine.run("udisksctl", "mount", "--no-user-interaction", "-b", f"{STICK}1", user=user)
            assert "is not a mountable filesystem" in refused.err
        # The ext4 one: of another type the parser would be loaded before the device is found to be busy.
        assert "busy" in by_hand(machine, f"{STICK}2")
        assert machine.run("mountsafe", "policy", "check").ok().out.startswith("no findings")
        with machine.step("a file saved, and ejected"):
            machine.sh(f"echo saved >'{MEDIA}/ESP/A file.txt' && cat '{MEDIA}/ESP/A file.txt'", user=True)
            machine.run("mountsafe", "eject", "sda", user=True, seconds=SHOWN_DEADLINE).ok()
        assert kernel_mounts(machine) == []
    before, after = image("disk-gpt").read_bytes(), disk.read_bytes()
    start, size = windows(disk)[1]
    assert (after[:start], after[start + size :]) == (before[:start], before[start + size :])
    read = subprocess.run(["mtype", "-i", f"{disk}@@{start}", "::A file.txt"], check=True, capture_output=True)
    assert read.stdout == b"saved\n"


def test_hostile_names_reach_no_log(machine: Machine, image: Image) -> None:
    with plugged(machine, image("hostile-names")):
        machine.wait_for(lambda: len(mounts(machine)) == 1, "the hostile stick", SHOWN_DEADLINE)
        (folder,) = machine.run("ls", MEDIA, user=True).ok().out.splitlines()
        assert seen(machine, f"{MEDIA}/{folder}") == expected(images.expected("hostile-names"))
        said = machine.run("journalctl", "--boot", "--unit=mountsafe", "--output=json").ok().out
        # The journal stores what is not plain text as a list of bytes.
        messages = [json.loads(line)["MESSAGE"] for line in said.splitlines()]
        assert all(isinstance(message, str) for message in messages)


def test_a_broken_file_system_is_refused_by_the_guest_and_kept_from_the_host(
    machine: Machine, image: Image, tmp_path: Path
) -> None:
    broken = bytearray(image("ext4").read_bytes())
    broken[4096 : 2 * 4096] = bytes(4096)  # the group descriptors, whose checksums the superblock does not cover
    path = tmp_path / "broken.img"
    path.write_bytes(broken)
    before = len(journal(machine).splitlines())
    with plugged(machine, path):
        machine.wait_for(lambda: states(machine) == ["failed"], "the failure", SHOWN_DEADLINE)
        said = "\n".join(journal(machine).splitlines()[before:])
        assert 'cannot mount whole disk: ext4 "EXT4"' in said
        assert mounts(machine) == []
        assert "busy" in by_hand(machine, STICK)
        assert kernel_mounts(machine) == []
    assert machine.run("systemctl", "is-active", "mountsafe").out.strip() == "active"


def test_neither_a_clock_that_jumps_nor_a_sleep_ends_a_mount(machine: Machine, image: Image) -> None:
    """The clock is set, and the whole machine suspended to memory, while a file is open and the caches are empty.

    It is a USB disk: of a stick, which says that its medium is removable, Linux believes after a sleep that it is
    another one.
    """

    def intact() -> bool:
        machine.sh("echo 3 >/proc/sys/vm/drop_caches")
        return seen(machine, f"{MEDIA}/EXT4") == expected(images.expected("ext4"))

    with plugged(machine, image("ext4"), removable=False):
        shown(machine, "EXT4")
        machine.run("systemd-run", f"--uid={USER}", "--unit=holder", "tail", "-f", f"{MEDIA}/EXT4/README.txt").ok()
        virtual = machine.run("pgrep", "-f", "qemu-system").ok().out
        for jump in ("5 hours", "-10 hours", "5 hours"):
            machine.run("date", f"--set={jump}").ok()
            assert intact()
        with machine.step("suspended to memory, awake, all files read"):
            machine.sleep(5.0)
            assert intact()
        assert "PM: suspend exit" in machine.run("journalctl", "--boot", "--dmesg", "--output=cat").out
        # Or none: what was read lay in extents, and a virtual machine that is asked nothing for a minute is let go.
        assert machine.run("pgrep", "-f", "qemu-system").out in (virtual, "")
        assert machine.run("systemctl", "is-active", "holder").out.strip() == "active"
        machine.run("systemctl", "stop", "holder").ok()
        assert "virtual machine was lost" not in journal(machine)
        machine.run("mountsafe", "eject", f"{MEDIA}/EXT4", user=True).ok()
    assert machine.run("systemctl", "is-active", "mountsafe").out.strip() == "active"


def test_a_stick_that_is_pulled_while_it_is_used_is_gone(machine: Machine, image: Image, tmp_path: Path) -> None:
    stick = tmp_path / "stick.img"
    stick.write_bytes(image("ext4").read_bytes())

    def medium() -> dict[str, object]:
        (found,) = machine.run("mountsafe", "devices", "--json").ok().json() or [{}]
        assert isinstance(found, dict)
        return found

    with plugged(machine, stick, written=True):
        shown(machine, "EXT4")
        reader = f"cd {MEDIA}/EXT4 && while cat README.txt; do sleep 0.1; done; exec sleep 300 <README.txt"
        machine.run("systemd-run", f"--uid={USER}", "--unit=reader", "bash", "-c", reader).ok()
        machine.wait_for(lambda: machine.run("systemctl", "is-active", "reader").code == 0, "the reader")
        writer = f"while :; do head -c 1000000 /dev/zero >'{MEDIA}/EXT4/Under way.bin' || exit; done"
        machine.run("systemd-run", f"--uid={USER}", "--unit=writer", "bash", "-c", writer).ok()
        there = f"test -s '{MEDIA}/EXT4/Under way.bin'"
        machine.wait_for(
            lambda: machine.run("sh", "-c", there, user=True).code == 0, "a file under way", SHOWN_DEADLINE
        )
        assert medium()["changing"]
    machine.wait_for(lambda: medium().get("state") == "lost", "what is said of it", SHOWN_DEADLINE)
    assert "Under way.bin" in str(medium()["lost"])
    machine.run("systemctl", "stop", "writer")
    said = journal(machine)
    assert "it was pulled out while it was written to" in said
    assert "sda ext4 EXT4 is let go" in said.splitlines()
    machine.run("systemctl", "stop", "reader")
    machine.wait_for(lambda: notes(machine) == [], "the end of what was noted of it")
    assert machine.run("pgrep", "-f", "qemu-system").code == 1
    assert machine.run("systemctl", "is-active", "mountsafe").out.strip() == "active"


def test_a_stick_that_is_there_at_boot_is_shown(machine: Machine, image: Image) -> None:
    with plugged(machine, image("hfsplus")):
        shown(machine, "HFSPLUS")
        with machine.step("reboot"):
            machine.reboot()
        machine.tell("booted until it can be read", shown(machine, "HFSPLUS"))
        assert seen(machine, f"{MEDIA}/HFSPLUS") == expected(images.expected("hfsplus"))
        assert kernel_mounts(machine) == []


def test_a_newer_package_shows_a_stick_again_and_loses_nothing(
    machine: Machine, image: Image, way: Way, tmp_path: Path
) -> None:
    if not isinstance(way, FromPackage):
        pytest.skip("of a package")
    stick = tmp_path / "stick.img"
    stick.write_bytes(image("ext4").read_bytes())
    with plugged(machine, stick, written=True):
        shown(machine, "EXT4")
        machine.sh(f"echo saved >'{MEDIA}/EXT4/A file.txt'", user=True)
        before = units(machine)
        way.upgrade(machine, tmp_path)
        assert units(machine) != before, "the older one shows it still"
        with machine.step("an appliance is built anew"):
            machine.wait_for(lambda: appliance_is_current(machine), "the new appliance", DEADLINE)
        machine.tell("built until it can be read", shown(machine, "EXT4"))
        assert machine.sh(f"cat '{MEDIA}/EXT4/A file.txt'", user=True) == "saved\n"
        assert kernel_mounts(machine) == []
        machine.run("mountsafe", "eject", "sda", user=True, seconds=SHOWN_DEADLINE).ok()
    read = subprocess.run(["debugfs", "-R", "cat '/A file.txt'", stick], check=True, capture_output=True)
    assert read.stdout == b"saved\n"


def test_no_kernel_mount_ever_happened(machine: Machine) -> None:
    """Of all boots. That these words would have been there is shown by the next test."""
    said = machine.run("journalctl", "--dmesg", "--boot=all", "--no-pager", "--output=cat").ok().out
    assert [line for line in said.splitlines() if KERNEL_WORDS.match(line) and "(vda)" not in line] == []


def test_taking_it_away_leaves_the_machine_as_it_was(machine: Machine, before: Held, way: Way) -> None:
    way.take(machine)
    places = "/etc /usr /opt /run /var/lib"
    # But for the agents' ports, and what apt has of a package that is to be had no more.
    left = machine.sh(f"find {places} -xdev -iname '*mountsafe*' -not -path '/run/udev/*' -not -path '/var/lib/apt/*'")
    assert left.split() == []
    assert machine.run("systemctl", "status", "mountsafe").code == 4, "no such unit"
    after = held(machine)
    assert {what: sorted(after[what] ^ before[what]) for what in before if after[what] != before[what]} == {}


def test_without_it_the_kernel_mounts_sticks_again(machine: Machine, image: Image) -> None:
    for name in ("ext4", "hfsplus"):
        with plugged(machine, image(name), written=True):
            machine.wait_for(lambda: machine.run("udisksctl", "info", "-b", STICK).code == 0, "udisks")
            machine.run("udevadm", "settle")
            machine.run("udisksctl", "mount", "--no-user-interaction", "-b", STICK, user=True).ok()
            mounted = machine.run("findmnt", "-rn", "-o", "FSTYPE,TARGET", STICK).ok().out.strip()
            assert mounted == f"{name} /media/{USER}/{name.upper()}"
            found = kernel_mounts(machine)
            assert any(KERNEL_WORDS.match(line) or line in PARSERS for line in found), found
            assert any("/dev/sda" in line for line in found)
            machine.run("udisksctl", "unmount", "-b", STICK, user=True).ok()
