"""The other end of `org.mountsafe.Manager1`: what the command line asks the daemon."""

from collections.abc import Iterator
from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, MatchRule, message_bus, new_method_call
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

from mountsafe.daemon.address import NAME, PATH
from mountsafe.errors import ExitCode, UserError

TIMEOUT = 60.0  # seconds: polkit may ask for a password, and unmounting may take its time


def media() -> list[dict[str, Any]]:
    """Return what the daemon keeps."""
    (found,) = _ask("ListMedia", None, ())
    return [_plain(medium) for medium in found]


def act(method: str, device: str) -> None:
    """Call Open or Eject."""
    _ask(method, "s", (device,))


def news() -> Iterator[tuple[str, Any]]:
    """Yield ("changed", medium) or ("removed", device) as it happens, for ever. Raises UserError.

    The first is ("watching", ""): from then on nothing is missed.
    """
    try:
        with open_dbus_connection(bus="SYSTEM") as connection:
            asked = MatchRule(type="signal", sender=NAME, path=PATH, interface=NAME)
            connection.send_and_get_reply(message_bus.AddMatch(asked), timeout=TIMEOUT)
            ours = MatchRule(type="signal", path=PATH, interface=NAME)  # a message's sender is a unique name
            with connection.filter(ours, bufsize=1000) as signals:
                yield "watching", ""
                while True:
                    (body,) = connection.recv_until_filtered(signals).body
                    yield ("removed", body) if isinstance(body, str) else ("changed", _plain(body))
    except (OSError, KeyError) as error:
        raise _no_bus(error) from error


def _ask(method: str, signature: str | None, body: tuple[str, ...]) -> Any:
    try:
        with open_dbus_connection(bus="SYSTEM") as connection:
            call = new_method_call(DBusAddress(PATH, NAME, NAME), method, signature, body)
            return unwrap_msg(connection.send_and_get_reply(call, timeout=TIMEOUT))
    except DBusErrorResponse as error:
        words = " ".join(str(each) for each in error.data)
        if error.name.startswith(NAME):
            code = ExitCode.TARGET if error.name.endswith("AccessDenied") else ExitCode.FAILURE
            raise UserError(words.removesuffix(". "), "mountsafe devices shows what there is.", code) from error
        raise UserError(f"the daemon does not run: {words}", "sudo mountsafe daemon", ExitCode.DEPENDENCY) from error
    except (OSError, KeyError) as error:
        raise _no_bus(error) from error


def _no_bus(error: Exception) -> UserError:
    return UserError(f"the system bus cannot be reached: {error}", "Is dbus running?", ExitCode.DEPENDENCY)


def _plain(medium: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, (_, value) in medium.items()}
