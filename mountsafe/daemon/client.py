"""The other end of `org.mountsafe.Manager1`: what the command line asks the daemon."""

from collections.abc import Iterator
from typing import Any

from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    HeaderFields,
    MatchRule,
    message_bus,
    new_method_call,
)

from mountsafe.daemon.address import NAME, PATH
from mountsafe.errors import ExitCode, NoRight, UserError
from mountsafe.limits import SAVE_DEADLINE
from mountsafe.session.messages import KeyForm
from mountsafe.system.answers import Connection, connected
from mountsafe.system.messages import MAX_BODY, Heard, Malformed

TIMEOUT = 20.0  # seconds
# Somebody may have to look for a password, and what was changed has to be saved on the slowest of cards.
ACT_TIMEOUT = 300.0 + SAVE_DEADLINE


class DaemonAway(UserError):
    """Nobody is there to be asked."""

    def __init__(self, message: str, hint: str = "sudo systemctl enable --now mountsafe") -> None:
        super().__init__(message, hint, ExitCode.DEPENDENCY)


class WrongKey(UserError):
    """It was not unlocked with that key."""


class TooManyTries(UserError):
    """It was tried with so many wrong keys that it is not tried now."""


def media(timeout: float = TIMEOUT) -> list[dict[str, Any]]:
    """Return what the daemon keeps."""
    (found,) = _ask("ListMedia", timeout=timeout, signature="aa{sv}")
    return [plain(medium) for medium in found]


def status() -> dict[str, Any]:
    """Return what the daemon says of itself."""
    (found,) = _ask("Status", signature="a{sv}")
    return plain(found)


def act(method: str, *arguments: str) -> None:
    """Call a method that does something: Open, Eject, Lock, Trust, Untrust or Reload. Raises UserError."""
    _ask(method, *arguments, timeout=ACT_TIMEOUT)


def open_as(device: str, fstype: str, pim: int, hidden: bool) -> None:
    """Have a medium opened as what it does not tell of itself that it is. Raises UserError."""
    _ask("OpenAs", device, fstype, pim, hidden, timeout=ACT_TIMEOUT, takes="ssub")


def unlock(device: str, form: KeyForm, fd: int) -> None:
    """Have a medium unlocked with a key, which comes out of a pipe or a memfd. Raises WrongKey, UserError."""
    _ask("Unlock", device, str(form), fd, timeout=ACT_TIMEOUT)


def news() -> Iterator[tuple[str, Any]]:
    """Yield what happens, for ever. Raises UserError.

    That is ("added", medium), ("changed", medium), ("removed", device) or ("incident", {"device", "kind", "words"}).
    The first is ("watching", ""): from then on nothing is missed.
    """
    try:
        with connected(most=MAX_BODY) as connection:
            asked = MatchRule(type="signal", sender=NAME, path=PATH, interface=NAME)
            connection.ask(message_bus.AddMatch(asked), TIMEOUT)
            yield "watching", ""
            yield from _told(connection)
    except (OSError, Malformed) as error:
        raise _no_bus(error) from error


def _told(connection: Connection) -> Iterator[tuple[str, Any]]:
    """Yield what the daemon tells. Others can send us the same, but not by its name."""
    daemon = ""
    while True:
        signal = connection.signal()
        if signal.sender != daemon:
            daemon = connection.owner(NAME, TIMEOUT)
        where = tuple(signal.header.fields.get(field) for field in (HeaderFields.path, HeaderFields.interface))
        if signal.sender == daemon and where == (PATH, NAME):
            yield told_by(signal)


def told_by(signal: Heard) -> tuple[str, Any]:
    """Return what a signal of the daemon tells, as `news` yields it. Raises Malformed."""
    member = str(signal.header.fields[HeaderFields.member])
    if member == "Incident":
        return "incident", dict(zip(("device", "kind", "words"), signal.body("sss"), strict=True))
    (told,) = signal.body("a{sv}", "s")
    return member.removeprefix("Medium").lower(), told if isinstance(told, str) else plain(told)


_ERRORS: dict[str, type[UserError]] = {each.__name__: each for each in (WrongKey, TooManyTries)}


def _ask(
    method: str, *arguments: str | int, timeout: float = TIMEOUT, signature: str = "", takes: str | None = None
) -> Any:
    try:
        takes = takes or "".join("s" if isinstance(each, str) else "h" for each in arguments) or None
        with connected(descriptors="h" in (takes or "")) as connection:
            call = new_method_call(DBusAddress(PATH, NAME, NAME), method, takes, arguments)
            return connection.ask(call, timeout, signature)
    except DBusErrorResponse as error:
        words, hint, *_ = [*map(str, error.data), "", ""]
        if error.name.startswith(NAME):
            if error.name.endswith("AccessDenied"):
                raise NoRight(words, hint) from error
            if kind := _ERRORS.get(error.name.rpartition(".")[2]):
                raise kind(words, hint, ExitCode.LOCKED) from error
            raise UserError(words, hint, ExitCode.FAILURE) from error
        raise DaemonAway(f"the daemon does not run: {words}") from error
    except Malformed as error:
        message = f"the daemon answered {error}"
        raise UserError(message, "sudo systemctl restart mountsafe", ExitCode.DEPENDENCY) from error
    except OSError as error:
        raise _no_bus(error) from error


def _no_bus(error: Exception) -> UserError:
    return DaemonAway(f"the system bus cannot be reached: {error}", "sudo systemctl start dbus")


def plain(told: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return a dictionary of variants as one of values."""
    return {key: value for key, (_, value) in told.items()}
