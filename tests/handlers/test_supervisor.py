"""A supervisor whose mounts end, or whose words grow, at odd moments; what it keeps is stood in for."""

import json
import types
from pathlib import Path
from typing import Any

import pytest
import trio

from mountsafe import channel, pieces
from mountsafe.errors import UserError
from mountsafe.limits import CONTROL_MESSAGE, CONTROL_WHOLE, MAX_MOUNTS
from mountsafe.medium.volumes import Volume
from mountsafe.session import supervisor as module
from mountsafe.session.places import Place
from mountsafe.session.reporter import Reporter as RealReporter
from mountsafe.session.supervisor import Supervisor

PATIENCE = 60.0


class Reporter:
    """Listens to a supervisor."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def tell(self, message: dict[str, Any]) -> None:
        self.told.append(message)

    def progress(self, what: str) -> None:
        self.tell({"progress": what})

    def warn(self, what: str) -> None:
        self.tell({"warning": what})


class Served:
    """In the place of a file system with its process. `lasts`: whether it is mounted still when that is looked at."""

    lasts = False

    def __init__(self, volume: Volume, place: Place, *_: object) -> None:
        self.volume, self.place = volume, place
        self.failure: UserError | None = None
        self.serving = trio.Event()

    async def serve(self) -> None:
        self.serving.set()
        if self.lasts:
            await trio.sleep_forever()


async def nothing(*_: object) -> None:
    await trio.lowlevel.checkpoint()


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ServedVolume", Served)
    monkeypatch.setattr(module, "SessionBox", lambda medium: types.SimpleNamespace(child=None))
    monkeypatch.setattr(module, "open_storage", nothing)


def supervisor(folder: Path, reporter: Reporter, volumes: list[Volume]) -> Any:
    target = folder / "m"
    target.mkdir()
    order = {
        "source": str(folder / "x.img"),
        "target": str(target),
        "created_target": False,
        "by_label": False,
        "owner": "user",
        "uid": 1,
        "gid": 1,
        "links": "nofollow",
        "idle": 0,
        "entries": 1000,
    }
    medium = types.SimpleNamespace(format="raw", name="x", sector_size=None)
    runtime = types.SimpleNamespace(write=lambda record: None)
    made: Any = Supervisor(order, medium, Place.hold(target), runtime, reporter)  # type: ignore[arg-type]
    storage = types.SimpleNamespace(raw=True, pid=None)
    made._machines = types.SimpleNamespace(storage=storage, release=nothing, accelerator="tcg", pid=1)

    async def find() -> list[Volume]:
        return volumes

    made._find = find
    return made


def volume(number: int = 1, label: str = "") -> Volume:
    return Volume(f"sda{number}", "partition", number, 0, 512, "ext4", "filesystem", label, "", "gpt", "")


@pytest.mark.usefixtures("patched")
async def test_what_is_unmounted_before_all_is_mounted_is_no_bug(tmp_path: Path) -> None:
    made = supervisor(tmp_path, Reporter(), [volume()])
    async with trio.open_nursery() as nursery:
        made._nursery = nursery
        with pytest.raises(UserError) as failure:
            await made._mount_all()
    assert "unmounted again" in failure.value.message


# --- a record longer than a packet ---------------------------------------------------------------------------------
LABEL = "\U00010400" * 63  # twelve bytes each, as JSON has them


class LongServed(Served):
    """Mounted, with much to tell."""

    lasts = True
    which, pid = None, 1

    def facts(self) -> dict[str, object]:
        return {"target": str(self.place.path), "label": self.volume.label}


async def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporter: Any) -> Any:
    """A supervisor of as many mounts as there may be, in a folder with a long path."""
    monkeypatch.setattr(module, "ServedVolume", LongServed)
    long = tmp_path
    for _ in range(4):
        long /= "\u0436" * 120
    long.mkdir(parents=True)
    volumes = [volume(number, LABEL) for number in range(1, MAX_MOUNTS + 1)]
    return supervisor(long, reporter, volumes)


@pytest.mark.usefixtures("patched")
@pytest.mark.real_clock
async def test_a_long_record_is_told_and_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = channel.pair()
    client, server = channel.pair()
    with ours, theirs, client:
        made = await many(tmp_path, monkeypatch, RealReporter(theirs))
        async with trio.open_nursery() as nursery:
            made._nursery = nursery
            nursery.start_soon(made._answer, trio.socket.from_stdlib_socket(server))
            await made._mount_all()
            with trio.fail_after(PATIENCE):
                record = made._record()
                assert len(json.dumps(record)) > CONTROL_MESSAGE
                made._reporter.tell({"mounted": record})
                told: list[Any] = []
                while not told or "mounted" not in told[-1]:
                    told.append(await trio.to_thread.run_sync(pieces.receive, ours))
                assert told[-1] == {"mounted": record}
                client.send(channel.encode({"do": "status"}))
                assert await trio.to_thread.run_sync(pieces.receive, client) == {"mounted": record}
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("patched")
@pytest.mark.real_clock
async def test_a_client_that_cannot_be_answered_ends_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await many(tmp_path, monkeypatch, Reporter())
    monkeypatch.setattr(made, "_record", lambda: {"x": "y" * CONTROL_WHOLE})
    client, server = channel.pair()
    with client:
        client.send(channel.encode({"do": "status"}))
        await made._answer(trio.socket.from_stdlib_socket(server))  # and nothing is raised
        assert pieces.receive(client) is None


@pytest.mark.real_clock
def test_what_is_too_long_to_be_told_is_not_swallowed() -> None:
    ours, theirs = channel.pair()
    with ours, theirs, pytest.raises(ValueError, match="bytes"):
        RealReporter(theirs).tell({"mounted": "x" * CONTROL_WHOLE})
