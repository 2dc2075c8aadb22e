"""What callers can do to the daemon's service, by a real bus: errors stay theirs, and polkit alone answers for it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from jeepney import DBusAddress, DBusErrorResponse, HeaderFields, message_bus, new_method_call, new_method_return

from mountsafe import trios
from mountsafe.daemon import control
from mountsafe.daemon.address import NAME, PATH
from mountsafe.daemon.bus import ANYBODY, Bus, connected
from mountsafe.daemon.control import Callers, Control, Request
from mountsafe.daemon.interface import Told
from mountsafe.errors import UserError
from mountsafe.system.messages import Heard
from tests.handlers.test_bus import bus

__all__ = ["bus"]
WHERE = DBusAddress(PATH, NAME, NAME)
POLKIT = "org.freedesktop.PolicyKit1"


class Desk:
    """Keeps one medium, "sdb"; what is done with it is told in `done`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.done: list[str] = []

    def media(self) -> list[Told]:
        return []

    async def status(self) -> Told:
        return {"version": "x"}

    async def asked(self, method: str, *arguments: str) -> Request:
        if arguments and arguments[0] != "sdb":
            raise UserError("no such medium")

        async def run() -> None:
            if self.error:
                raise self.error
            self.done.append(method)

        return Request("sdb", None, run)


class Polkit:
    """Hears questions, and answers when `say` is called."""

    def __init__(self) -> None:
        self.cancelled = trio.Event()
        self.bus: Bus
        self.questions: list[Heard] = []

    def hear(self, message: Heard) -> None:
        member = message.header.fields.get(HeaderFields.member)
        if member == "CheckAuthorization":
            self.questions.append(message)
        elif member == "CancelCheckAuthorization":
            self.cancelled.set()

    async def question(self) -> None:
        while not self.questions:  # noqa: ASYNC110  # many are waited for
            await trio.sleep(0.01)

    def say(self, signature: str, body: tuple[Any, ...]) -> None:
        self.bus.post(new_method_return(self.questions[-1], signature, body))


Play = Callable[[Bus, Polkit], Awaitable[None]]


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls is an ordinary user: on this bus all of them are root."""

    async def user(_: Callers, __: str) -> int:
        return 1000

    monkeypatch.setattr(control.Callers, "_user", user)


def played(desk: Desk, play: Play) -> None:
    """Run the service, a polkit and a caller."""

    async def run() -> None:
        polkit = Polkit()
        async with trio.open_nursery() as nursery, connected("SYSTEM", polkit.hear) as its:
            polkit.bus = its
            await its.ask(message_bus.RequestName(POLKIT), "u")
            nursery.start_soon(Control(desk).run)
            async with connected("SYSTEM", lambda _: None) as caller:
                with trio.fail_after(20):
                    while not (await caller.ask(message_bus.NameHasOwner(NAME), "b"))[0]:  # noqa: ASYNC110
                        await trio.sleep(0.02)
                    await play(caller, polkit)
            nursery.cancel_scope.cancel()

    trios.run(run)


async def ask(caller: Bus, method: str, *arguments: str, answer: str = "") -> tuple[Any, ...]:
    call = new_method_call(WHERE, method, "s" * len(arguments) or None, arguments)
    return await caller.ask(call, answer, ANYBODY)


async def lives(caller: Bus) -> None:
    ((told),) = await ask(caller, "Status", answer="a{sv}")
    assert told["version"] == ("s", "x")


@pytest.mark.usefixtures("bus")
@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), RuntimeError("a bug"), KeyError("x")])
def test_an_error_in_a_call_is_that_call_s_alone(error: Exception) -> None:
    async def play(caller: Bus, _: Polkit) -> None:
        with pytest.raises(DBusErrorResponse):
            await ask(caller, "Open", "sdb")
        await lives(caller)

    played(Desk(error), play)


@pytest.mark.usefixtures("bus")
def test_what_is_too_large_or_unknown_is_said_and_the_service_goes_on() -> None:
    async def play(caller: Bus, _: Polkit) -> None:
        for arguments in (("A" * (8 << 20),), ("A" * 5000,), ("sdz",)):
            with pytest.raises(DBusErrorResponse):
                await ask(caller, "Open", *arguments)
        with pytest.raises(DBusErrorResponse, match="UnknownMethod"):
            await ask(caller, "Nothing")
        await lives(caller)

    desk = Desk()
    played(desk, play)
    assert desk.done == []


@pytest.mark.usefixtures("bus", "strangers")
@pytest.mark.parametrize(("signature", "body"), [("(bba{ss})", ((False, False, {}),)), ("s", ("yes",)), ("b", (True,))])
def test_what_is_no_clear_yes_is_no(signature: str, body: tuple[Any, ...]) -> None:
    async def play(caller: Bus, polkit: Polkit) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, caller)
            await polkit.question()
            polkit.say(signature, body)
        await lives(caller)

    async def refused(caller: Bus) -> None:
        with pytest.raises(DBusErrorResponse, match="AccessDenied"):
            await ask(caller, "Open", "sdb")

    desk = Desk()
    played(desk, play)
    assert desk.done == []


@pytest.mark.usefixtures("bus", "strangers")
def test_nobody_but_polkit_answers_for_it() -> None:
    """A call may carry the serial of a question; so may an answer that nobody asked for, where a bus passes it on."""

    async def play(caller: Bus, polkit: Polkit) -> None:
        caller.post(new_method_call(WHERE, "Open", "s", ("sdb",)))
        await polkit.question()
        for serial in range(1, 60):
            forged = new_method_call(WHERE, "Ping", "(bba{ss})", ((True, False, {}),))
            forged.header.fields[HeaderFields.reply_serial] = serial
            await caller.send(forged)
        await lives(caller)

    desk = Desk()
    played(desk, play)
    assert desk.done == []


@pytest.mark.usefixtures("bus", "strangers")
def test_who_goes_away_is_not_asked_about_any_more() -> None:
    async def play(_: Bus, polkit: Polkit) -> None:
        async with connected("SYSTEM", lambda _: None) as other:
            other.post(new_method_call(WHERE, "Open", "s", ("sdb",)))
            await polkit.question()
        await polkit.cancelled.wait()

    played(Desk(), play)


@pytest.mark.usefixtures("bus", "strangers")
def test_one_caller_s_flood_leaves_room_for_others() -> None:
    async def play(caller: Bus, polkit: Polkit) -> None:
        async with connected("SYSTEM", lambda _: None) as other:
            for _ in range(100):
                await other.send(new_method_call(WHERE, "Open", "s", ("sdb",)))
            await polkit.question()
            await lives(caller)
            assert len(polkit.questions) <= control.OF_A_CALLER

    played(Desk(), play)
