"""The agent of a user on a desktop: a real session bus, and dunst as the notification server on an X server in memory.

dunst runs a script for each notification that it shows, which is how the tests see them, and asks another program which
button to press.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.done import Done
from tests.hotplug.daemon import MEDIA, RULES, Daemon, label
from tests.hotplug.machine import DEADLINE, USER, Machine, wait_for
from tests.hotplug.media import become, state
from tests.hotplug.test_asking import SERIAL_FOR_LOOPS

Image = Callable[[str], Path]
FOLDER = "/run/desktop"
BUS = f"unix:path={FOLDER}/bus"
SESSION_BUS = f"""
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type> <listen>{BUS}</listen> <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/> <allow eavesdrop="true"/> <allow own="*"/>
  </policy>
</busconfig>
"""
DUNSTRC = f"""
[global]
    dmenu = {FOLDER}/press
    markup = full
[every]
    appname = mountsafe
    script = {FOLDER}/saw
"""
SAW = f"""#!/bin/sh
printf '%s|%s\\036' "$DUNST_SUMMARY" "$DUNST_BODY" >>{FOLDER}/shown
"""
PRESS = f"""#!/bin/sh
tee {FOLDER}/buttons | grep -m1 -F "#$(cat {FOLDER}/button) "
"""
FOLDERS_APP = f"""[Desktop Entry]
Type=Application
Name=Folders
Exec={FOLDER}/folders %f
MimeType=inode/directory;
"""
FOLDERS = f"""#!/bin/sh
echo "$1" >>{FOLDER}/opened
"""
BECAUSE = "old <b>& odd</b>"


class Desktop:
    """The session of a user, with the agent in it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        files = {
            "bus.conf": SESSION_BUS,
            "dunstrc": DUNSTRC,
            "saw": SAW,
            "press": PRESS,
            "folders": FOLDERS,
            "home/.local/share/applications/folders.desktop": FOLDERS_APP,
            "home/.config/mimeapps.list": "[Default Applications]\ninode/directory=folders.desktop\n",
        }
        for name, text in files.items():
            machine.write(f"{FOLDER}/{name}", text)
        machine.run("chmod", "755", *(f"{FOLDER}/{name}" for name in ("saw", "press", "folders"))).ok()
        machine.run("chown", "-R", USER, FOLDER).ok()
        self.start("dbus-daemon", f"--config-file={FOLDER}/bus.conf", "--nofork")
        wait_for(lambda: machine.run("test", "-S", f"{FOLDER}/bus").code == 0, "the session bus")
        # Its abstract socket is this machine's alone; one in /tmp would be everybody's.
        self.start("Xvfb", ":77", "-ac", "-nolisten", "tcp", "-nolisten", "unix", "-screen", "0", "640x480x24")
        listens = ("grep", "-q", "@/tmp/.X11-unix/X77", "/proc/net/unix")
        wait_for(lambda: machine.run(*listens).code == 0, "the X server")

    def command(self, *words: str) -> list[str]:
        person = ("setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups", "env", "-C", "/")
        variables = (f"DBUS_SESSION_BUS_ADDRESS={BUS}", "DISPLAY=:77", f"HOME={FOLDER}/home", "XDG_CURRENT_DESKTOP=X")
        return self.machine.command(*person, *variables, *words)

    def start(self, *words: str) -> None:
        with (self.machine.scratch / f"{Path(words[0]).name}.user.log").open("ab") as log:
            self.running[Path(words[0]).name] = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def end(self, name: str) -> int:
        process = self.running.pop(name)
        process.terminate()
        return process.wait(timeout=DEADLINE)

    def start_server(self) -> None:
        self.start("dunst", "-conf", f"{FOLDER}/dunstrc")
        wait_for(lambda: self.run("dunstctl", "count").code == 0, "dunst")

    def start_agent(self, *words: str) -> None:
        self.start(sys.executable, "-m", "mountsafe", "agent", *words)

    @property
    def agent(self) -> subprocess.Popen[bytes]:
        return self.running[Path(sys.executable).name]

    def run(self, *words: str) -> Done:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=DEADLINE, check=False)
        return Done(words, done.returncode, done.stdout, done.stderr)

    def shown(self) -> list[tuple[str, str]]:
        """Return what was shown, (summary, body)."""
        found = self.machine.run("cat", f"{FOLDER}/shown").out.split("\x1e")[:-1]
        return [(each.partition("|")[0], each.partition("|")[2]) for each in found]

    def wait_for(self, summary: str, words: str = "", times: int = 1) -> None:
        def seen() -> bool:
            return len([body for title, body in self.shown() if title == summary and words in body]) >= times

        wait_for(seen, f"{summary!r}", lambda: f"{self.shown()}")

    def on_screen(self) -> int:
        return int(self.run("dunstctl", "count", "displayed").ok().out)

    def press(self, button: str) -> list[str]:
        """Press a button of what is on the screen; return all that were there."""
        self.machine.write(f"{FOLDER}/button", button)
        self.machine.remove(f"{FOLDER}/buttons")
        self.run("dunstctl", "context").ok()
        wait_for(lambda: self.machine.run("test", "-s", f"{FOLDER}/buttons").code == 0, "the buttons")
        lines = self.machine.run("cat", f"{FOLDER}/buttons").out.splitlines()
        return sorted(line.removeprefix("#").partition(" (")[0] for line in lines)

    def opened(self) -> list[str]:
        return self.machine.run("cat", f"{FOLDER}/opened").out.splitlines()


