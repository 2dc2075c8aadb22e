"""The daemon over D-Bus: who may ask what, by the command line and by any other client."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.done import Done
from tests.hotplug.daemon import MEDIA, Daemon, label
from tests.hotplug.machine import DEADLINE, USER, Machine, wait_for
from tests.hotplug.media import become

Image = Callable[[str], Path]


def call(machine: Machine, method: str, *arguments: str, user: bool = True) -> Done:
    """Call a method as a stranger would: the command line may be closed to the user."""
    where = ("--dest=org.mountsafe.Manager1", "/org/mountsafe/Manager1", f"org.mountsafe.Manager1.{method}")
    patience = f"--reply-timeout={DEADLINE * 1000:.0f}"  # otherwise 25 s, and ejecting ends a virtual machine
    return machine.run("dbus-send", "--system", "--print-reply", patience, *where, *arguments, user=user)


def test_what_is_kept_is_listed_for_anyone(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    wait_for(lambda: machine.mountsafe("devices", "--json").ok().json() == [], "the end of what was before")
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(label("vfat"))
        told = become(machine, device, "open")
        assert (told["fstype"], told["verdict"]) == ("vfat", "sandbox")
        assert (told["user"], told["mounts"]) == (USER, [f"{MEDIA}/{label('vfat')}"])
        assert f"{MEDIA}/{label('vfat')}" in machine.mountsafe("devices").ok().out
        assert label("vfat") in call(machine, "ListMedia").ok().out


def test_his_own_medium_is_ejected_by_the_user_and_can_be_pulled_out(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(label("vfat"))
        call(machine, "Eject", f"string:{device}").ok()
        assert daemon.mounts() == []
        machine.run("python3", "-c", f"import os; os.open({device!r}, os.O_RDONLY | os.O_EXCL)").ok()
        become(machine, device, "ejected")


def test_what_is_in_use_is_not_ejected(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(label("vfat"))
        user = subprocess.Popen(
            machine.command("sh", "-c", 'cd "$0" && exec sleep infinity', f"{MEDIA}/{label('vfat')}")
        )
        try:
            wait_for(lambda: Path(f"/proc/{user.pid}/comm").read_text().strip() == "sleep", "its user")
            done = machine.mountsafe("eject", device)
            assert done.code == 1
            assert "cannot unmount" in done.err
            assert daemon.mounts() == [f"{MEDIA}/{label('vfat')}"]
        finally:
            user.kill()
            user.wait()
        assert "ejected" in machine.mountsafe("eject", f"{MEDIA}/{label('vfat')}").ok().out


def test_what_was_unmounted_is_opened_again(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(label("vfat"))
        # Who has just mounted it looks at it for a moment: then it is busy.
        wait_for(lambda: machine.run("umount", f"{MEDIA}/{label('vfat')}", user=True).code == 0, "the unmount")
        become(machine, device, "unmounted")
        call(machine, "Open", f"string:{device}").ok()
        daemon.wait_for_mounts(label("vfat"))


def test_what_is_refused_nobody_opens(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    with machine.loop(image("jfs")) as device:
        become(machine, device, "refuse")
        done = machine.mountsafe("open", device)
        assert done.code == 1
        assert "nobody has that" in done.err


def test_another_users_medium_needs_an_administrator(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(label("vfat"))
        where = ("--dest=org.mountsafe.Manager1", "/org/mountsafe/Manager1", "org.mountsafe.Manager1.Eject")
        stranger = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups")
        done = machine.run(*stranger, "dbus-send", "--system", "--print-reply", *where, f"string:{device}")
        assert "AccessDenied" in done.err
        assert daemon.mounts() == [f"{MEDIA}/{label('vfat')}"]


def test_what_is_not_there_is_an_error(daemon: Daemon) -> None:
    done = daemon.machine.mountsafe("eject", "sdzz")
    assert done.code == 1
    assert "no medium that mountsafe keeps" in done.err
    assert "UnknownMethod" in call(daemon.machine, "Format", "string:sdb").err
    assert "UnknownMethod" in call(daemon.machine, "Eject", "int32:5").err


def test_changes_are_announced(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with (tmp_path / "news").open("wb") as news:
        watching = subprocess.Popen(
            machine.command(sys.executable, "-m", "mountsafe", "watch", "--json"), stdout=news, stdin=subprocess.DEVNULL
        )
    try:
        wait_for(lambda: "watching" in (tmp_path / "news").read_text(), "the watch")
        with machine.loop(image("vfat")) as device:
            name = device.removeprefix("/dev/")

            def told() -> list[tuple[str, str]]:
                found = [json.loads(line) for line in (tmp_path / "news").read_text().splitlines()]
                return [
                    (each["event"], each["medium"]["state"] if each["event"] == "changed" else each["medium"])
                    for each in found
                ]

            daemon.wait_for_mounts(label("vfat"))
            wait_for(lambda: ("changed", "open") in told(), "the news")
        wait_for(lambda: ("removed", name) in told(), "the end")
    finally:
        watching.terminate()
        watching.wait()


def test_without_a_daemon_it_says_so(machine: Machine, daemon: Daemon) -> None:
    daemon.stop()
    try:
        done = machine.mountsafe("devices")
        assert done.code == 5
        assert "the daemon does not run" in done.err
    finally:
        daemon._start()


def test_tools_can_look_at_it(daemon: Daemon) -> None:
    introspect = ("/org/mountsafe/Manager1", "org.freedesktop.DBus.Introspectable.Introspect")
    shown = daemon.machine.run("dbus-send", "--system", "--print-reply", "--dest=org.mountsafe.Manager1", *introspect)
    assert 'method name="ListMedia"' in shown.ok().out


def test_a_user_who_floods_it_with_what_is_too_large_ends_nothing(daemon: Daemon, image: Image) -> None:
    daemon.wait_for_mounts()
    machine = daemon.machine
    with machine.loop(image("jfs")) as device:
        for size in (5_000, 70_000, 130_000):  # what a command line can hold
            refused = call(machine, "Open", f"string:{'A' * (size // 2)}", f"string:{'A' * (size - size // 2)}")
            assert refused.code != 0
        assert "too long" in call(machine, "Open", f"string:{'A' * 5000}").err
        assert "is no medium" in call(machine, "Eject", "string:sdzz").err
        wait_for(lambda: device.removeprefix("/dev/") in call(machine, "ListMedia").out, "the service")


def test_without_a_bus_media_are_shown_all_the_same_and_a_new_bus_is_found(daemon: Daemon, image: Image) -> None:
    """The last one: the machine's polkit and udisks have no bus afterwards."""
    daemon.wait_for_mounts()
    machine = daemon.machine
    bus = machine.services[1]  # after udevd
    bus.terminate()
    bus.wait(timeout=DEADLINE)
    daemon.wait_for_words("nobody can ask")
    with machine.loop(image("vfat")):
        daemon.wait_for_mounts(label("vfat"))
        machine.start_bus()
        wait_for(lambda: label("vfat") in call(machine, "ListMedia").out, "the service on the new bus")
