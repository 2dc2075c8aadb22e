"""The other end of `org.mountsafe.Manager1`: what the command line asks the daemon."""

from collections.abc import Iterator
from typing import Any

from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    HeaderFields,
    MatchRule,
    Message,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import open_dbus_connection

from mountsafe.daemon.address import NAME, PATH
from mountsafe.errors import ExitCode, UserError
from mountsafe.system.answers import ask

TIMEOUT = 20.0  # seconds
ACT_TIMEOUT = 300.0  # somebody may have to look for a password, and unmounting may take its time


def media() -> list[dict[str, Any]]:
    """Return what the daemon keeps."""
    (found,) = _ask("ListMedia")
    return [plain(medium) for medium in found]


def status() -> dict[str, Any]:
    """Return what the daemon says of itself."""
    (found,) = _ask("Status")
    return plain(found)


def act(method: str, *arguments: str) -> None:
    """Call a method that does something: Open, Eject, Trust, Untrust or Reload. Raises UserError."""
    _ask(method, *arguments, timeout=ACT_TIMEOUT)


def news() -> Iterator[tuple[str, Any]]:
    """Yield what happens, for ever. Raises UserError.

    That is ("added", medium), ("changed", medium), ("removed", device) or ("incident", {"device", "kind", "words"}).
    The first is ("watching", ""): from then on nothing is missed.
    """
    try:
        with open_dbus_connection(bus="SYSTEM") as connection:
            asked = MatchRule(type="signal", sender=NAME, path=PATH, interface=NAME)
            ask(connection, message_bus.AddMatch(asked), TIMEOUT)
            ours = MatchRule(type="signal", path=PATH, interface=NAME)  # a message's sender is a unique name
            with connection.filter(ours, bufsize=1000) as signals:
                yield "watching", ""
                while True:
                    yield told_by(connection.recv_until_filtered(signals))
    except (OSError, KeyError) as error:
        raise _no_bus(error) from error


def told_by(signal: Message) -> tuple[str, Any]:
    """Return what a signal of the daemon tells, as `news` yields it."""
    member: str = signal.header.fields[HeaderFields.member]
    if member == "Incident":
        return "incident", dict(zip(("device", "kind", "words"), signal.body, strict=True))
    (told,) = signal.body
    return member.removeprefix("Medium").lower(), told if isinstance(told, str) else plain(told)


def _ask(method: str, *arguments: str, timeout: float = TIMEOUT) -> Any:
    try:
        with open_dbus_connection(bus="SYSTEM") as connection:
            signature = "s" * len(arguments) or None
            call = new_method_call(DBusAddress(PATH, NAME, NAME), method, signature, arguments)
            return ask(connection, call, timeout)
    except DBusErrorResponse as error:
        words, hint, *_ = [*map(str, error.data), "", ""]
        if error.name.startswith(NAME):
            code = ExitCode.TARGET if error.name.endswith("AccessDenied") else ExitCode.FAILURE
            raise UserError(words, hint, code) from error
        raise UserError(f"the daemon does not run: {words}", "sudo mountsafe daemon", ExitCode.DEPENDENCY) from error
    except (OSError, KeyError) as error:
        raise _no_bus(error) from error


def _no_bus(error: Exception) -> UserError:
    return UserError(f"the system bus cannot be reached: {error}", "Is dbus running?", ExitCode.DEPENDENCY)


def plain(told: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return a dictionary of variants as one of values."""
    return {key: value for key, (_, value) in told.items()}
