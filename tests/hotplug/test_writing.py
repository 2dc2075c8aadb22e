"""Media that are written to through the service: saved, ejected, read by others; and what is not to be written to."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.done import Done
from tests.hotplug.daemon import MEDIA, Daemon, label
from tests.hotplug.machine import SETTLE, Machine, wait_for
from tests.hotplug.media import become, medium

Image = Callable[[str], Path]
POLICY = "/etc/mountsafe/policy.d/10-test.toml"
SCRATCH = "/run/pulled"
PHOTO = b"JPEG" * 5000


@pytest.fixture
def copy(image: Image, tmp_path: Path) -> Callable[[str], Path]:
    """An image that may be changed."""

    def copied(name: str) -> Path:
        path = tmp_path / f"{name}.img"
        path.write_bytes(image(name).read_bytes())
        return path

    return copied


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sh(machine: Machine, script: str, *arguments: str) -> Done:
    """Run a script as who is at the seat."""
    return machine.run("sh", "-ec", script, *arguments, user=True)


def opened(daemon: Daemon, device: str, name: str) -> str:
    """Wait until a medium is open; return its folder."""
    daemon.wait_for_mounts(name)
    become(daemon.machine, device, "open")
    return f"{MEDIA}/{name}"


@contextmanager
def rules(daemon: Daemon, text: str) -> Iterator[None]:
    """Have further rules, which come first."""
    daemon.machine.write(POLICY, text)
    daemon.machine.mountsafe("reload").ok()
    try:
        yield
    finally:
        daemon.machine.remove(POLICY)
        daemon.machine.mountsafe("reload").ok()


@contextmanager
def events(machine: Machine, device: str, path: Path) -> Iterator[Callable[[], list[str]]]:
    """Note what udev does with a device; give what it has done so far."""
    with path.open("wb") as file:
        command = machine.command("udevadm", "monitor", "--udev", "--subsystem-match=block")
        watching = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file)

    def lines() -> list[str]:
        machine.run(*SETTLE).ok()
        return [line for line in path.read_text().splitlines() if line.startswith("UDEV ") and device[4:] in line]

    wait_for(lambda: "UDEV - the event" in path.read_text(), "the monitor")
    try:
        yield lines
    finally:
        watching.kill()
        watching.wait()


def by_mtools(path: Path) -> dict[str, bytes]:
    """Return what another reader finds in the folders of a FAT."""
    names = subprocess.run(["mdir", "-/", "-b", "-i", path, "::"], check=True, capture_output=True, text=True).stdout
    files = [name for name in names.split("\n") if name and not name.endswith("/")]
    read = lambda name: subprocess.run(["mtype", "-i", path, name], check=True, capture_output=True).stdout  # noqa: E731
    return {name.removeprefix("::/"): read(name) for name in files}


def by_debugfs(path: Path, name: str) -> bytes:
    return subprocess.run(["debugfs", "-R", f"cat {name}", path], check=True, capture_output=True).stdout


SAVE = 'mkdir "$0/Holidays" && cp /run/photo "$0/Holidays/IMG 1.jpg" && rm "$0/README.txt" && echo new >"$0/notes.txt"'


@pytest.mark.parametrize("name", ["vfat", "ext4"])
def test_what_is_saved_is_there_for_others_once_it_is_ejected(
    daemon: Daemon, copy: Image, name: str, tmp_path: Path
) -> None:
    machine, path = daemon.machine, copy(name)
    daemon.wait_for_mounts()
    machine.write("/run/photo", PHOTO.decode())
    with machine.loop(path) as device:
        folder = opened(daemon, device, label(name))
        assert medium(machine, device)["access"] == "read-write"
        assert "read-write" in machine.mountsafe("devices").ok().out
        claims = daemon.words().count(" is claimed: ")
        with events(machine, device, tmp_path / "events"):
            sh(machine, SAVE, folder).ok()
            assert machine.run("cat", f"{folder}/Holidays/IMG 1.jpg", user=True).ok().out.encode() == PHOTO
            assert "ejected" in machine.mountsafe("eject", device).ok().out
            assert medium(machine, device)["state"] == "ejected"
        assert daemon.words().count(" is claimed: ") == claims, "it was taken for another medium"
        assert medium(machine, device)["lost"] == ""
    daemon.wait_for_mounts()
    if name == "vfat":
        found = by_mtools(path)
        assert (found["Holidays/IMG 1.jpg"], found["notes.txt"]) == (PHOTO, b"new\n")
        assert "README.txt" not in found
        check = ["fsck.vfat", "-n", path]
    else:
        assert by_debugfs(path, '"/Holidays/IMG 1.jpg"') == PHOTO
        assert by_debugfs(path, "/README.txt") == b""
        check = ["e2fsck", "-fn", path]
    subprocess.run(check, check=True, capture_output=True)


def test_what_nobody_writes_to_is_not_changed(daemon: Daemon, copy: Image, tmp_path: Path) -> None:
    machine, path = daemon.machine, copy("ext4")
    before = digest(path)
    daemon.wait_for_mounts()
    with machine.loop(path) as device, events(machine, device, tmp_path / "events") as seen:
        folder = opened(daemon, device, label("ext4"))
        assert medium(machine, device)["access"] == "read-write"
        count = len(seen())
        sh(machine, 'find "$0" -type f -exec cat {} + >/dev/null; test -w "$0"', folder).ok()
        assert machine.run("blockdev", "--getro", device).ok().out.strip() == "1"
        assert len(seen()) == count, "udev saw it written to"
        machine.mountsafe("eject", device).ok()
        assert machine.run("blockdev", "--getro", device).ok().out.strip() == "0"
    assert digest(path) == before


def test_it_is_read_only_for_all_others_but_while_somebody_writes(daemon: Daemon, copy: Image) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with machine.loop(copy("vfat")) as device:
        folder = opened(daemon, device, label("vfat"))
        flag = lambda: machine.run("blockdev", "--getro", device).ok().out.strip()  # noqa: E731
        assert flag() == "1"
        command = machine.command("sh", "-c", 'while sleep 0.2; do echo more >>"$0/log"; done', folder)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as writing:
            try:
                wait_for(lambda: flag() == "0", "the flag's end", daemon.words)
                # It is told when there is a virtual machine that writes, which is later.
                wait_for(lambda: medium(machine, device)["changing"] == [folder], "what is changing", daemon.words)
            finally:
                writing.kill()
        wait_for(lambda: medium(machine, device)["changing"] == [], "the end of writing", daemon.words)
        assert flag() == "1"
        machine.mountsafe("eject", device).ok()


RULE = """
[[rule]]
name = "evidence"
verdict = "sandbox"
bus = "loop"
label = "{}"
access = "{}"
"""


def assert_only_read(machine: Machine, device: str, folder: str) -> None:
    assert medium(machine, device)["access"] == "read-only"
    assert "Read-only file system" in sh(machine, 'touch "$0/new"', folder).err
    mounts = machine.run("cat", "/proc/self/mountinfo").ok().out.splitlines()
    (line,) = (line for line in mounts if line.split(" ")[4] == folder.replace(" ", "\\040"))
    assert line.split(" ")[5].split(",")[0] == "ro"


def test_a_rule_keeps_it_from_being_written_to(daemon: Daemon, copy: Image) -> None:
    machine, path = daemon.machine, copy("vfat")
    before = digest(path)
    daemon.wait_for_mounts()
    with rules(daemon, RULE.format(label("vfat"), "read-only")), machine.loop(path) as device:
        assert_only_read(machine, device, opened(daemon, device, label("vfat")))
        (decision,) = machine.mountsafe("policy", "explain", device, "--json").ok().json()["decisions"]
        assert (decision["access"], decision["rule"]) == ("read-only", "evidence")
    assert digest(path) == before


def test_a_rule_lets_one_be_written_to_where_all_others_are_not(daemon: Daemon, copy: Image) -> None:
    """What is inside a partition table nobody knows when it is plugged in."""
    machine = daemon.machine
    daemon.wait_for_mounts()
    first = 'access = "read-only"\n'
    with rules(daemon, first), machine.loop(copy("vfat")) as device:
        assert_only_read(machine, device, opened(daemon, device, label("vfat")))
    daemon.wait_for_mounts()
    with rules(daemon, first + RULE.format(label("vfat"), "on-demand")), machine.loop(copy("vfat")) as device:
        sh(machine, 'touch "$0/new"', opened(daemon, device, label("vfat"))).ok()
        machine.mountsafe("eject", device).ok()


def test_what_is_write_protected_stays_so(daemon: Daemon, copy: Image) -> None:
    machine, path = daemon.machine, copy("vfat")
    before = digest(path)
    daemon.wait_for_mounts()
    with machine.loop(path, "--read-only") as device:
        assert_only_read(machine, device, opened(daemon, device, label("vfat")))
        machine.mountsafe("eject", device).ok()
        assert machine.run("blockdev", "--getro", device).ok().out.strip() == "1"
    assert digest(path) == before


def test_what_was_unmounted_by_a_file_manager_is_saved_first(daemon: Daemon, copy: Image) -> None:
    machine, path = daemon.machine, copy("vfat")
    daemon.wait_for_mounts()
    machine.write("/run/photo", PHOTO.decode())
    with machine.loop(path) as device:
        folder = opened(daemon, device, label("vfat"))
        sh(machine, 'cp /run/photo "$0/photo.jpg"', folder).ok()
        wait_for(lambda: machine.run("umount", folder, user=True).code == 0, "the unmount")
        wait_for(lambda: medium(machine, device)["state"] == "unmounted", "the end", daemon.words)
        assert by_mtools(path)["photo.jpg"] == PHOTO
        assert medium(machine, device)["lost"] == ""


@contextmanager
def narrow(machine: Machine) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give a FAT of 64 MiB on a disk that breaks when a function is called: nothing can be written to it from then on.

    It lies in a tmpfs that has no room for it. A loop device cannot be pulled out: it lasts as long as it is used.
    """
    machine.run("mkdir", "-p", SCRATCH).ok()
    machine.run("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", SCRATCH).ok()
    try:
        machine.run("mkfs.vfat", "-n", "NARROW", "-C", f"{SCRATCH}/image", str(64 << 10)).ok()
        fill = f"head -c 100000000 /dev/zero >{SCRATCH}/fill; true"
        yield f"{SCRATCH}/image", lambda: machine.run("sh", "-c", fill).ok() and None
    finally:
        wait_for(lambda: machine.run("umount", SCRATCH).code == 0, "the end of its user")


