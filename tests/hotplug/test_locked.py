"""A stick that is encrypted: real LUKS headers, a real daemon, bus, polkit and virtual machine."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe.daemon.keys import FIRST_PAUSE
from mountsafe.errors import ExitCode
from tests.done import Done
from tests.hotplug.daemon import MEDIA, Daemon, label
from tests.hotplug.machine import USER, Machine, wait_for
from tests.hotplug.media import become, medium, state
from tests.hotplug.test_agent import FOLDER, Desktop, desktop
from tests.hotplug.test_control import call
from tests.hotplug.test_inside import rules, stick
from tests.luks import PASSPHRASE, luks

__all__ = ["desktop"]  # a fixture
Image = Callable[[str], Path]
KEYS = "/run/keys-of-tests"
RIGHT = PASSPHRASE.decode()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Callable[[Path], Path]:
    """A function that returns an image of the same content, encrypted."""
    program("cryptsetup")
    folder = tmp_path_factory.mktemp("locked")

    def made(plain: Path) -> Path:
        path = folder / f"{plain.stem}.luks"
        return path if path.exists() else luks(plain.read_bytes(), path)

    return made


def unlock(machine: Machine, device: str, secret: str, *words: str, user: bool = False) -> Done:
    """Unlock it as a person would, with a secret that comes by a descriptor."""
    command = 'secret=$1; shift; printf %s "$secret" | "$0" -m mountsafe unlock "$@" --key-fd 0 --json'
    return machine.run("sh", "-c", command, sys.executable, secret, device, *words, user=user)


def test_it_is_locked_until_somebody_unlocks_it_and_after_that_once_more(
    daemon: Daemon, image: Image, locked: Callable[[Path], Path]
) -> None:
    machine, name = daemon.machine, label("vfat")
    daemon.wait_for_mounts()
    for _ in range(2):  # it is pulled out in between
        with machine.loop(locked(image("vfat"))) as device:
            told = become(machine, device, "locked")
            assert (told["fstype"], told["locked"], told["mounts"], told["problem"]) == ("crypto_LUKS", "LUKS2", [], "")
            assert (uuid := told["locked_uuid"]) != ""
            assert "mountsafe unlock" in machine.mountsafe("devices").ok().out
            assert machine.run("mount", device, "/mnt").code != 0, "it is claimed"
            done = unlock(machine, device, RIGHT).ok().json()
            assert done["mounts"] == [f"{MEDIA}/{name}"]
            assert daemon.mounts() == [f"{MEDIA}/{name}"]
            assert machine.run("ls", f"{MEDIA}/{name}", user=True).ok().out != ""
            machine.mountsafe("lock", device).ok()
            told = become(machine, device, "locked")
            assert (told["fstype"], told["label"], told["mounts"]) == ("crypto_LUKS", "", [])
            assert (told["locked"], told["locked_uuid"]) == ("LUKS2", uuid)
            unlock(machine, device, RIGHT).ok()
        daemon.wait_for_mounts()


def test_a_wrong_key_is_told_and_three_of_them_have_it_wait(
    daemon: Daemon, image: Image, locked: Callable[[Path], Path]
) -> None:
    machine = daemon.machine
    with machine.loop(locked(image("vfat"))) as device:
        become(machine, device, "locked")
        for number in range(1, 4):
            began = time.monotonic()
            done = unlock(machine, device, "wrong")
            assert done.code == ExitCode.LOCKED, done.err
            assert ("it can be tried again in" in done.err) == (number == 3), done.err
            assert medium(machine, device)["state"] == "locked"
        done = unlock(machine, device, RIGHT)
        if time.monotonic() - began < FIRST_PAUSE:  # where all is busy the pause may be over
            assert "3 wrong keys: wait" in done.err
        wait_for(
            lambda: state(machine, device) == "open" or unlock(machine, device, RIGHT).code == 0, "the pause's end"
        )
        daemon.wait_for_mounts(label("vfat"))
        assert RIGHT not in daemon.words()
        assert "wrong" not in daemon.words().replace("wrong key", "")


def test_it_is_ejected_while_it_is_locked_and_while_it_is_open(
    daemon: Daemon, image: Image, locked: Callable[[Path], Path]
) -> None:
    machine = daemon.machine
    for opened in (False, True):
        with machine.loop(locked(image("vfat"))) as device:
            become(machine, device, "locked")
            if opened:
                unlock(machine, device, RIGHT).ok()
            call(machine, "Eject", f"string:{device}").ok()
            told = become(machine, device, "ejected")
            assert told["locked"] == ""
            assert "is not locked" in unlock(machine, device, RIGHT).err


def test_who_is_not_at_the_seat_unlocks_nothing(daemon: Daemon, image: Image, locked: Callable[[Path], Path]) -> None:
    machine = daemon.machine
    if machine.mountsafe("--version", user=True).code != 0:
        pytest.skip("the interpreter is closed to other users")
    with machine.loop(locked(image("vfat"))) as device:
        become(machine, device, "locked")
        other = ("setpriv", "--reuid=games", "--regid=games", "--clear-groups")
        command = 'printf %s "$1" | "$0" -m mountsafe unlock "$2" --key-fd 0'
        done = machine.run(*other, "sh", "-c", command, sys.executable, RIGHT, device)
        assert done.code == ExitCode.DEPENDENCY
        assert "not authorized: org.mountsafe.unlock" in done.err
        assert medium(machine, device)["state"] == "locked"
        unlock(machine, device, RIGHT, user=True).ok()
        daemon.wait_for_mounts(label("vfat"))


def test_what_is_beside_it_is_shown_and_both_after_it_is_unlocked(
    daemon: Daemon, image: Image, locked: Callable[[Path], Path], tmp_path: Path
) -> None:
    machine = daemon.machine
    disk = stick(tmp_path / "stick.img", image("ext2"), locked(image("vfat")))
    with machine.loop(disk) as device:
        told = become(machine, device, "locked")
        assert told["mounts"] == [f"{MEDIA}/{label('ext2')}"]
        assert "a part of it is encrypted: LUKS2" in machine.mountsafe("devices").ok().out
        unlock(machine, device, RIGHT).ok()
        daemon.wait_for_mounts(label("ext2"), label("vfat"))
        become(machine, device, "open")


# --- the policy ------------------------------------------------------------------------------------------------------
def test_a_known_stick_is_unlocked_by_its_key_file(
    daemon: Daemon, image: Image, locked: Callable[[Path], Path]
) -> None:
    machine, disk = daemon.machine, locked(image("vfat"))
    uuid = subprocess.run(["cryptsetup", "luksUUID", disk], capture_output=True, text=True, check=True).stdout.strip()
    rule = f'[[rule]]\nverdict = "sandbox"\nbus = "loop"\nuuid = "{uuid}"\nkey_file = "{KEYS}/stick"\n'
    machine.write(f"{KEYS}/stick", RIGHT)
    with rules(machine, rule + '[[rule]]\nverdict = "sandbox"\nbus = "loop"'):
        machine.run("chmod", "0644", f"{KEYS}/stick").ok()
        with machine.loop(disk) as device:
            assert "is not root's alone" in become(machine, device, "locked")["problem"]
        machine.run("chmod", "0600", f"{KEYS}/stick").ok()
        with machine.loop(disk) as device:
            become(machine, device, "open")
            daemon.wait_for_mounts(label("vfat"))
    machine.remove(KEYS)


def test_only_what_is_encrypted_is_opened_where_the_policy_says_so(
    daemon: Daemon, image: Image, locked: Callable[[Path], Path], tmp_path: Path
) -> None:
    machine = daemon.machine
    only = '[[rule]]\nverdict = "refuse"\nbus = "loop"\nencrypted = false\nreason = "not encrypted"\n'
    with rules(machine, only + '[[rule]]\nverdict = "sandbox"\nbus = "loop"'):
        with machine.loop(image("vfat")) as device:
            assert become(machine, device, "refuse")["reason"] == "not encrypted"
        with machine.loop(stick(tmp_path / "plain.img", image("vfat"))) as device:
            assert become(machine, device, "refuse")["reason"] == "not encrypted"
        with machine.loop(stick(tmp_path / "both.img", image("ext2"), locked(image("vfat")))) as device:
            assert become(machine, device, "locked")["mounts"] == []
            unlock(machine, device, RIGHT).ok()
            daemon.wait_for_mounts(label("vfat"))


# --- the desktop -----------------------------------------------------------------------------------------------------
ZENITY = f"""#!/bin/sh
echo "$*" >>{FOLDER}/asked
cat {FOLDER}/typed
"""


def test_its_button_asks_for_the_key(desktop: Desktop, image: Image, locked: Callable[[Path], Path]) -> None:
    machine, name = desktop.machine, label("vfat")
    machine.write(f"{FOLDER}/bin/zenity", ZENITY)
    machine.run("chmod", "-R", "a+rx", f"{FOLDER}/bin").ok()
    desktop.start_server()
    program = ("env", f"PATH={FOLDER}/bin:/usr/bin:/bin", sys.executable, "-m", "mountsafe", "agent", "--any-seat")
    desktop.start(*program)
    with machine.loop(locked(image("vfat"))) as device:
        title = f"{device.removeprefix('/dev/')} is encrypted (LUKS2)"
        wait_for(lambda: any("is encrypted (LUKS2)" in summary for summary, _ in desktop.shown()), title)
        machine.write(f"{FOLDER}/typed", "wrong\n")
        assert desktop.press("Unlock") == ["Details", "Eject", "Unlock"]
        desktop.wait_for("Unlock failed")
        asked = machine.run("cat", f"{FOLDER}/asked").out.splitlines()
        assert len(asked) == 3
        assert all("--password" in line and "LUKS2" in line for line in asked)
        assert medium(machine, device)["state"] == "locked"
    machine.write(f"{FOLDER}/typed", f"{RIGHT}\n")
    with machine.loop(locked(image("vfat"))) as device:
        become(machine, device, "locked")
        wait_for(lambda: desktop.on_screen() == 1, "the notification")
        desktop.press("Unlock")
        desktop.wait_for(f"{name} is open")
        wait_for(lambda: desktop.opened() == [f"{MEDIA}/{name}"], "the folder")
        assert medium(machine, device)["user"] == USER
