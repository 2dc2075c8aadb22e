"""`mountsafe view`, on a real bus: an image is shown, whatever its file is called, and a button unmounts it."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, message_bus, new_method_return, new_signal
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from mountsafe.desktop.notifications import NAME
from mountsafe.desktop.notifications import PATH as PLACE
from tests.vm.command.stage import PATH, Person

NUMBER, PATIENCE = 7, 120.0
CONFIGURATION = """
<busconfig>
  <type>session</type> <listen>{}</listen> <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*" eavesdrop="true"/> <allow eavesdrop="true"/>
  </policy>
</busconfig>
"""  # whoever runs the tests may be on it, too
HOSTILE = "-<b>x<i> \x1b[2J$(id) 'a' %f.img"


class Desktop:
    """A session bus, a server of notifications that knows markup, and what folders are opened with."""

    def __init__(self, person: Person, folder: Path) -> None:
        self.opened: list[str] = []
        self.shown: list[tuple[Any, ...]] = []
        self._told = folder / "told"
        os.mkfifo(self._told)
        program = folder / "bin/xdg-open"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done >'{self._told}'\n")
        program.chmod(0o755)
        for path in (self._told, program.parent, program):
            person.give(path)
        bus = f"unix:path={folder}/bus"
        self.environment = {"DBUS_SESSION_BUS_ADDRESS": bus, "PATH": f"{program.parent}:{PATH}"}
        (folder / "bus.conf").write_text(CONFIGURATION.format(bus))
        words = ("dbus-daemon", "--nofork", "--print-address", f"--config-file={folder}/bus.conf")
        self.daemon = person.start(program=words)
        assert self.daemon.stdout is not None
        assert self.daemon.stdout.readline().startswith(bus)
        self._connection: DBusConnection = open_dbus_connection(bus=bus)
        self._connection.send_and_get_reply(message_bus.RequestName(NAME))
        self._serving = threading.Thread(target=self._serve)
        self._serving.start()

    def _serve(self) -> None:
        """Press Unmount as soon as the folder is opened; end when it is said that it is unmounted."""
        while True:
            try:
                message = self._connection.receive(timeout=PATIENCE)
            except (OSError, EOFError):  # the bus has ended
                return
            match message.header.fields.get(HeaderFields.member):
                case "GetCapabilities":
                    self._connection.send(new_method_return(message, "as", (["actions", "body-markup"],)))
                case "Notify":
                    self.shown.append((message.body[4], message.body[3]))
                    self._connection.send(new_method_return(message, "u", (NUMBER,)))
                    if message.body[3].endswith("is open"):
                        self.opened = self._told.read_text().split("\0")[:-1]
                        told = DBusAddress(PLACE, interface=NAME)
                        self._connection.send(new_signal(told, "ActionInvoked", "us", (NUMBER, "unmount")))

    def close(self) -> None:
        self.daemon.terminate()
        self.daemon.communicate(timeout=PATIENCE)
        self._serving.join(PATIENCE)
        self._connection.close()


@pytest.fixture
def desktop(user: Person, folder: Path) -> Iterator[Desktop]:
    made = Desktop(user, folder)
    yield made
    made.close()


def test_a_double_click_on_what_others_have_named(
    user: Person, folder: Path, desktop: Desktop, image: Callable[[str], Path]
) -> None:
    source = folder / HOSTILE
    shutil.copyfile(image("ext4"), source)
    user.give(source)
    done = user.run("view", "--json", "--", HOSTILE, cwd=folder, env=desktop.environment).ok()
    record = done.json()
    assert desktop.opened == [record["target"]]
    assert Path(record["target"]).parent == user.home / "mountsafe"
    assert Path(record["target"]).name.isprintable()
    for body, summary in desktop.shown:
        assert summary.isprintable()
        assert not set("<>\x1b") & set(body)
    assert [summary.rpartition(" is ")[2] for _, summary in desktop.shown] == ["being opened", "open", "unmounted"]
    assert user.run("list", "--json").ok().json() == []
    Path(record["target"]).parent.rmdir()
