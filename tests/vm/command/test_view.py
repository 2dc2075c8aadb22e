"""A double click on an image: the desktop file, a real session bus, and dunst on an X server in memory.

dunst runs a script for each notification that it shows, and asks another program which button to press.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from images import images
from tests.done import Done
from tests.vm.command.stage import DEADLINE, PATH, Person, Started
from tests.vm.command.test_mount import check_tree

Image = Callable[[str], Path]
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={0}/bus</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""
DUNSTRC = "[global]\ndmenu = {0}/press\n[every]\nappname = mountsafe\nscript = {0}/saw\n"
SAW = '#!/bin/sh\nprintf "%s|%s\\036" "$DUNST_SUMMARY" "$DUNST_BODY" >>{0}/shown\n'
PRESS = '#!/bin/sh\ngrep -m1 -F "#Unmount "\n'
FOLDERS = '#!/bin/sh\necho "$1" >>{0}/opened\n'
FOLDERS_APP = "[Desktop Entry]\nType=Application\nName=Folders\nExec={0}/folders %f\nMimeType=inode/directory;\n"
DEFAULTS = "[Default Applications]\ninode/directory=folders.desktop\n"


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class Desktop:
    """A desktop of the user's in a folder of theirs, which has the desktop file for images."""

    def __init__(self, user: Person, repository: Path, place: Path, stack: ExitStack) -> None:
        self.user, self.place = user, place
        entry = (repository / "packaging/mountsafe.desktop").read_text()
        files = {"bus.conf": BUS, "dunstrc": DUNSTRC, "saw": SAW, "press": PRESS, "folders": FOLDERS}
        files |= {"data/applications/folders.desktop": FOLDERS_APP, "config/mimeapps.list": DEFAULTS}
        files |= {"data/applications/mountsafe.desktop": entry.replace("=mountsafe", f"={user.program}")}
        for name, text in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("{0}", str(place)))
            path.chmod(0o755)
        for path in place.rglob("*"):
            user.give(path)
        user.run(place / "data/applications", program=["update-desktop-database"]).ok()
        self.env = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={place}/bus", "XDG_CURRENT_DESKTOP": "X"}
        self.env |= {"XDG_DATA_HOME": str(place / "data"), "XDG_CONFIG_HOME": str(place / "config")}
        self._stack = stack
        self._start("dbus-daemon", f"--config-file={place}/bus.conf", "--nofork")
        wait_for((place / "bus").exists, "the session bus")
        self.env["DISPLAY"] = f":{self._display()}"
        self._start("dunst", "-conf", f"{place}/dunstrc")
        wait_for(lambda: self.run("dunstctl", "count").code == 0, "dunst")

    def _display(self) -> str:
        """Start an X server that listens on an abstract socket alone; return its number, which nobody else has."""
        screen = ("-screen", "0", "640x480x24")
        server = self._start("Xvfb", "-displayfd", "1", "-ac", "-nolisten", "tcp", "-nolisten", "unix", *screen)
        assert server.stdout is not None
        return server.stdout.readline().strip()

    def _start(self, *command: str) -> Started:
        process = self.user.start(program=command, env=self.env)
        self._stack.callback(process.communicate)
        self._stack.callback(process.send_signal, signal.SIGTERM)
        return process

    def run(self, *command: str | Path) -> Done:
        return self.user.run(program=[*map(str, command)], env=self.env)

    def click(self, source: Path) -> None:
        """Open a file as a file manager does. What opens it lives on, and must not hold the pipes of who waits here."""
        self.run("sh", "-c", 'exec gio open "$1" >"$2" 2>&1', "sh", source, self.place / "said").ok()

    def shown(self) -> list[list[str]]:
        """Return summary and body of what was shown."""
        path = self.place / "shown"
        return [each.split("|", 1) for each in path.read_text().split("\x1e")[:-1]] if path.exists() else []

    def wait_for(self, summary: str) -> str:
        wait_for(lambda: summary in [each[0] for each in self.shown()], f"{summary} in {self.shown()}")
        return next(body for title, body in self.shown() if title == summary)


