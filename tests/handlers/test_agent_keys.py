"""A locked medium on a desktop: who is asked for its key, when, and who is not."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mountsafe import trios
from mountsafe.daemon import client, person
from mountsafe.daemon.person import Person
from mountsafe.desktop import agent as agents
from mountsafe.desktop import keys, prompts, remembering
from mountsafe.desktop.agent import Agent
from mountsafe.desktop.notices import Action, notice_of

LOCKED: dict[str, Any] = {
    "device": "sdb",
    "state": "locked",
    "verdict": "sandbox",
    "rule": "",
    "reason": "",
    "fstype": "crypto_LUKS",
    "label": "PHOTOS",
    "model": "Stick",
    "user": "",
    "problem": "",
    "note": "",
    "mounts": [],
    "locked": "LUKS2",
    "locked_uuid": "77",
    "locked_hint": "",
}


class Desktop:
    """Shows nothing, and tells what it was to show."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    async def show(self, notice: Any, _: int = 0) -> int:
        self.shown.append(notice)
        return len(self.shown)

    async def close(self, number: int) -> None:
        return


class Scene:
    """An agent, what the daemon keeps, who is at the seat, and what was given and offered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.agent = Agent(any_seat=False)
        self.media: list[dict[str, Any]] = [dict(LOCKED, user=self.agent._name)]
        self.seat: Person | None = Person(self.agent._name, 0, 0)
        self.desktop = Desktop()
        self.typed: list[bytes | None] = []
        self.given: list[bytes] = []
        self.offered: list[tuple[str, bytes]] = []
        self.remembered: bytes | None = None
        self.asked = 0
        self.agent._desktop = self.desktop  # type: ignore[assignment]
        self.agent._offers = SimpleNamespace(make=self._offer)  # type: ignore[assignment]
        monkeypatch.setattr(client, "media", lambda *_: self.media)
        monkeypatch.setattr(person, "at_seat", lambda *_: self.seat)
        monkeypatch.setattr(prompts, "ask", self._ask)
        monkeypatch.setattr(keys, "give", self._give)
        monkeypatch.setattr(remembering, "recall", lambda _: self.remembered)
        monkeypatch.setattr(agents, "open_folder", self._open_folder)

    async def _offer(self, uuid: str, _: str, secret: bytes) -> None:
        self.offered.append((uuid, secret))

    async def _open_folder(self, _: str) -> None:
        return

    async def _ask(self, _: object) -> bytes | None:
        self.asked += 1
        if not self.typed:
            await trio.sleep_forever()
        return self.typed.pop(0)

    async def _give(self, _: object, secret: bytes) -> None:
        self.given.append(bytes(bytearray(secret)))
        if secret.startswith(b"wrong"):
            raise client.WrongKey("that is not the passphrase")

    def run(self, play: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    self.agent._nursery = nursery
                    await self.agent._agree()
                    await self.idle()
                    await play()
                    nursery.cancel_scope.cancel()

        trios.run(run)

    async def idle(self) -> None:
        for _ in range(20):
            await trio.sleep(0.01)

    async def press(self) -> None:
        medium = self.media[0]
        notice = notice_of(medium)
        assert notice is not None
        assert Action.UNLOCK in notice.actions
        await self.agent._act(medium, notice, Action.UNLOCK)
        await self.idle()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_what_is_typed_unlocks_it_and_is_offered_to_be_remembered(scene: Scene) -> None:
    scene.typed = [b"".join([b"wro", b"ng"]), b"".join([b"rig", b"ht"])]

    async def play() -> None:
        assert (scene.asked, scene.desktop.shown[0].summary) == (0, "PHOTOS is encrypted (LUKS2)")
        await scene.press()
        assert scene.given == [b"wrong", b"right"]
        assert scene.offered == [("77", b"right")]
        assert "sdb" in scene.agent._to_open

    scene.run(play)


@pytest.mark.parametrize("seat", [None, Person("somebody", 1, 1), "locked"])
def test_nobody_is_asked_while_the_screen_is_locked_or_somebody_else_sits_there(scene: Scene, seat: Any) -> None:
    scene.seat = Person(scene.agent._name, 0, 0, locked=True) if seat == "locked" else seat
    scene.remembered = b"right"

    async def play() -> None:
        assert scene.given == []
        await scene.press()
        assert scene.asked == 0
        assert scene.desktop.shown[-1].summary == "Unlock failed"

    scene.run(play)


def test_what_is_remembered_unlocks_it_once_each_time_that_it_is_plugged_in(scene: Scene) -> None:
    scene.remembered = b"".join([b"rig", b"ht"])

    async def play() -> None:
        assert scene.given == [b"right"]
        await scene.agent._agree()  # somebody has locked it
        await scene.idle()
        assert len(scene.given) == 1
        kept, scene.media = scene.media, []
        await scene.agent._agree()
        scene.media = kept
        scene.remembered = b"".join([b"rig", b"ht"])
        await scene.agent._agree()
        await scene.idle()
        assert (len(scene.given), scene.asked, scene.offered) == (2, 0, [])

    scene.run(play)


def test_what_is_remembered_and_wrong_is_no_answer(scene: Scene) -> None:
    scene.remembered = b"".join([b"wro", b"ng"])
    scene.typed = [b"".join([b"rig", b"ht"])]

    async def play() -> None:
        await scene.press()
        assert scene.given == [b"wrong", b"right"]

    scene.run(play)


def test_a_prompt_goes_with_its_medium_and_there_is_one_at_a_time(scene: Scene) -> None:
    async def play() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.press)
            await scene.idle()
            await scene.press()
            assert scene.asked == 1
            scene.media = []
            await scene.agent._agree()
        assert scene.agent._asking == {}
        assert scene.given == []

    scene.run(play)
