"""Who asks on a bus hears whom they asked, whoever else answers first: on a real bus, with a real liar."""

import subprocess
import threading
from collections.abc import Callable
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

from mountsafe.system.answers import ask
from tests.handlers.test_bus import bus as bus

NAME, PATH = "org.mountsafe.Test", "/org/mountsafe/Test"
ASKED = new_method_call(DBusAddress(PATH, NAME, NAME), "Who")
TIMEOUT = 20.0


def forged(call: Message, made: Message) -> Message:
    """A message that says it is the answer."""
    made.header.fields[HeaderFields.reply_serial] = call.header.serial
    made.header.fields[HeaderFields.destination] = call.header.fields[HeaderFields.sender]
    return made


LIES: dict[str, Callable[[Message], Message]] = {
    "return": lambda call: new_method_return(call, "s", ("a lie",)),
    "error": lambda call: new_error(call, "org.mountsafe.Lie", "s", ("a lie",)),
    "signal": lambda call: forged(call, new_signal(DBusAddress(PATH, interface=NAME), "Lie", "s", ("a lie",))),
    "call": lambda call: forged(
        call, new_method_call(DBusAddress(PATH, call.header.fields[HeaderFields.sender], NAME), "Lie", "s", ("a lie",))
    ),
}


def serve(owner: DBusConnection, liar: DBusConnection, lies: list[Callable[[Message], Message]]) -> None:
    """Answer one call, after the lies."""
    while True:
        call = owner.receive(timeout=TIMEOUT)
        if call.header.message_type is MessageType.method_call:
            break
    for lie in lies:
        liar.send_message(lie(call))
    ask(liar, message_bus.GetId(), TIMEOUT)  # the bus has passed them on
    owner.send_message(new_method_return(call, "s", ("the truth",)))


@pytest.mark.parametrize("lies", [*([name] for name in LIES), list(LIES)], ids=[*LIES, "all"])
def test_a_lie_is_not_heard(bus: subprocess.Popen[bytes], lies: list[str]) -> None:
    with open_dbus_connection("SYSTEM") as owner, open_dbus_connection("SYSTEM") as liar:
        assert ask(owner, message_bus.RequestName(NAME), TIMEOUT) == (1,)
        told = [LIES[name] for name in lies]
        serving = threading.Thread(target=serve, args=(owner, liar, told), daemon=True)
        serving.start()
        with open_dbus_connection("SYSTEM") as connection:
            assert ask(connection, ASKED, TIMEOUT) == ("the truth",)
            before: Any = connection.unique_name
            assert ask(connection, message_bus.GetNameOwner(str(before)), TIMEOUT) == (before,)
        serving.join(TIMEOUT)
        assert not serving.is_alive()


def test_nobody_has_the_name(bus: subprocess.Popen[bytes]) -> None:
    with open_dbus_connection("SYSTEM") as connection, pytest.raises(DBusErrorResponse, match="ServiceUnknown"):
        ask(connection, ASKED, TIMEOUT)


def test_nobody_answers(bus: subprocess.Popen[bytes]) -> None:
    with open_dbus_connection("SYSTEM") as owner, open_dbus_connection("SYSTEM") as connection:
        ask(owner, message_bus.RequestName(NAME), TIMEOUT)
        with pytest.raises(TimeoutError):
            ask(connection, ASKED, 0.2)
