"""Sticks that others encrypted: BitLocker's, which the daemon keeps locked, and VeraCrypt's, which look like noise."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.daemon.address import NAME, PATH
from mountsafe.errors import ExitCode
from tests import bitlocker
from tests.done import Done
from tests.encrypted import veracrypt
from tests.hotplug.daemon import MEDIA, Daemon, label
from tests.hotplug.machine import Machine
from tests.hotplug.media import become
from tests.hotplug.test_control import call
from tests.hotplug.test_inside import stick as parted
from tests.hotplug.test_locked import unlock

CONTENT = "vfat"
VERACRYPT_SECRET, PIM = "correct horse", 1
# Calls Unlock for a device with a key of a form, which comes out of standard input.
CLIENT = f"""
import os, sys
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection
with open_dbus_connection("SYSTEM", enable_fds=True) as bus:
    manager = DBusAddress({PATH!r}, {NAME!r}, {NAME!r})
    reply = bus.send_and_get_reply(new_method_call(manager, "Unlock", "ssh", (sys.argv[1], sys.argv[2], 0)))
sys.exit(" ".join(map(str, reply.body)) or 0)
"""


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> bitlocker.Stick:
    """A stick with a header that Windows wrote, and the vfat image in it."""
    program("cryptsetup")
    folder = tmp_path_factory.mktemp("bitlocker")
    return bitlocker.stick(images.unpack(CONTENT, folder), folder)


def unlock_by_bus(machine: Machine, device: str, form: str, secret: str) -> Done:
    """Unlock it as any client of the bus may, as the user at the seat: the key comes out of a pipe."""
    user = machine.mountsafe("--version", user=True).code == 0  # or the interpreter is closed to other users
    command = 'printf %s "$3" | "$0" -c "$4" "$1" "$2"'
    return machine.run("sh", "-c", command, sys.executable, device, form, secret, CLIENT, user=user)


def has_all_files(machine: Machine) -> bool:
    """Whether the user reads what was put there."""
    command = 'cd "$0" && find . -type f -exec sha256sum {} +'
    found = machine.run("sh", "-c", command, f"{MEDIA}/{label(CONTENT)}", user=True).ok().out.splitlines()
    wanted = [entry.sha256 for entry in images.expected(CONTENT) if entry.kind == "file"]
    return sorted(line.lstrip("\\")[:64] for line in found) == sorted(filter(None, wanted))


def test_bitlocker_is_locked_until_it_is_unlocked_and_once_it_is_plugged_in_again(
    daemon: Daemon, stick: bitlocker.Stick
) -> None:
    machine = daemon.machine

    def by_recovery_key(device: str) -> Done:
        return unlock(machine, device, stick.recovery_key, "--recovery-key")

    def by_password(device: str) -> Done:
        return unlock_by_bus(machine, device, "passphrase", stick.password)

    for unlocked_by in (by_password, by_recovery_key):
        with machine.loop(stick.path) as device:
            told = become(machine, device, "locked")
            assert (told["fstype"], told["locked"], told["mounts"]) == ("BitLocker", "BitLocker", [])
            assert told["locked_uuid"] == stick.uuid
            assert stick.recovery_id.upper() in told["locked_hint"].upper()
            assert machine.run("mount", device, "/mnt").code != 0, "it is claimed"
            wrong = unlock_by_bus(machine, device, "recovery-key", stick.password)
            assert "that is no recovery key" in wrong.err
            unlocked_by(device).ok()
            daemon.wait_for_mounts(label(CONTENT))
            assert has_all_files(machine)
            call(machine, "Eject", f"string:{device}").ok()
            assert become(machine, device, "ejected")["locked"] == ""
        daemon.wait_for_mounts()
    assert stick.password not in daemon.words()
    assert stick.recovery_key not in daemon.words()


def test_veracrypt_is_unlocked_once_somebody_says_that_it_is_one(
    daemon: Daemon, image: Callable[[str], Path], tmp_path: Path
) -> None:
    machine = daemon.machine
    volume = tmp_path / "volume.hc"
    volume.write_bytes(veracrypt(image(CONTENT).read_bytes(), VERACRYPT_SECRET.encode(), PIM))
    for disk in (volume, parted(tmp_path / "stick.img", volume)):
        with machine.loop(disk) as device:
            assert "no file system was found" in become(machine, device, "failed")["problem"]
            for secret, code in (("wrong", ExitCode.LOCKED), (VERACRYPT_SECRET, ExitCode.OK)):
                done = unlock(machine, device, secret, "--type", "veracrypt", "--pim", str(PIM))
                assert done.code == code, done.err
            daemon.wait_for_mounts(label(CONTENT))
            assert has_all_files(machine)
            machine.mountsafe("lock", device).ok()
            assert become(machine, device, "locked")["locked"] == "VeraCrypt"
            unlock(machine, device, VERACRYPT_SECRET).ok()
            call(machine, "Eject", f"string:{device}").ok()
        daemon.wait_for_mounts()
    assert VERACRYPT_SECRET not in daemon.words()
