"""The daemon on a machine with real udev, udisks and loop devices: a medium appears, and the kernel never mounts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from images import images
from tests.hotplug.daemon import MEDIA, Daemon, label, shown
from tests.hotplug.machine import Machine, wait_for
from tests.hotplug.media import become
from tests.readers import change

Image = Callable[[str], Path]
CYCLES = 200


def names_below(machine: Machine, folder: str, user: bool = True) -> list[str]:
    return sorted(machine.run("ls", "-A", folder, user=user).ok().out.split("\n")[:-1])


def assert_claimed(machine: Machine, device: str) -> None:
    """Root's mount(8) is told that it is busy: by mount(2), for the newer calls are told nothing that could be read."""
    machine.run("mkdir", "-p", "/run/mnt").ok()
    refused = machine.run("env", "LIBMOUNT_FORCE_MOUNT2=always", "mount", "-t", "ext4", "-o", "ro", device, "/run/mnt")
    assert refused.code == 32
    assert "already mounted or mount point busy" in refused.err
    assert machine.run("mount", "-t", "ext4", "-o", "ro", device, "/run/mnt").code == 32


def test_a_medium_appears_and_nobody_else_mounts_it(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    with machine.loop(image("ext4")) as device:
        daemon.wait_for_mounts(label("ext4"))
        folder = f"{MEDIA}/{label('ext4')}"
        assert "README.txt" in names_below(machine, folder)
        for user in (True, False):
            done = machine.run("udisksctl", "mount", "--no-user-interaction", "-b", device, user=user)
            assert "is not a mountable filesystem" in done.err
        assert_claimed(machine, device)
        assert machine.findings() == []
    daemon.wait_for_mounts()
    wait_for(lambda: names_below(machine, MEDIA, user=False) == [], "its folder's end")


def test_who_is_at_the_seat_can_unmount_it_himself(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    with machine.loop(image("vfat")):
        daemon.wait_for_mounts(label("vfat"))
        # Who has just mounted it looks at it for a moment: then it is busy.
        wait_for(lambda: machine.run("umount", f"{MEDIA}/{label('vfat')}", user=True).code == 0, "the unmount")
        daemon.wait_for_mounts()
        time.sleep(1)
        assert daemon.mounts() == []


def test_a_disk_with_partitions_shows_each(daemon: Daemon, image: Image) -> None:
    volumes = images.volumes("disk-gpt")
    daemon.wait_for_mounts()
    with daemon.machine.loop(image("disk-gpt")):
        daemon.wait_for_mounts(*(shown(volume) for volume in volumes if volume.entries))


def test_two_media_of_one_label_are_numbered(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    other = tmp_path / "copy.img"
    other.write_bytes(image("ext4").read_bytes())
    daemon.wait_for_mounts()
    with daemon.machine.loop(image("ext4")):
        daemon.wait_for_mounts(label("ext4"))
        with daemon.machine.loop(other):
            daemon.wait_for_mounts(label("ext4"), f"{label('ext4')}-2")


def test_what_is_refused_is_claimed_and_not_shown(daemon: Daemon, image: Image) -> None:
    daemon.wait_for_mounts()
    with daemon.machine.loop(image("jfs")) as device:
        assert become(daemon.machine, device, "refuse")["reason"] == "nobody has that"
        assert daemon.mounts() == []
        assert_claimed(daemon.machine, device)


@pytest.mark.parametrize("then", ["ext4", "jfs"])
def test_a_card_that_comes_into_a_reader_whose_number_stays_is_a_new_medium(
    daemon: Daemon, image: Image, tmp_path: Path, then: str
) -> None:
    """A loop device whose file is changed is such a reader: whoever has it open reads the other one from there on."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path, name in ((first, "ext4"), (second, then)):
        path.write_bytes(image(name).read_bytes())
        os.truncate(path, 32 << 20)
    daemon.wait_for_mounts()
    with daemon.machine.loop(first, "--read-only") as device:
        daemon.wait_for_mounts(label("ext4"))
        claims, shown = (daemon.words().count(words) for words in (" is claimed: ", f"is on {MEDIA}/{label('ext4')}"))
        change(Path(device), second)
        daemon.wait_for_words(" is claimed: ", claims + 1)
        if then == "jfs":
            assert become(daemon.machine, device, "refuse")["reason"] == "nobody has that"
            daemon.wait_for_mounts()
            assert_claimed(daemon.machine, device)
        else:
            daemon.wait_for_words(f"is on {MEDIA}/{label(then)}", shown + 1)
            daemon.wait_for_mounts(label(then))
    daemon.wait_for_mounts()


def test_what_desktops_are_not_to_show_is_elsewhere(daemon: Daemon, image: Image) -> None:
    hidden = f"/run/mountsafe/hidden/nobody/{label('romfs')}"
    with daemon.machine.loop(image("romfs")):
        daemon.wait_for_words(f"is on {hidden}")
        assert daemon.mounts() == []
        assert "README.txt" in names_below(daemon.machine, hidden)


def test_what_another_program_has_for_itself_is_claimed_afterwards(daemon: Daemon, image: Image) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    hold = "import os, sys; os.open(sys.argv[1], os.O_EXCL); print(flush=True); sys.stdin.read()"
    with daemon.machine.loop(image("ext4")) as device:
        command = daemon.machine.command(sys.executable, "-c", hold, device)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            daemon.process.send_signal(signal.SIGCONT)
            daemon.wait_for_words("in use by another program")
            become(daemon.machine, device, "busy")
            holder.communicate()
        daemon.wait_for_mounts(label("ext4"))
    daemon.wait_for_mounts()


def test_a_medium_that_is_pulled_out_while_it_is_read_is_gone_at_once(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    with machine.loop(image("ext4")) as device:
        daemon.wait_for_mounts(label("ext4"))
        folder = f"{MEDIA}/{label('ext4')}"
        reading = subprocess.Popen(
            machine.command("sh", "-c", 'cd "$0" && exec sleep infinity <README.txt', folder), stdin=subprocess.DEVNULL
        )
        wait_for(lambda: Path(f"/proc/{reading.pid}/comm").read_text().strip() == "sleep", "the reader")
        machine.run("losetup", "--detach", device).ok()
        daemon.wait_for_mounts()
        assert reading.poll() is None
        reading.kill()
        reading.wait()
        wait_for(lambda: machine.run("losetup", device).code != 0, "the loop device's end")


def test_a_daemon_that_was_killed_leaves_nothing_and_the_next_goes_on(daemon: Daemon, image: Image) -> None:
    with daemon.machine.loop(image("ext4")):
        daemon.wait_for_mounts(label("ext4"))
        daemon.stop(signal.SIGKILL)
        daemon._start()
        wait_for(lambda: daemon.mounts() == [f"{MEDIA}/{label('ext4')}"], "the mount", daemon.words)
        shown = daemon.machine.run("sha256sum", f"{MEDIA}/{label('ext4')}/README.txt", user=True).ok().out
        (expected,) = (entry.sha256 for entry in images.expected("ext4") if entry.path == b"README.txt")
        assert shown.split()[0] == expected
    daemon.wait_for_mounts()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_ends_again_and_again_while_media_come_loses_none(
    daemon: Daemon, image: Image, number: signal.Signals
) -> None:
    machine = daemon.machine
    kinds = ("vfat", "xfs", "ext4", "hfsplus")
    reading = f"while sleep 0.02; do cat {MEDIA}/*/README.txt >/dev/null 2>&1; done"
    with ExitStack() as plugged:
        reader = subprocess.Popen(machine.command("sh", "-c", reading), stdin=subprocess.DEVNULL)
        plugged.callback(reader.wait)
        plugged.callback(reader.kill)
        for turn, kind in enumerate(kinds):
            plugged.enter_context(machine.loop(image(kind)))
            time.sleep(0.4 * turn)  # in the middle of claiming, starting, mounting, showing
            daemon.stop(number)
            daemon._start()
        daemon.wait_for_mounts(*map(label, kinds))
        for kind in kinds:
            shown = machine.run("sha256sum", f"{MEDIA}/{label(kind)}/README.txt", user=True).ok().out
            (expected,) = (entry.sha256 for entry in images.expected(kind) if entry.path == b"README.txt")
            assert shown.split()[0] == expected
    daemon.wait_for_mounts()
    wait_for(lambda: not left(daemon), "an end without a trace", lambda: f"{left(daemon)}\n{daemon.words()}")


def test_a_claimed_device_is_read_only_and_afterwards_as_it_was(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine

    def read_only(device: str) -> str:
        return machine.run("blockdev", "--getro", device).ok().out.strip()

    with machine.loop(image("ext4")) as device:
        daemon.wait_for_mounts(label("ext4"))
        assert read_only(device) == "1"
        daemon.stop(signal.SIGKILL)
        daemon._start()
        wait_for(lambda: daemon.mounts() != [], "the mount")
        assert read_only(device) == "1"
        daemon.stop()
        assert read_only(device) == "0"
    daemon._start()


def test_media_that_were_there_before_it_started_are_shown(daemon: Daemon, image: Image) -> None:
    daemon.stop()
    assert daemon.mounts() == []
    with daemon.machine.loop(image("ext4")):
        daemon._start()
        daemon.wait_for_mounts(label("ext4"))
    daemon.wait_for_mounts()


def test_what_there_was_no_room_for_is_shown_when_there_is(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    daemon.stop()
    narrow = Daemon(daemon.machine, tmp_path / "log", "--most", "1")
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(daemon.machine.loop(image("ext4")))
        narrow.wait_for_mounts(label("ext4"))
        second.enter_context(daemon.machine.loop(image("vfat")))
        narrow.wait_for_words("left alone")
        first.close()
        narrow.wait_for_mounts(label("vfat"))
    narrow.stop()
    daemon._start()


# --- nothing is left -------------------------------------------------------------------------------------------------
def left(daemon: Daemon) -> list[str]:
    """What a medium could leave: processes, folders, notes and records."""
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    folders = daemon.machine.run("ls", "-A", MEDIA, "/run/mountsafe/claims", "/run/mountsafe/mounts").out.split()
    return children + [name for name in folders if not name.endswith(":")]


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


@contextmanager
def without_a_trace(daemon: Daemon) -> Iterator[None]:
    """Whatever is done, nothing of it is left."""
    wait_for(lambda: not left(daemon), "the end of what was before")
    before = descriptors(daemon)
    yield
    wait_for(lambda: not left(daemon), "an end without a trace", lambda: f"{left(daemon)}\n{daemon.words()}")
    # One or two are opened at some time and kept; what leaks with each medium would be many more.
    wait_for(lambda: descriptors(daemon) <= before + 3, "the last descriptor's end", lambda: str(descriptors(daemon)))


def test_eight_media_at_once(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.img" for number in range(8)]
    with without_a_trace(daemon), ExitStack() as plugged:
        for copy in copies:
            copy.write_bytes(image("vfat").read_bytes())
            plugged.enter_context(daemon.machine.loop(copy))
        daemon.wait_for_mounts(label("vfat"), *(f"{label('vfat')}-{number}" for number in range(2, 9)))
        for number in ("", "-2", "-8"):
            assert "README.txt" in names_below(daemon.machine, f"{MEDIA}/{label('vfat')}{number}")


def test_many_quick_changes_leave_nothing(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    used = set()
    with without_a_trace(daemon):
        for _ in range(CYCLES):
            with machine.loop(image("ext4")) as device:
                used.add(device)
        with machine.loop(image("ext4")):
            daemon.wait_for_mounts(label("ext4"))
    assert all(machine.run("losetup", device).code for device in used)
