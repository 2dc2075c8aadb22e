"""What the daemon is asked beyond media: trust, its rules, how it is; and what it announces and writes down."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hotplug.daemon import MEDIA, RULES, Daemon, label
from tests.hotplug.machine import DEADLINE, SETTLE, USER, Machine, wait_for
from tests.hotplug.media import medium, state
from tests.hotplug.test_control import call

Image = Callable[[str], Path]
JOURNALD = "/usr/lib/systemd/systemd-journald"
SERIAL_FOR_LOOPS = 'KERNEL=="loop*", ENV{ID_SERIAL_SHORT}="4C53", ENV{ID_MODEL}="Ultra"\n'
ADMINISTRATOR = """
polkit.addRule(function(action, subject) {
    var asked = action.lookup("verdict") !== "kernel";
    if (action.id.indexOf("org.mountsafe.") === 0 && asked) return polkit.Result.YES;
});
"""


@pytest.fixture
def named_loops(daemon: Daemon) -> Iterator[Machine]:
    """A machine whose loop devices have a serial number."""
    machine = daemon.machine
    daemon.wait_for_mounts()
    machine.write("/etc/udev/rules.d/60-serial.rules", SERIAL_FOR_LOOPS)
    machine.run("udevadm", "control", "--reload").ok()
    yield machine
    machine.remove("/etc/udev/rules.d/60-serial.rules", "/etc/mountsafe/policy.d")
    machine.run("udevadm", "control", "--reload").ok()
    machine.mountsafe("policy", "install").ok()
    machine.mountsafe("reload").ok()


@pytest.fixture
def administrator(machine: Machine) -> Iterator[None]:
    """The user may do what an administrator may, but for handing a device to the system."""
    machine.write("/etc/polkit-1/rules.d/80-test.rules", ADMINISTRATOR)
    yield
    machine.remove("/etc/polkit-1/rules.d/80-test.rules")


@contextmanager
def watching(machine: Machine, path: Path) -> Iterator[Callable[[], list[tuple[str, dict[str, str]]]]]:
    """Yield a function that returns what was announced, (event, medium or incident)."""
    with path.open("wb") as news:
        watch = machine.command(sys.executable, "-m", "mountsafe", "watch", "--json")
        watcher = subprocess.Popen(watch, stdout=news, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: "watching" in path.read_text(), "the watch")
        yield lambda: [(each["event"], each["medium"]) for each in map(json.loads, path.read_text().splitlines())]
    finally:
        watcher.terminate()
        watcher.wait()


def incident(news: Callable[[], list[tuple[str, dict[str, str]]]], device: str) -> list[str]:
    """Wait for an incident of a device; return the kinds of all of its."""

    def kinds() -> list[str]:
        told = [told for event, told in news() if event == "incident"]
        return [each["kind"] for each in told if each["device"] == device.removeprefix("/dev/")]

    wait_for(lambda: kinds() != [], "the incident", lambda: str(news()))
    return kinds()


# --- trust -----------------------------------------------------------------------------------------------------------
def test_trust_needs_an_administrator(named_loops: Machine, image: Image) -> None:
    with named_loops.loop(image("jfs")) as device:
        wait_for(lambda: state(named_loops, device) == "refuse", "the refusal")
        for method, arguments in (("Trust", (device, "sandbox")), ("Untrust", (device,)), ("Reload", ())):
            done = call(named_loops, method, *(f"string:{each}" for each in arguments))
            assert "AccessDenied" in done.err, (method, done)
        assert state(named_loops, device) == "refuse"
        assert named_loops.run("test", "-e", "/etc/mountsafe/policy.d").code != 0


@pytest.mark.usefixtures("administrator")
def test_a_refused_device_that_is_trusted_opens_and_is_refused_again_without(
    named_loops: Machine, daemon: Daemon, image: Image
) -> None:
    machine = named_loops
    with machine.loop(image("jfs")) as device:
        wait_for(lambda: state(machine, device) == "refuse", "the refusal")
        call(machine, "Trust", f"string:{device}", "string:sandbox").ok()
        daemon.wait_for_mounts(label("jfs"))
        assert machine.findings() == []
        assert machine.mountsafe("policy", "diff").ok().out == ""
        call(machine, "Untrust", f"string:{device}").ok()
        wait_for(lambda: state(machine, device) == "refuse", "the refusal again")
        assert daemon.mounts() == []


@pytest.mark.usefixtures("administrator")
def test_polkit_is_told_what_is_asked_for(named_loops: Machine, image: Image) -> None:
    """The rule of `administrator` lets him trust for the virtual machine, and not for the system."""
    with named_loops.loop(image("vfat")) as device:
        wait_for(lambda: state(named_loops, device) == "open", "the medium")
        assert "AccessDenied" in call(named_loops, "Trust", f"string:{device}", "string:kernel").err
        assert "never refuse" in call(named_loops, "Trust", f"string:{device}", "string:refuse", user=False).err


def test_a_device_that_is_left_to_the_system_is_let_go_and_udisks_mounts_it(
    named_loops: Machine, daemon: Daemon, image: Image
) -> None:
    machine = named_loops
    with machine.loop(image("ext4")) as device:
        wait_for(lambda: state(machine, device) == "open", "the medium")
        call(machine, "Trust", f"string:{device}", "string:kernel", user=False).ok()
        assert state(machine, device) == "not kept"
        assert daemon.mounts() == []
        assert machine.properties(device)["ID_FS_TYPE"] == "ext4"
        machine.run("udisksctl", "mount", "-b", device).ok()
        refused = call(machine, "Untrust", f"string:{device}", user=False)
        assert "would hide what this machine uses" in refused.err
        machine.run("udisksctl", "unmount", "-b", device).ok()
        call(machine, "Untrust", f"string:{device}", user=False).ok()
        daemon.wait_for_mounts(label("ext4"))
        assert machine.properties(device)["ID_FS_TYPE"] == "mountsafe"


def test_what_cannot_be_told_from_others_cannot_be_trusted(daemon: Daemon, image: Image) -> None:
    with daemon.machine.loop(image("vfat")) as device:
        wait_for(lambda: state(daemon.machine, device) == "open", "the medium")
        assert "no serial number" in call(daemon.machine, "Trust", f"string:{device}", "string:kernel", user=False).err
        assert "plugged in" in call(daemon.machine, "Trust", "string:../etc", "string:kernel", user=False).err


@pytest.mark.usefixtures("administrator")
def test_the_command_asks_the_daemon_for_who_is_not_root(named_loops: Machine, daemon: Daemon, image: Image) -> None:
    machine = named_loops
    if machine.mountsafe("--version", user=True).code != 0:
        pytest.skip("the interpreter is closed to other users")
    with machine.loop(image("jfs")) as device:
        wait_for(lambda: state(machine, device) == "refuse", "the refusal")
        denied = machine.mountsafe("trust", device, "--json", user=True)
        assert denied.code == 5
        assert denied.json()["error"]["hint"] == f"sudo mountsafe trust {device} --json"
        done = machine.mountsafe("trust", device, "--verdict", "sandbox", "--json", user=True).ok()
        assert done.json() == {"device": device, "done": "trust"}
        daemon.wait_for_mounts(label("jfs"))


def test_root_trusts_at_once_whether_the_daemon_runs_or_not(named_loops: Machine, daemon: Daemon, image: Image) -> None:
    machine = named_loops
    with machine.loop(image("jfs")) as device:
        wait_for(lambda: state(machine, device) == "refuse", "the refusal")
        machine.mountsafe("trust", device, "--verdict", "sandbox").ok()
        daemon.wait_for_mounts(label("jfs"))
        machine.mountsafe("untrust", device).ok()
        wait_for(lambda: state(machine, device) == "refuse", "the refusal again")
        daemon.stop()
        try:
            machine.mountsafe("trust", device).ok()
            machine.run(*SETTLE).ok()
            assert machine.properties(device)["ID_FS_TYPE"] == "jfs"
            machine.mountsafe("untrust", device).ok()
            machine.run(*SETTLE).ok()
            assert machine.properties(device)["ID_FS_TYPE"] == "mountsafe"
            assert machine.mountsafe("policy", "diff").ok().out == ""
        finally:
            daemon._start()


def test_who_asks_a_daemon_that_does_not_run_is_told_how_to_start_it(daemon: Daemon) -> None:
    daemon.stop()
    try:
        done = daemon.machine.mountsafe("devices", "--json")
    finally:
        daemon._start()
    assert done.code == 5
    assert done.json()["error"]["hint"] == "sudo systemctl enable --now mountsafe"


# --- status and rules ------------------------------------------------------------------------------------------------
def test_the_status_is_told_to_anyone(daemon: Daemon, image: Image) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with machine.loop(image("vfat")) as one, machine.loop(image("jfs")) as other:
        wait_for(lambda: (state(machine, one), state(machine, other)) == ("open", "refuse"), "the media")

        def status() -> dict[str, object]:
            return dict(machine.mountsafe("status", "--json").ok().json())

        wait_for(lambda: status()["media"] == 2, "the end of what was before", lambda: str(status()))
        told = status()
        assert {key: told[key] for key in ("media", "open", "blocked", "rules", "policy_error")} == {
            "media": 2,
            "open": 1,
            "blocked": 1,
            "rules": 3,
            "policy_error": "",
        }
        assert told["acceleration"] in ("kvm", "tcg")
        assert "version" in call(machine, "Status").ok().out


@pytest.mark.usefixtures("administrator")
def test_rules_are_read_anew_and_a_broken_policy_is_told(daemon: Daemon) -> None:
    machine = daemon.machine
    machine.write("/etc/mountsafe/policy.toml", RULES + '[[rule]]\nverdict = "perhaps"\n')
    try:
        call(machine, "Reload").ok()
        assert "verdict is one of" in machine.mountsafe("status", "--json").ok().json()["policy_error"]
        assert "everything external is refused" in machine.mountsafe("status").ok().err
    finally:
        machine.write("/etc/mountsafe/policy.toml", RULES)
        machine.mountsafe("reload").ok()
    assert machine.mountsafe("status", "--json").ok().json()["policy_error"] == ""


# --- what is announced -----------------------------------------------------------------------------------------------
def test_a_medium_that_is_added_and_blocked_is_announced(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    daemon.wait_for_mounts()
    with watching(daemon.machine, tmp_path / "news") as news, daemon.machine.loop(image("jfs")) as device:
        name = device.removeprefix("/dev/")

        def told() -> list[tuple[str, dict[str, str]]]:
            """What came since it was added: the end of what was there before may have come first."""
            seen = news()[1:]
            added = [
                number for number, (event, which) in enumerate(seen) if event == "added" and which["device"] == name
            ]
            return [each for each in seen[added[-1] :] if each[1]["device"] == name] if added else []

        wait_for(lambda: len(told()) > 1, "the news", lambda: str(news()))
        (_, added), (event, blocked) = told()[:2]
        assert added["state"] == "new"
        assert (event, blocked["state"], blocked["reason"]) == ("changed", "refuse", "nobody has that")


def test_a_lost_virtual_machine_is_an_incident(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    machine = daemon.machine
    daemon.wait_for_mounts()
    with machine.loop(image("vfat")) as device, watching(machine, tmp_path / "news") as news:
        wait_for(lambda: state(machine, device) == "open", "the medium")
        (mount,) = [each for each in machine.mountsafe("list", "--json").ok().json() if each["source"] == device]
        os.kill(mount["virtual_machine"], signal.SIGKILL)
        assert incident(news, device) == ["guest"]
        wait_for(lambda: "lost" in medium(machine, device)["problem"], "its words", daemon.words)
        assert state(machine, device) == "open"


def test_a_medium_that_goes_while_it_is_shown_is_an_incident(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    """A loop device that is claimed cannot go; another medium in it is the same to the daemon."""
    machine = daemon.machine
    daemon.wait_for_mounts()
    stick = tmp_path / "stick.img"
    stick.write_bytes(image("vfat").read_bytes())
    with machine.loop(stick) as device, watching(machine, tmp_path / "news") as news:
        wait_for(lambda: state(machine, device) == "open", "the medium")
        os.truncate(stick, stick.stat().st_size + (1 << 20))
        machine.run("losetup", "--set-capacity", device).ok()
        assert incident(news, device) == ["pulled"]


# --- the journal -----------------------------------------------------------------------------------------------------
def test_entries_in_the_journal_have_fields(daemon: Daemon, image: Image, program: Callable[[str], str]) -> None:
    """By a real journald of the machine's own, whose journal is in its /run."""
    for name in ("systemd-cat", "journalctl"):
        program(name)
    machine = daemon.machine
    daemon.stop()
    machine.run("mkdir", "-p", "/run/log/journal", "/run/systemd/journal").ok()
    machine.start(JOURNALD, ready=lambda: machine.run("test", "-S", "/run/systemd/journal/socket").code == 0)

    def entries(*matches: str) -> list[dict[str, str]]:
        shown = machine.run("journalctl", "--directory=/run/log/journal", "--output=json", *matches)
        return [json.loads(line) for line in shown.out.splitlines()]

    as_a_unit = ("systemd-cat", "sh", "-c", 'JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec "$@"', "sh")
    command = (*as_a_unit, sys.executable, "-m", "mountsafe", "daemon", "--user", USER)
    running = subprocess.Popen(machine.command(*command), stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: "watching" in [each["MESSAGE"] for each in entries("SYSLOG_IDENTIFIER=mountsafe")], "watching")
        with machine.loop(image("vfat")) as one, machine.loop(image("jfs")) as other:
            daemon.wait_for_mounts(label("vfat"))
            wait_for(lambda: entries("MOUNTSAFE_VERDICT=refuse") != [], "the refusal")
            names = {each["MOUNTSAFE_DEVICE"] for each in entries("MOUNTSAFE_VERDICT=refuse")}
            assert names == {other.removeprefix("/dev/")}
            (told, *_) = entries(f"MOUNTSAFE_DEVICE={one.removeprefix('/dev/')}", "MOUNTSAFE_STATE=opening")
            assert told["MOUNTSAFE_RULE"].endswith("rule 3")
            place = f"{MEDIA}/{label('vfat')}"
            wait_for(lambda: place in str([each["MESSAGE"] for each in entries("MOUNTSAFE_VERDICT=sandbox")]), place)
    finally:
        running.terminate()
        running.wait(timeout=DEADLINE)
        daemon._start()
