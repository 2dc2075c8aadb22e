"""A session process that was taken over: its parent believes nothing, and ends it at the first wrong word."""

import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mountsafe.errors import GuestGone, UserError
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.session import boxes as boxes_module
from mountsafe.session import served as served_module
from mountsafe.session.attached import MountId
from mountsafe.session.boxes import SessionBox
from mountsafe.session.mounter import FuseMount, MountRequest
from mountsafe.session.places import Place
from mountsafe.session.presentation import Presentation
from mountsafe.session.served import ServedVolume
from mountsafe.session.storage import Storage


class FakeChild:
    """In the place of the boxed process: its end of the control channel is the test's."""

    pid = 0

    def __init__(self, command: list[str], fds: list[int], name: str, log: object) -> None:
        self.control = trio.socket.fromfd(fds[0], socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def log_words(self) -> None:
        await trio.sleep_forever()

    async def wait(self) -> int:
        await trio.sleep_forever()
        raise AssertionError

    async def stop(self) -> None:
        self.control.close()

    async def say(self, message: Any) -> None:
        await self.control.send(message if isinstance(message, bytes) else json.dumps(message).encode())


class FakeMachines:
    """Counts what is asked of the virtual machine, whose kernel has crashed."""

    number = 3
    crash = "kernel BUG at fs/x.c:1!"

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.ended: list[int] = []
        self.renewed = 0

    async def stream(self, user: object) -> socket.socket:
        raise GuestGone("there is none")

    numbered = stream

    async def renew(self, why: str) -> None:
        self.renewed += 1

    async def release(self, user: object) -> None:
        pass

    async def end_misbehaving(self, number: int, why: str) -> None:
        self.ended.append(number)


class Session:
    def __init__(
        self, served: ServedVolume, child: FakeChild, mounts: list[MountRequest], machines: FakeMachines
    ) -> None:
        self.served = served
        self.say = child.say
        self.receive = child.control.recv
        self.mounts = mounts
        self.machines = machines
        self.ended = trio.Event()


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> list[MountRequest]:
    """Nothing is started or mounted; what would be mounted is listed."""
    mounts: list[MountRequest] = []

    def mount(request: MountRequest) -> Any:
        mounts.append(request)
        raise UserError("not in this test")

    monkeypatch.setattr(boxes_module, "Child", FakeChild)
    monkeypatch.setattr(served_module, "mount", mount)
    return mounts


@asynccontextmanager
async def session(
    mounts: list[MountRequest], tmp_path: Path, made: Callable[[FakeMachines, trio.Nursery], Any] | None = None
) -> AsyncIterator[Session]:
    """A session process, until the test is done. `made`: makes who writes for it."""
    volume = Volume("sdx", "disk", 0, 0, 512, "ext4", "filesystem", "", "", "", "")
    medium = Medium(tmp_path / "a,allow_root.img", os.open("/dev/null", os.O_RDONLY), 512, False)
    shown = Presentation(None, 1, 1, "nofollow")
    async with trio.open_nursery() as nursery:
        machines = FakeMachines(Storage(medium, nursery))
        place = Place.hold(tmp_path)
        writer = made(machines, nursery) if made else None
        box = SessionBox(medium)
        served = ServedVolume(volume, place, machines, shown, box, medium.name, writer)  # type: ignore[arg-type]
        seen = Session(served, served._child, mounts, machines)  # type: ignore[arg-type]

        async def run() -> None:
            await served.serve()
            seen.ended.set()

        nursery.start_soon(run)
        assert json.loads(await seen.receive(10_000))["assignment"]["device"] == "sdx"
        yield seen
        nursery.cancel_scope.cancel()
    place.close()
    os.close(medium.fd)


READY = {"mode": 0o755, "state": 0, "resorts": 0, "fstype": "ext4", "direct": True}
WRONG = {
    "not JSON": b"{",
    "deeply nested": b"[" * 60000,
    "a list": [],
    "nothing": {},
    "an unknown word": {"root": "please"},
    "two words": {"resting": {}, "ready": READY},
    "a complaint of no virtual machine": {"misbehaved": {"why": "x"}},
    "a complaint of a name": {"misbehaved": {"number": "1", "why": "x"}},
    "a want that is a list": {"want-disk": []},
    "a want to write, where nothing may be written": {"want-stream": True},
    "something to settle, where nothing may be written": {"settle": {}},
    "something unsaved, where nothing may be written": {"unsaved": {"why": "x", "count": 1}},
    "a complaint of who writes, where nobody does": {"misbehaved": {"number": 1, "why": "x", "writing": True}},
    "a want to write that is a number": {"want-stream": 1},
    "an unknown key": {"ready": READY | {"target": "/etc"}},
    "serving before it is mounted": {"serving": {}},
    "no mode": {"ready": READY | {"mode": None}},
    "a mode that is text": {"ready": READY | {"mode": "755"}},
    "no state": {"ready": READY | {"state": None}},
    "an unknown state": {"ready": READY | {"state": 99}},
    "no way that it was mounted": {"ready": READY | {"resorts": None}},
    "an unknown way": {"ready": READY | {"resorts": 1 << 15}},
    "a state that is a list": {"ready": READY | {"state": []}},
    "a state that is an object": {"ready": READY | {"state": {}}},
}


@pytest.mark.parametrize("message", WRONG.values(), ids=WRONG.keys())
@pytest.mark.real_clock
async def test_a_wrong_word_ends_it(patched: list[MountRequest], tmp_path: Path, message: Any) -> None:
    async with session(patched, tmp_path) as seen:
        await seen.say(message)
        await seen.ended.wait()
        assert seen.served.failure is not None
        assert not patched


@pytest.mark.real_clock
async def test_it_is_mounted_once_at_most(patched: list[MountRequest], tmp_path: Path) -> None:
    async with session(patched, tmp_path) as seen:
        await seen.say({"ready": READY})
        assert json.loads(await seen.receive(1000)) == {"nothing": "not in this test"}
        await seen.say({"ready": READY})
        await seen.ended.wait()
        assert len(patched) == 1


@pytest.mark.real_clock
async def test_it_cannot_choose_how_it_is_mounted(patched: list[MountRequest], tmp_path: Path) -> None:
    async with session(patched, tmp_path) as seen:
        await seen.say({"ready": READY | {"mode": 0o107777, "fstype": "\x1b[2J" + "x" * 9999}})
        assert json.loads(await seen.receive(1000)) == {"nothing": "not in this test"}
        (request,) = patched
        assert (request.place.path, request.uid, request.gid, request.mode) == (tmp_path, 1, 1, 0o777)
        assert "," not in request.source
        assert not request.follow_links
        assert seen.served.fstype.isprintable()
        assert len(seen.served.fstype) <= 64


@pytest.mark.parametrize("word", ["refused", "failed"])
@pytest.mark.real_clock
async def test_its_words_are_made_printable(patched: list[MountRequest], tmp_path: Path, word: str) -> None:
    async with session(patched, tmp_path) as seen:
        await seen.say({word: "\x1b]0;title\x07" + "x" * 30000})
        await seen.served.serving.wait()
        assert seen.served.failure is not None
        assert seen.served.failure.message.isprintable()
        assert len(seen.served.failure.message) < 2200


@pytest.mark.real_clock
async def test_a_machine_that_cannot_be_had_is_an_answer(patched: list[MountRequest], tmp_path: Path) -> None:
    async with session(patched, tmp_path) as seen:
        await seen.say({"want-stream": False})
        assert json.loads(await seen.receive(1000)) == {"nothing": "there is none"}
        await seen.say({"misbehaved": {"number": 2, "why": "x"}})
        await seen.say({"want-stream": False})
        await seen.receive(1000)
        assert seen.machines.ended == [2]


@pytest.mark.real_clock
async def test_a_descriptor_that_cannot_be_sent_is_closed(
    patched: list[MountRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who looks at the mount would wait for a session process that is gone."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    async with session(patched, tmp_path) as seen:

        def mount(request: MountRequest) -> FuseMount:
            trio.from_thread.run(seen.served._child.stop)  # it ends in this very moment
            return FuseMount(MountId(0, 0, (0, 0), "x"), writing, True)

        monkeypatch.setattr(served_module, "mount", mount)
        await seen.say({"ready": READY})
        await seen.ended.wait()
        assert os.read(reading, 1) == b""
    os.close(reading)
