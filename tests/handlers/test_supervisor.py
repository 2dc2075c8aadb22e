"""A supervisor whose mounts end, or whose words grow, at odd moments; what it keeps is stood in for."""

import json
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from mountsafe import channel, pieces
from mountsafe.errors import UserError
from mountsafe.limits import CONTROL_MESSAGE, CONTROL_WHOLE, MAX_MOUNTS
from mountsafe.medium.formats import Format
from mountsafe.medium.part import WHOLE
from mountsafe.medium.volumes import Volume
from mountsafe.session import boxes
from mountsafe.session import supervisor as module
from mountsafe.session.answering import answer
from mountsafe.session.choice import Chosen
from mountsafe.session.messages import ANSWERS, REPORTS, Done, Failed, Mounted, Progress, Report, Request, Verb, Warned
from mountsafe.session.order import MountOptions, Order
from mountsafe.session.places import Place
from mountsafe.session.record import Missing, Mount
from mountsafe.session.reporter import Reporter as RealReporter
from mountsafe.session.supervisor import Supervisor

PATIENCE = 60.0


class Reporter:
    """Listens to a supervisor."""

    def __init__(self) -> None:
        self.told: list[Report] = []

    def tell(self, message: Report) -> None:
        self.told.append(message)

    def progress(self, what: str) -> None:
        self.tell(Progress(what))

    def warn(self, what: str) -> None:
        self.tell(Warned(what))


class Served:
    """In the place of a file system with its process. `lasts`: whether it is mounted still when that is looked at."""

    lasts = False

    def __init__(self, volume: Volume, place: Place, *_: object) -> None:
        self.volume, self.place = volume, place
        self.failure: UserError | None = None
        self.unsaved = ""
        self.serving = trio.Event()

    async def serve(self) -> None:
        self.serving.set()
        if self.lasts:
            await trio.sleep_forever()

    def take_stream(self) -> None:
        """It is mounted."""


async def nothing(*_: object) -> None:
    await trio.lowlevel.checkpoint()


class Found:
    """In a `Choice`'s place: everything that a test's supervisor is to find."""

    def __init__(self, options: Any, medium: str, reporter: Reporter, nursery: Any, machined: Any, ahead: Any) -> None:
        self.chosen: list[Chosen] = []
        self.missing: list[Missing] = []
        self._volumes = machined

    async def make(self, machines: Any) -> None:
        self.chosen += [Chosen(volume, machines) for volume in self._volumes]


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ServedVolume", Served)
    monkeypatch.setattr(boxes, "SessionBox", lambda medium, decrypts, fuse: types.SimpleNamespace(child=None))
    monkeypatch.setattr(module, "Choice", Found)
    monkeypatch.setattr(module, "open_storage", nothing)


def supervisor(folder: Path, reporter: Reporter, volumes: list[Volume]) -> Any:
    target = folder / "m"
    target.mkdir()
    options = MountOptions(idle=0, entries=1000)
    order = Order(str(folder / "x.img"), 512, False, Format.RAW, None, str(target), False, 1, 1, options)
    medium = types.SimpleNamespace(format=Format.RAW, name="x", sector_size=None, part=WHOLE, sequence=0)
    runtime = types.SimpleNamespace(write=lambda record: None)
    made: Any = Supervisor(order, medium, Place.hold(target), runtime, reporter)  # type: ignore[arg-type]
    storage = types.SimpleNamespace(raw=True, pid=None, writable=False)
    made._machines = [types.SimpleNamespace(storage=storage, release=nothing, accelerator="tcg", pid=1)]

    made.found = volumes
    return made


def volume(number: int = 1, label: str = "") -> Volume:
    return Volume(f"sda{number}", "partition", number, 0, 512, "ext4", "filesystem", label, "", "gpt", "")


@pytest.mark.usefixtures("patched")
async def test_what_is_unmounted_before_all_is_mounted_is_no_bug(tmp_path: Path) -> None:
    made = supervisor(tmp_path, Reporter(), [volume()])
    async with trio.open_nursery() as nursery:
        made._nursery = nursery
        with pytest.raises(UserError) as failure:
            await made._mount_all(made._machines[0].storage, made.found, nothing)
    assert "unmounted again" in failure.value.message


# --- a record longer than a packet ---------------------------------------------------------------------------------
LABEL = "\U00010400" * 63  # twelve bytes each, as JSON has them


