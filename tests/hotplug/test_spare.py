"""A virtual machine that waits for the next medium."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountsafe.process import children
from tests.hotplug.daemon import MEDIA, RULES, Daemon, label
from tests.hotplug.machine import Machine, wait_for

Image = Callable[[str], Path]


@pytest.fixture(scope="module")
def daemon(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    machine.write("/etc/mountsafe/policy.toml", RULES)
    machine.mountsafe("policy", "install").ok()
    machine.put_appliance()
    made = Daemon(machine, tmp_path_factory.mktemp("daemon") / "log", "--spare")
    yield made
    made.stop()
    assert machine.run("ls", "-A", "/run/mountsafe/mounts").ok().out == ""
    machine.mountsafe("policy", "uninstall").ok()


def emulators(pid: int) -> list[int]:
    """The QEMU processes below a process."""
    found = [pid] if Path(f"/proc/{pid}/comm").read_text().startswith("qemu") else []
    return found + [each for child in children(pid) for each in emulators(child)]


# The record of one that waits is empty; who ends removes theirs first, and its log a moment later.
WAITS = """
cd /run/mountsafe/mounts && for each in *; do
    [ -e $each/record.json ] && [ ! -s $each/record.json ] && cat $each/log
done
"""


def waiting(daemon: Daemon) -> tuple[int, int]:
    """The spare supervisor and its QEMU, once it runs and what was before is gone."""
    pid = daemon.process.pid

    def ready() -> bool:
        started = "virtual machine started" in daemon.machine.run("sh", "-c", WAITS).out
        return len(children(pid)) == 1 and started and emulators(pid) != []

    wait_for(ready, "a spare virtual machine", daemon.words)
    return children(pid)[0], emulators(pid)[0]


def records(daemon: Daemon) -> list[str]:
    """The folders of supervisors. Nobody cleans up in between: `mountsafe list` would."""
    return daemon.machine.run("ls", "-A", "/run/mountsafe/mounts").ok().out.split()


def show(daemon: Daemon, image: Path) -> int:
    """Plug it in, see it; return the process id of its supervisor."""
    with daemon.machine.loop(image):
        daemon.wait_for_mounts(label("ext4"))
        daemon.machine.run("cat", f"{MEDIA}/{label('ext4')}/README.txt", user=True).ok()
        (record,) = daemon.machine.mountsafe("list", "--json").ok().json()
    daemon.wait_for_mounts()
    return int(record["supervisor"])


def test_the_next_medium_gets_the_one_that_waits(daemon: Daemon, image: Image) -> None:
    first, _ = waiting(daemon)
    assert show(daemon, image("ext4")) == first
    second, _ = waiting(daemon)
    assert show(daemon, image("ext4")) == second != first


def test_a_spare_machine_that_died_is_replaced(daemon: Daemon, image: Image) -> None:
    supervisor, emulator = waiting(daemon)
    os.kill(emulator, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{emulator}").exists(), "its end")
    assert show(daemon, image("ext4")) == supervisor


def test_a_spare_supervisor_that_died_is_replaced(daemon: Daemon, image: Image) -> None:
    supervisor, _ = waiting(daemon)
    (its_own,) = records(daemon)
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: its_own not in records(daemon), "the end of what it left", daemon.words)
    second, _ = waiting(daemon)
    assert show(daemon, image("ext4")) == second != supervisor


def test_one_that_dies_when_it_has_been_taken_is_replaced(daemon: Daemon, image: Image) -> None:
    """It is stopped, so it is still to read its order when it is killed."""
    supervisor, _ = waiting(daemon)
    os.kill(supervisor, signal.SIGSTOP)
    with daemon.machine.loop_now(image("ext4")):
        wait_for(lambda: len(children(daemon.process.pid)) > 1, "the next spare one", daemon.words)
        os.kill(supervisor, signal.SIGKILL)
        daemon.wait_for_mounts(label("ext4"))
    daemon.wait_for_mounts()


def test_what_a_supervisor_leaves_that_is_killed_is_cleaned_up(daemon: Daemon, image: Image) -> None:
    """The next medium of that label has its folder, and no broken mount stands there."""
    supervisor, _ = waiting(daemon)
    shown = daemon.words().count(" is on ")
    with daemon.machine.loop(image("ext4")):
        daemon.wait_for_words(" is on ", shown + 1)  # before that it would be shown by another supervisor
        os.kill(supervisor, signal.SIGKILL)
        daemon.wait_for_mounts()
        wait_for(lambda: daemon.machine.run("ls", "-A", MEDIA).ok().out == "", "an empty folder", daemon.words)
        waiting(daemon)
        assert len(records(daemon)) == 1
    show(daemon, image("ext4"))
