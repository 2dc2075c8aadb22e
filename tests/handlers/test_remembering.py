"""Keys that a user wants remembered: in a real gnome-keyring, on a bus of its own."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mountsafe import trios
from mountsafe.desktop import offers, remembering
from mountsafe.desktop.offers import Offers
from mountsafe.desktop.remembering import Keeping, NoKeyring
from tests.conftest import missing
from tests.handlers.test_bus import CONFIGURATION, is_there
from tests.hotplug.machine import wait_for

SECRET = b"correct \x00 horse\xff"


@pytest.fixture
def bus(tmp_path: Path, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place, configuration = tmp_path / "bus", tmp_path / "bus.conf"
    configuration.write_text(CONFIGURATION.format(path=place))
    daemon = subprocess.Popen([program("dbus-daemon"), f"--config-file={configuration}", "--nofork"])
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={place}")
    try:
        wait_for(lambda: is_there(place), "the bus")
        yield
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


@pytest.fixture
def keyring(bus: None, tmp_path: Path, program: Callable[[str], str]) -> Iterator[None]:
    pytest.importorskip("secretstorage") if not os.environ.get("CI") else __import__("secretstorage")
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    variables = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_RUNTIME_DIR": str(folder)}
    command = [program("gnome-keyring-daemon"), "--foreground", "--unlock", "--components=secrets"]
    daemon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=variables)
    assert daemon.stdin is not None
    daemon.stdin.write(b"password of the keyring")
    daemon.stdin.close()
    try:
        wait_for(lambda: daemon.poll() is not None or remembering.is_there(), "the keyring")
        if daemon.poll() is not None:
            missing("a keyring that starts")
        yield
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


@pytest.mark.usefixtures("keyring")
@pytest.mark.parametrize("keeping", list(Keeping))
def test_a_key_is_remembered_by_what_it_unlocks_and_forgotten(keeping: Keeping) -> None:
    assert remembering.recall("77") is None
    for secret in (b"old", SECRET):
        remembering.remember("77", "PHOTOS", secret, keeping)
    remembering.remember("88", "OTHER", b"other", keeping)
    assert (remembering.recall("77"), remembering.recall("88")) == (SECRET, b"other")
    assert remembering.forget("77") == 1
    assert (remembering.recall("77"), remembering.recall("88")) == (None, b"other")
    assert remembering.forget() == 1
    assert remembering.forget() == 0


@pytest.mark.usefixtures("keyring")
def test_a_key_is_in_one_place_alone() -> None:
    remembering.remember("77", "PHOTOS", b"old", Keeping.ALWAYS)
    remembering.remember("77", "PHOTOS", SECRET, Keeping.SESSION)
    assert remembering.recall("77") == SECRET
    assert remembering.forget() == 1


@pytest.mark.usefixtures("keyring")
def test_what_others_keep_there_is_left_alone() -> None:
    import secretstorage

    connection = secretstorage.dbus_init()
    collection = secretstorage.get_default_collection(connection)
    collection.create_item("theirs", {"application": "other", "uuid": "77"}, b"theirs")
    assert remembering.recall("77") is None
    assert remembering.forget() == 0
    assert len(list(collection.search_items({"uuid": "77"}))) == 1
    connection.close()


@pytest.mark.usefixtures("bus")
def test_where_nothing_remembers_that_is_said() -> None:
    assert not remembering.is_there()
    assert remembering.recall("77") is None
    with pytest.raises(NoKeyring, match="no Secret Service"):
        remembering.forget()
    with pytest.raises(NoKeyring):
        remembering.remember("77", "PHOTOS", SECRET, Keeping.ALWAYS)


# --- what is offered -------------------------------------------------------------------------------------------------
class Desktop:
    """Shows one notification, numbered 7."""

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.ended: list[int] = []

    async def show(self, notice: Any, replaces: int = 0) -> int:
        self.shown.append(notice)
        return 7

    async def close(self, number: int) -> None:
        self.ended.append(number)


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        (["until-logout"], Keeping.SESSION),
        (["always"], Keeping.ALWAYS),
        (["closed"], None),
        (["closed", "always"], Keeping.ALWAYS),  # some servers tell it in this order
        (["something"], None),
        ([], None),
    ],
)
def test_a_key_is_kept_if_its_user_says_so(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], kept: Keeping | None
) -> None:
    monkeypatch.setattr(offers, "PATIENCE", 1.0)
    monkeypatch.setattr(offers, "GRACE", 0.5)
    told: list[Any] = []
    monkeypatch.setattr(remembering, "is_there", lambda: True)
    monkeypatch.setattr(
        remembering, "remember", lambda uuid, name, secret, how: told.append((uuid, bytes(bytearray(secret)), how))
    )
    secret = b"".join([b"correct ", b"horse"])  # of its own: it is overwritten

    async def run() -> None:
        desktop = Desktop()
        made = Offers(desktop)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.make, "77", "PHOTOS", secret)
            while not desktop.shown:  # noqa: ASYNC110  # nothing tells of it
                await trio.sleep(0.01)
            await trio.sleep(0.05)
            assert not made.pressed(8, "always"), "another one's"
            for answer in answers:
                if answer == "closed":
                    made.closed(7)
                else:
                    assert made.pressed(7, answer)
                await trio.sleep(0.05)
        assert desktop.ended == [7]
        assert [str(action) for action in desktop.shown[0].actions] == ["until-logout", "always"]

    trios.run(run)
    assert told == ([("77", b"correct horse", kept)] if kept else [])
    assert secret == bytes(13), "it is overwritten"