@pytest.fixture
def desktop(user: Person, repository: Path, program: Callable[[str], str]) -> Iterator[Desktop]:
    for name in ("Xvfb", "dunst", "dunstctl", "xdg-open", "gio", "update-desktop-database", "dbus-daemon"):
        program(name)
    place = user.folder()
    with ExitStack() as stack:
        yield Desktop(user, repository, place, stack)


def test_a_double_click_shows_the_files_and_a_button_unmounts_them(
    desktop: Desktop, user: Person, folder: Path, image: Image
) -> None:
    source = folder / "photos.img"
    source.write_bytes(image("vfat").read_bytes())
    desktop.click(source)
    assert "vfat" in desktop.wait_for("photos.img is open")
    target = user.home / "mountsafe/photos"
    wait_for(lambda: (desktop.place / "opened").exists(), "the folder in a file manager")
    assert (desktop.place / "opened").read_text().splitlines() == [str(target)]
    check_tree(user, target, images.expected("vfat"))
    with user.start(target, program=["sh", "-c", 'cd "$1" && echo inside && exec sleep 600', "sh"]) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "inside\n"
        desktop.run("dunstctl", "context").ok()
        assert "fuser" in desktop.wait_for("photos.img cannot be unmounted")
        held.kill()
    desktop.run("dunstctl", "context").ok()
    desktop.wait_for("photos.img is unmounted")
    assert user.run("list", "--json").ok().json() == []


# In the place of programs that ask: they take what is written to a file for what somebody types.
TYPING = '#!/bin/sh\necho "$@" >>"{0}/asked"\ncat "{0}/typed" 2>/dev/null\n'


def locked(desktop: Desktop, folder: Path, image: Image, typed: str) -> Path:
    source = folder / "locked.img"
    source.write_bytes(image("encrypted-luks").read_bytes())
    programs = {"zenity": TYPING.replace("{0}", str(desktop.place)), "pinentry-gnome3": "#!/bin/sh\nexit 1\n"}
    (desktop.place / "bin").mkdir()
    for name, text in programs.items():
        (desktop.place / "bin" / name).write_text(text)
        (desktop.place / "bin" / name).chmod(0o755)
    for path in (desktop.place / "bin", desktop.place):
        desktop.user.give(path)
    (desktop.place / "typed").write_text(typed)
    desktop.env["PATH"] = f"{desktop.place}/bin:{PATH}"
    return source


def test_what_is_encrypted_asks_in_a_window(desktop: Desktop, user: Person, folder: Path, image: Image) -> None:
    desktop.click(locked(desktop, folder, image, "mountsafe\n"))
    assert "vfat" in desktop.wait_for("locked.img is open")
    assert "Unlock locked.img (LUKS2)" in (desktop.place / "asked").read_text()
    user.run("unmount", "--all").ok()


def test_what_cannot_be_opened_is_told_in_words(desktop: Desktop, folder: Path, image: Image) -> None:
    desktop.click(locked(desktop, folder, image, "wrong\n"))
    assert "does not open it" in desktop.wait_for("locked.img could not be opened")
    assert len((desktop.place / "asked").read_text().splitlines()) == 3


def test_the_desktop_file_is_one(repository: Path, program: Callable[[str], str], user: Person) -> None:
    """Say those who define what such files are, by their own tools."""
    for command in (
        ["desktop-file-validate", "packaging/mountsafe.desktop"],
        ["appstreamcli", "validate", "--no-net", "packaging/org.mountsafe.mountsafe.metainfo.xml"],
    ):
        program(command[0])
        done = user.run(program=command, cwd=repository)
        assert (done.code, "warning" in done.out + done.err) == (0, False), done.out + done.err