@contextmanager
def news(machine: Machine, path: Path) -> Iterator[Callable[[], str]]:
    """Hear what the daemon announces."""
    with path.open("wb") as file:
        command = machine.command(sys.executable, "-m", "mountsafe", "watch", "--json")
        watching = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file)
    try:
        wait_for(lambda: "watching" in path.read_text(), "the news")
        yield path.read_text
    finally:
        watching.kill()
        watching.wait()


def test_what_was_not_saved_when_it_was_pulled_out_is_told_by_name(daemon: Daemon, tmp_path: Path) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with narrow(machine) as (path, fails), news(machine, tmp_path / "news") as told_so_far:
        with machine.loop(Path(path)) as device:
            folder = opened(daemon, device, "NARROW")
            sh(machine, 'head -c 100000 /dev/urandom >"$0/first.bin" && sync "$0/first.bin"', folder).ok()
            fails()
            sh(machine, 'head -c 8000000 /dev/urandom >"$0/Holidays 2026.mp4"', folder)  # it may hear of it
            machine.run("losetup", "--detach", device).ok()
            wait_for(lambda: medium(machine, device)["state"] == "lost", "what is lost", daemon.words)
        assert "Holidays 2026.mp4" in str(medium(machine, device)["lost"])
        assert "first.bin" not in str(medium(machine, device)["lost"])
        assert "Holidays 2026.mp4" in machine.mountsafe("devices").ok().out
        wait_for(lambda: '"unsaved"' in told_so_far(), "the incident")


def test_what_cannot_be_saved_is_not_ejected_without_a_word(daemon: Daemon) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with narrow(machine) as (path, fails), machine.loop(Path(path)) as device:
        folder = opened(daemon, device, "NARROW")
        sh(machine, 'echo 1 >"$0/first.txt" && sync "$0/first.txt"', folder).ok()
        fails()
        sh(machine, 'head -c 8000000 /dev/urandom >"$0/Holidays 2026.mp4"', folder)  # it may hear of it
        done = machine.mountsafe("eject", device)
        assert done.code != 0
        assert "pulled out" not in done.out
        wait_for(lambda: "Holidays 2026.mp4" in str(medium(machine, device)["lost"]), "its name", daemon.words)