@pytest.fixture
def desktop(daemon: Daemon, program: Callable[[str], str]) -> Iterator[Desktop]:
    for name in ("Xvfb", "dunst", "dunstctl", "xdg-open"):
        program(name)
    if daemon.machine.mountsafe("--version", user=True).code != 0:
        pytest.skip("the interpreter is closed to other users")
    daemon.wait_for_mounts()
    made = Desktop(daemon.machine)
    try:
        yield made
    finally:
        for name in reversed(list(made.running)):
            made.end(name)
        daemon.machine.remove(FOLDER)


def test_a_medium_that_opens_is_told_and_its_buttons_do_what_they_say(
    desktop: Desktop, daemon: Daemon, image: Image
) -> None:
    desktop.start_server()
    desktop.start_agent()
    name = label("vfat")
    with desktop.machine.loop(image("vfat")) as device:
        desktop.wait_for(f"{name} is being opened")
        desktop.wait_for(f"{name} is open", "vfat, read-write")
        assert desktop.on_screen() == 1
        assert desktop.press("Details") == ["Details", "Eject", "Open", "Open"]
        desktop.wait_for(f"{name} is open", f"Shown on: {MEDIA}/{name}")
        assert desktop.on_screen() == 1
        desktop.press("Open")
        wait_for(lambda: desktop.opened() == [f"{MEDIA}/{name}"], "the folder")
        desktop.machine.run("umount", f"{MEDIA}/{name}", user=True).ok()
        become(desktop.machine, device, "unmounted")
        wait_for(lambda: desktop.on_screen() == 0, "an empty screen")


def test_it_is_ejected_and_what_was_said_goes_with_it(desktop: Desktop, image: Image) -> None:
    desktop.start_server()
    desktop.start_agent()
    name = label("vfat")
    with desktop.machine.loop(image("vfat")) as device:
        desktop.wait_for(f"{name} is open")
        user = subprocess.Popen(
            desktop.machine.command("sh", "-c", 'cd "$0" && exec sleep infinity', f"{MEDIA}/{name}")
        )
        try:
            wait_for(lambda: Path(f"/proc/{user.pid}/comm").read_text().strip() == "sleep", "its user")
            desktop.press("Eject")
            desktop.wait_for("Eject failed", "cannot unmount")
        finally:
            user.kill()
            user.wait()
        desktop.press("Eject")
        desktop.wait_for(f"{name} can be pulled out")
        become(desktop.machine, device, "ejected")
        assert desktop.on_screen() == 1
    wait_for(lambda: desktop.on_screen() == 0, "an empty screen")


