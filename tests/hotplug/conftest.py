"""A machine of its own for the tests of what happens when a medium is plugged in."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import missing
from tests.hotplug import machine as machines
from tests.hotplug.daemon import RULES, Daemon
from tests.hotplug.machine import Machine


@pytest.fixture(scope="module")
def bus() -> str:
    """What the machine's bus is; a module may say otherwise."""
    return os.environ.get("MOUNTSAFE_BUS", "dbus-daemon")


@pytest.fixture(scope="module")
def machine(bus: str, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if os.geteuid() != 0:
        missing("root")
    for name in ("unshare", "nsenter", "losetup", "udevadm", "udisksctl", bus, "dbus-send"):
        program(name)
    for path in (machines.UDEVD, machines.POLKITD, machines.UDISKSD):
        if not os.access(path, os.X_OK):
            missing(path)
    with machines.machine(tmp_path_factory.mktemp("machine"), bus) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    machine.write("/etc/mountsafe/policy.toml", RULES)
    machine.mountsafe("policy", "install").ok()
    machine.put_appliance()
    made = Daemon(machine, tmp_path_factory.mktemp("daemon") / "log")
    yield made
    made.stop()
    assert made.mounts() == []
    machine.mountsafe("policy", "uninstall").ok()
    machine.remove("/etc/mountsafe/policy.toml")
