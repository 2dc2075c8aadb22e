"""A supervisor whose mounts end, or whose words grow, at odd moments; what it keeps is stood in for."""

import types
from pathlib import Path
from typing import Any

import pytest
import trio

from mountsafe.errors import UserError
from mountsafe.medium.volumes import Volume
from mountsafe.session import supervisor as module
from mountsafe.session.places import Place
from mountsafe.session.supervisor import Supervisor


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

    def __init__(self, volume: Volume, target: Path, *_: object) -> None:
        self.volume, self.target = volume, target
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
    medium = types.SimpleNamespace(format="raw", name="x")
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
