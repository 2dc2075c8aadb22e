"""What callers can do to the daemon's service, by a real bus: errors stay theirs, and polkit alone answers for it."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    HeaderFields,
    message_bus,
    new_method_call,
    new_method_return,
    new_signal,
)

from mountsafe import trios
from mountsafe.daemon import control
from mountsafe.daemon.address import NAME, PATH
from mountsafe.daemon.admission import OF_A_CALLER
from mountsafe.daemon.bus import ANYBODY, Bus, connected
from mountsafe.daemon.control import Callers, Control, Request
from mountsafe.daemon.interface import Told
from mountsafe.daemon.keys import TooManyTries, WrongKey
from mountsafe.errors import UserError
from mountsafe.system import handed
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
        self.secrets: list[bytes] = []

    def media(self) -> list[Told]:
        return []

    async def status(self) -> Told:
        return {"version": "x"}

    async def asked(self, method: str, *arguments: str | int) -> Request:
        if arguments and arguments[0] != "sdb":
            raise UserError("no such medium")

        async def run() -> None:
            if self.error:
                raise self.error
            self.done.append(method)
            if method == "Unlock":
                self.secrets.append(os.read(int(arguments[2]), 100))

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
            async with connected("SYSTEM", lambda _: None, descriptors=True) as caller:
                with trio.fail_after(60):
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
            assert len(polkit.questions) <= OF_A_CALLER

    played(Desk(), play)


# --- descriptors -----------------------------------------------------------------------------------------------------
def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


async def unlock(caller: Bus, secret: bytes, device: str = "sdb") -> None:
    fd = handed.carried(secret)
    try:
        call = new_method_call(WHERE, "Unlock", "ssh", (device, "passphrase", fd))
        await caller.ask(call, "", ANYBODY)
    finally:
        os.close(fd)


@pytest.mark.usefixtures("bus")
def test_a_key_comes_with_its_call_and_is_closed_after_it() -> None:
    desk = Desk()

    async def play(caller: Bus, _: Polkit) -> None:
        before = opened()
        for secret in (b"one", b"two"):
            await unlock(caller, secret)
        with pytest.raises(DBusErrorResponse, match="no such medium"):
            await unlock(caller, b"three", "sdz")
        assert opened() == before

    played(desk, play)
    assert desk.secrets == [b"one", b"two"]


@pytest.mark.usefixtures("bus")
def test_nobody_s_descriptor_becomes_another_call_s() -> None:
    """Whatever a message says of itself: its header is passed over, or it is larger than we hear, or no call."""
    desk = Desk()
    oversized = "A" * (100 << 10)

    async def play(caller: Bus, _: Polkit) -> None:
        await lives(caller)
        before = opened()
        async with connected("SYSTEM", lambda _: None, descriptors=True) as other:
            fds = [handed.carried(b"evil") for _ in range(20)]
            for number, fd in enumerate(fds):
                wide = DBusAddress("/" + "a" * 10_000, NAME, NAME)
                for message in (
                    new_method_call(wide, "Unlock", "ssh", ("sdb", "passphrase", fd)),
                    new_method_call(WHERE, "Unlock", "ssh", (oversized, "passphrase", fd)),
                    new_method_call(WHERE, "Ping", "h", (fd,)),
                    new_method_call(WHERE, "Open", "sh", ("sdb", fd)),
                    new_signal(wide, "News", "h", (fd,)),
                    new_method_call(WHERE, "Unlock", "sshh", ("sdb", "passphrase", fd, fds[0])),
                    new_method_call(WHERE, "Unlock", "s" + "h" * 9, ("sdb", *fds[:9])),
                ):
                    other.post(message)
                await unlock(caller, b"mine %d" % number)
            await lives(other)  # all of it was sent
            for fd in fds:
                os.close(fd)
        await lives(caller)
        assert opened() <= before + 2, "descriptors are left"

    played(desk, play)
    assert desk.secrets == [b"mine %d" % number for number in range(20)]
    assert set(desk.done) == {"Unlock"}


@pytest.mark.usefixtures("bus")
@pytest.mark.parametrize(
    ("error", "name"), [(WrongKey("no"), "WrongKey"), (TooManyTries(3, 9), "TooManyTries"), (UserError("x"), "Failed")]
)
def test_a_wrong_key_has_an_error_of_its_own(error: Exception, name: str) -> None:
    async def play(caller: Bus, _: Polkit) -> None:
        with pytest.raises(DBusErrorResponse) as told:
            await unlock(caller, b"secret")
        assert told.value.name == f"{NAME}.{name}"

    played(Desk(error), play)


@pytest.mark.usefixtures("bus", "strangers")
def test_polkit_hears_of_a_key_no_more_than_its_form() -> None:
    async def play(caller: Bus, polkit: Polkit) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, caller)
            await polkit.question()
            _, action, details, *_ = polkit.questions[-1].body("(sa{sv})sa{ss}us")
            assert (action, details) == ("org.mountsafe.unlock", {"device": "sdb", "form": "passphrase"})
            polkit.say("(bba{ss})", ((False, False, {}),))

    async def refused(caller: Bus) -> None:
        with pytest.raises(DBusErrorResponse, match="AccessDenied"):
            await unlock(caller, b"secret")

    desk = Desk()
    played(desk, play)
    assert desk.secrets == []