class LongServed(Served):
    """Mounted, with much to tell."""

    lasts = True
    which, pid = None, 1

    def mounted(self) -> Mount:
        return Mount(str(self.place.path), "sda1", 1, "1", "ext4", self.volume.label, "", (), True, 0, 1)


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
    for end in (ours, client):
        end.settimeout(PATIENCE / 3)  # a thread that waits for what was swallowed would wait for ever
    with ours, theirs, client:
        made = await many(tmp_path, monkeypatch, RealReporter(theirs))
        async with trio.open_nursery() as nursery:
            made._nursery = nursery
            nursery.start_soon(answer, trio.socket.from_stdlib_socket(server), made._do, 0)
            await made._mount_all(made._machines[0].storage, made.found, nothing)
            with trio.fail_after(PATIENCE):
                record = made._record()
                assert len(json.dumps(record.saved())) > CONTROL_MESSAGE
                made._reporter.tell(Mounted(record))
                told: list[Report] = []
                while not told or not isinstance(told[-1], Mounted):
                    told.append(REPORTS.read(await trio.to_thread.run_sync(pieces.receive, ours) or {}))
                assert told[-1] == Mounted(record)
                client.send(channel.encode({"do": "status"}))
                answered = await trio.to_thread.run_sync(pieces.receive, client) or {}
                assert ANSWERS.read(answered) == Mounted(record)
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("patched")
@pytest.mark.real_clock
async def test_a_client_that_cannot_be_answered_ends_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await many(tmp_path, monkeypatch, Reporter())
    record = made._record()
    monkeypatch.setattr(made, "_record", lambda: replace(record, source="y" * CONTROL_WHOLE))
    client, server = channel.pair()
    with client:
        client.send(channel.encode({"do": "status"}))
        await answer(trio.socket.from_stdlib_socket(server), made._do, 0)  # and nothing is raised
        assert pieces.receive(client) is None


@pytest.mark.real_clock
def test_what_is_too_long_to_be_told_is_not_swallowed() -> None:
    ours, theirs = channel.pair()
    with ours, theirs, pytest.raises(ValueError, match="bytes"):
        RealReporter(theirs).tell(Progress("x" * CONTROL_WHOLE))


@pytest.mark.usefixtures("patched")
@pytest.mark.real_clock
@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"do": "run"}, "Verb"),
        ({}, "no do"),
        ({"do": "unmount", "force": 1}, "force"),
        ({"do": "unmount", "gently": True}, "gently"),
        ({"do": "status", "version": 9}, "another version"),
    ],
)
async def test_what_is_no_request_is_answered_and_does_nothing(
    tmp_path: Path, request_: dict[str, Any], words: str
) -> None:
    made = supervisor(tmp_path, Reporter(), [volume()])
    client, server = channel.pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, trio.socket.from_stdlib_socket(server), made._do, 0)
        with client, trio.fail_after(PATIENCE):
            for _ in range(2):
                client.send(channel.encode(request_))
                told = ANSWERS.read(await trio.to_thread.run_sync(pieces.receive, client) or {})
                assert isinstance(told, Failed)
                assert words in told.message
    assert not made._done.is_set()


class Saving(Served):
    """Has something to save; it saves only while all the others do too, as `together` says."""

    lasts = True
    together: "Together"

    async def save(self, deadline: float, force: bool) -> None:
        await self.together.come()
        if self.volume.label == "BAD":
            raise UserError("it is full")

    async def settled(self, deadline: float) -> None:
        await self.together.come()

    def unmount(self, lazy: bool) -> None:
        self.together.unmounted.append(self.volume.number)


class Together:
    """Lets nobody go on before all have come."""

    def __init__(self, count: int) -> None:
        self._left = self._count = count
        self._all = trio.Event()
        self.unmounted: list[int] = []

    async def come(self) -> None:
        self._left -= 1
        if not self._left:
            self._all.set()
            self._left, self._all = self._count, trio.Event()
        else:
            await self._all.wait()


@pytest.mark.usefixtures("patched")
@pytest.mark.real_clock
@pytest.mark.parametrize("label", ["", "BAD"])
async def test_what_was_changed_is_saved_beside_each_other_before_anything_is_unmounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    monkeypatch.setattr(module, "ServedVolume", Saving)
    Saving.together = Together(3)
    made = supervisor(tmp_path, Reporter(), [volume(1), volume(2, label), volume(3)])
    monkeypatch.setattr(made, "_record", lambda: None)
    async with trio.open_nursery() as nursery:
        made._nursery = nursery
        await made._mount_all(made._machines[0].storage, made.found, nothing)
        with trio.fail_after(PATIENCE):
            told = await made._do(Request(Verb.UNMOUNT))
        nursery.cancel_scope.cancel()
    assert isinstance(told, Failed if label else Done)
    assert Saving.together.unmounted == ([] if label else [1, 2, 3])
    assert made._done.is_set() is not bool(label)
