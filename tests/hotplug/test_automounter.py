"""A desktop's automounter beside mountsafe: it mounts what it sees without the rules, and nothing that they manage."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hotplug.daemon import RULES, Daemon, label
from tests.hotplug.machine import USER, Machine, attached, wait_for

Image = Callable[[str], Path]
PATIENCE = 3.0  # seconds: several times of what it takes to mount


@pytest.fixture(scope="module")
def automounter(machine: Machine, program: Callable[[str], str]) -> Machine:
    """The machine with udiskie in it, as a user runs it."""
    person = ("setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups", "env", "HOME=/tmp")
    quiet = ("--no-config", "--no-notify", "--no-tray", "--no-file-manager")
    machine.start(*person, program("udiskie"), *quiet, "--automount", ready=lambda: True)
    return machine


@pytest.fixture
def daemon(automounter: Machine, tmp_path: Path) -> Iterator[Daemon]:
    automounter.write("/etc/mountsafe/policy.toml", RULES)
    automounter.mountsafe("policy", "install").ok()
    automounter.put_appliance()
    made = Daemon(automounter, tmp_path / "log")
    yield made
    made.stop()
    automounter.mountsafe("policy", "uninstall").ok()


def assert_is_mounted(machine: Machine, image: Path) -> None:
    """Plug it in, see that the kernel mounts it, and pull it out; wait for its end, for an XFS is mounted only once."""
    with machine.loop(image) as device:
        wait_for(lambda: machine.kernel_mounts(device) != [], "a mount by udiskie")
    wait_for(lambda: Path(device).name not in attached(), f"the end of {device}")


def test_without_rules_it_mounts_what_is_plugged_in(automounter: Machine, image: Image) -> None:
    """Else the next test would prove nothing."""
    assert_is_mounted(automounter, image("xfs"))


def test_beside_the_daemon_it_mounts_nothing(daemon: Daemon, image: Image) -> None:
    for name in ("xfs", "ext4"):
        with daemon.machine.loop(image(name)) as device:
            daemon.wait_for_mounts(label(name))
            time.sleep(PATIENCE)
            assert daemon.machine.kernel_mounts(device) == []
        daemon.wait_for_mounts()


def test_afterwards_it_mounts_again(automounter: Machine, image: Image) -> None:
    assert_is_mounted(automounter, image("xfs"))
