"""The daemon on the other bus that there is: dbus-broker, which Fedora and Arch have. `./dev test` does not install it.

MOUNTSAFE_BUS=dbus-broker has all tests of this folder run on it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hotplug.abuse import abuse
from tests.hotplug.daemon import Daemon, label
from tests.hotplug.media import become

Image = Callable[[str], Path]
SECONDS = 10.0


@pytest.fixture(scope="module")
def bus() -> str:
    if shutil.which("dbus-broker-launch") is None:
        pytest.skip("dbus-broker is not installed")
    return "dbus-broker"


def test_a_medium_is_shown_told_of_and_ejected(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    with machine.loop(image("vfat")) as device:
        daemon.wait_for_mounts(label("vfat"))
        become(machine, device, "open")
        assert machine.mountsafe("eject", device, user=True).code == 0
        daemon.wait_for_mounts()


def test_whatever_users_send_media_are_claimed_and_the_service_answers(daemon: Daemon, image: Image) -> None:
    came = abuse(daemon, image("jfs"), SECONDS)
    assert came.claims
    assert (came.lost, came.answers, came.same_process) == (0, True, True), came.told() + daemon.words()[-5000:]
    assert "a bug" not in daemon.words()