def test_a_blocked_medium_says_why_and_can_be_trusted(desktop: Desktop, daemon: Daemon, image: Image) -> None:
    machine = desktop.machine
    machine.write("/etc/udev/rules.d/60-serial.rules", SERIAL_FOR_LOOPS)
    machine.write("/etc/mountsafe/policy.toml", RULES.replace("nobody has that", BECAUSE))
    machine.run("udevadm", "control", "--reload").ok()
    machine.mountsafe("reload").ok()
    desktop.start_server()
    desktop.start_agent("--any-seat")
    name = label("jfs")
    try:
        with machine.loop(image("jfs")) as device:
            desktop.wait_for(f"{name} is blocked", "blocked because jfs: old &lt;b&gt;&amp; odd&lt;/b&gt;")
            desktop.press("Trust")
            desktop.wait_for("Trust failed", "not authorized: org.mountsafe.trust")
            assert state(machine, device) == "refuse"
            yes = 'polkit.addRule(function(action) { if (action.id == "org.mountsafe.trust") return "yes"; });'
            machine.write("/etc/polkit-1/rules.d/80-test.rules", yes)
            assert desktop.press("Trust") == ["Details", "Trust"]
            desktop.wait_for(f"{name} is open")
            daemon.wait_for_mounts(name)
    finally:
        machine.remove("/etc/polkit-1/rules.d/80-test.rules", "/etc/udev/rules.d/60-serial.rules")
        machine.remove("/etc/mountsafe/policy.d")
        machine.write("/etc/mountsafe/policy.toml", RULES)
        machine.mountsafe("reload").ok()


def test_what_is_asked_about_opens_with_its_folder(desktop: Desktop, daemon: Daemon, image: Image) -> None:
    machine = desktop.machine
    machine.write("/etc/mountsafe/policy.toml", '[[rule]]\nverdict = "ask"\nbus = "loop"\n')
    machine.mountsafe("reload").ok()
    desktop.start_server()
    desktop.start_agent("--any-seat")
    name = label("vfat")
    try:
        with machine.loop(image("vfat")):
            desktop.wait_for(f"Open {name}?", "because vfat: simple")
            desktop.press("Open")
            daemon.wait_for_mounts(name)
            wait_for(lambda: desktop.opened() == [f"{MEDIA}/{name}"], "the folder")
    finally:
        machine.write("/etc/mountsafe/policy.toml", RULES)
        machine.mountsafe("reload").ok()


def test_blocked_media_are_told_to_who_is_at_the_seat_alone(desktop: Desktop, image: Image) -> None:
    """Nobody is: no logind runs here."""
    desktop.start_server()
    desktop.start_agent()
    with desktop.machine.loop(image("jfs")) as device, desktop.machine.loop(image("vfat")):
        wait_for(lambda: state(desktop.machine, device) == "refuse", "the refusal")
        desktop.wait_for(f"{label('vfat')} is open")
        assert {summary for summary, _ in desktop.shown()} <= {
            f"{label('vfat')} is being opened",
            f"{label('vfat')} is open",
        }


def test_it_waits_for_a_server_and_tells_another_one_again(desktop: Desktop, image: Image) -> None:
    desktop.start_agent()
    name = label("vfat")
    with desktop.machine.loop(image("vfat")) as device:
        wait_for(lambda: state(desktop.machine, device) == "open", "the medium")
        assert desktop.shown() == []
        desktop.start_server()
        desktop.wait_for(f"{name} is open")
        desktop.end("dunst")
        desktop.start_server()
        desktop.wait_for(f"{name} is open", times=2)


def test_it_goes_on_with_another_daemon(desktop: Desktop, daemon: Daemon, image: Image) -> None:
    desktop.start_server()
    desktop.start_agent()
    name = label("vfat")
    with desktop.machine.loop(image("vfat")):
        desktop.wait_for(f"{name} is open")
        daemon.stop(signal.SIGKILL)
        wait_for(lambda: desktop.on_screen() == 0, "an empty screen")
        daemon._start()
        desktop.wait_for(f"{name} is open", times=2)


def test_it_ends_with_the_session_and_takes_its_words_along(desktop: Desktop, image: Image) -> None:
    desktop.start_server()
    desktop.start_agent()
    with desktop.machine.loop(image("vfat")):
        desktop.wait_for(f"{label('vfat')} is open")
        assert desktop.end(Path(sys.executable).name) == 0
        assert desktop.on_screen() == 0
        desktop.start_agent()
        desktop.wait_for(f"{label('vfat')} is open", times=2)
        agent = desktop.agent
        desktop.end("dbus-daemon")
        assert agent.wait(timeout=DEADLINE) == 0


def test_without_a_session_it_says_so(daemon: Daemon) -> None:
    done = daemon.machine.run("env", "-u", "DBUS_SESSION_BUS_ADDRESS", sys.executable, "-m", "mountsafe", "agent")
    assert done.code == 5
    assert "cannot be reached" in done.err
