"""Who asks on a bus hears whom they asked, whoever else answers first: on a real bus, with a real liar."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    HeaderFields,
    Message,
    MessageType,
    message_bus,
    new_error,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

from mountsafe.daemon import address, client, person
from mountsafe.errors import UserError
from mountsafe.system.answers import BUS, MOST, connected
from mountsafe.system.messages import Heard, Malformed
from tests.handlers.test_bus import bus as bus

NAME, PATH = "org.mountsafe.Test", "/org/mountsafe/Test"
ASKED = new_method_call(DBusAddress(PATH, NAME, NAME), "Who")
TIMEOUT = 20.0


def forged(call: Message, made: Message) -> Message:
    """A message that says it is the answer."""
    made.header.fields[HeaderFields.reply_serial] = call.header.serial
    made.header.fields[HeaderFields.destination] = call.header.fields[HeaderFields.sender]
    return made


def deep(levels: int) -> tuple[str, Any]:
    """A variant in a variant in a variant."""
    value: tuple[str, Any] = ("s", "x")
    for _ in range(levels):
        value = ("v", value)
    return value


# What would cost seconds, or raise anything at all, if it were parsed.
HEAVY: dict[str, Callable[[Message], Message]] = {
    "large": lambda call: new_method_return(call, "ay", (bytes(16 << 20),)),
    "deep": lambda call: new_method_return(call, "v", (deep(60),)),
    "many": lambda call: new_method_return(call, "as", (["x"] * 400_000,)),
}

LIES: dict[str, Callable[[Message], Message]] = {
    "return": lambda call: new_method_return(call, "s", ("a lie",)),
    "error": lambda call: new_error(call, "org.mountsafe.Lie", "s", ("a lie",)),
    "signal": lambda call: forged(call, new_signal(DBusAddress(PATH, interface=NAME), "Lie", "s", ("a lie",))),
    "call": lambda call: forged(
        call, new_method_call(DBusAddress(PATH, call.header.fields[HeaderFields.sender], NAME), "Lie", "s", ("a lie",))
    ),
}


def ask(connection: DBusConnection, call: Message) -> Any:
    """A question of who is in the way of nobody."""
    return unwrap_msg(connection.send_and_get_reply(call, timeout=TIMEOUT))


def called(owner: DBusConnection) -> Message:
    """The next call to this name."""
    while (call := owner.receive(timeout=TIMEOUT)).header.message_type is not MessageType.method_call:
        pass
    return call


def serve(owner: DBusConnection, liar: DBusConnection, lies: list[Callable[[Message], Message]]) -> None:
    """Answer one call, after the lies."""
    call = called(owner)
    for lie in lies:
        liar.send_message(lie(call))
    ask(liar, message_bus.GetId())  # the bus has passed them on
    owner.send_message(new_method_return(call, "s", ("the truth",)))


@pytest.mark.parametrize("lies", [*([name] for name in (*LIES, *HEAVY)), [*LIES, *HEAVY]], ids=[*LIES, *HEAVY, "all"])
def test_a_lie_is_not_heard(bus: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, lies: list[str]) -> None:
    """Nor is it parsed, whoever it comes from, unless it is the answer."""
    parsed: list[str] = []
    read = Heard.body
    monkeypatch.setattr(Heard, "body", lambda self, *known: parsed.append(self.sender) or read(self, *known))
    with open_dbus_connection("SYSTEM") as owner, open_dbus_connection("SYSTEM") as liar:
        assert ask(owner, message_bus.RequestName(NAME)) == (1,)
        told = [{**LIES, **HEAVY}[name] for name in lies]
        serving = threading.Thread(target=serve, args=(owner, liar, told), daemon=True)
        serving.start()
        with connected() as connection:
            assert connection.ask(ASKED, TIMEOUT, "s") == ("the truth",)
            assert connection.owner(NAME, TIMEOUT) == owner.unique_name
        serving.join(TIMEOUT)
        assert not serving.is_alive()
        assert set(parsed) <= {BUS, owner.unique_name}


def test_nobody_has_the_name(bus: subprocess.Popen[bytes]) -> None:
    with connected() as connection:
        with pytest.raises(DBusErrorResponse, match="ServiceUnknown"):
            connection.ask(ASKED, TIMEOUT, "s")
        assert connection.owner(NAME, TIMEOUT) == ""


def test_nobody_answers(bus: subprocess.Popen[bytes]) -> None:
    with open_dbus_connection("SYSTEM") as owner, connected() as connection:
        ask(owner, message_bus.RequestName(NAME))
        with pytest.raises(TimeoutError):
            connection.ask(ASKED, 0.2, "s")


@contextmanager
def owned(name: str, answer: Callable[[Message], Message]) -> Iterator[None]:
    """Somebody has a name, and answers one call so."""
    with open_dbus_connection("SYSTEM") as owner:
        ask(owner, message_bus.RequestName(name))
        serving = threading.Thread(target=lambda: owner.send_message(answer(called(owner))), daemon=True)
        serving.start()
        yield
        serving.join(TIMEOUT)
        assert not serving.is_alive()


@pytest.mark.parametrize("answer", [*HEAVY.values(), LIES["return"]], ids=[*HEAVY, "another"])
def test_an_answer_that_cannot_be_is_none(bus: subprocess.Popen[bytes], answer: Callable[[Message], Message]) -> None:
    """Neither for who asks, nor for the daemon that wants to know who is at the seat."""
    with owned(NAME, answer), connected() as connection, pytest.raises(Malformed):
        connection.ask(ASKED, TIMEOUT, "a{sv}")
    with owned("org.freedesktop.login1", answer):
        assert person.at_seat() is None
    with owned(address.NAME, answer), pytest.raises(UserError, match="the daemon answered"):
        client.media()


def test_an_answer_of_the_largest_size_is_heard(bus: subprocess.Popen[bytes]) -> None:
    content = bytes(MOST - 4)  # and its length
    with owned(NAME, lambda call: new_method_return(call, "ay", (content,))), connected() as connection:
        assert connection.ask(ASKED, TIMEOUT, "ay") == (content,)


def test_only_the_daemon_tells_what_happens(bus: subprocess.Popen[bytes]) -> None:
    """Anybody may send the same signal to who listens: it is passed over, and what is told meanwhile is not lost."""
    with open_dbus_connection("SYSTEM") as daemon, open_dbus_connection("SYSTEM") as liar:
        ask(daemon, message_bus.RequestName(address.NAME))
        before = listeners(liar)
        news = client.news()
        assert next(news) == ("watching", "")
        (listener,) = listeners(liar) - before
        for sender, device in ((liar, "lie"), (daemon, "sda"), (liar, "lie"), (daemon, "sdb")):
            signal = new_signal(DBusAddress(address.PATH, interface=address.NAME), "MediumRemoved", "s", (device,))
            if sender is liar:
                signal.header.fields[HeaderFields.destination] = listener
            sender.send_message(signal)
            ask(sender, message_bus.GetId())
        assert [next(news), next(news)] == [("removed", "sda"), ("removed", "sdb")]
        news.close()


def listeners(connection: DBusConnection) -> set[str]:
    """Everybody's unique names."""
    (names,) = ask(connection, message_bus.ListNames())
    return {name for name in names if name.startswith(":")}
