"""Whom media are shown to: the user whose session is active at the seat, and whether his screen is locked."""

import os
import pwd
import stat
from dataclasses import dataclass
from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, Properties, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

from mountsafe.errors import ExitCode, UserError

_LOGIND = DBusAddress("/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager")
TIMEOUT = 10.0
SEAT = "seat0"  # the machine's own; others are made of more screens and keyboards


@dataclass(frozen=True, slots=True)
class Person:
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    locked: bool = False


def by_name(name: str) -> Person:
    """Return a user of the account database. Raises KeyError."""
    found = pwd.getpwnam(name)
    return Person(found.pw_name, found.pw_uid, found.pw_gid)


def at_seat(seat: str = SEAT) -> Person | None:
    """Return who sits there now, by logind; None if nobody does, or nobody can tell."""
    try:
        with open_dbus_connection(bus="SYSTEM") as connection:
            for session in _ask(connection, new_method_call(_LOGIND, "ListSessions"))[0]:
                _, uid, name, its_seat, path = session
                if its_seat == seat and uid and (person := _person(connection, path, uid, name)) is not None:
                    return person
    except (OSError, KeyError, DBusErrorResponse):
        return None
    return None


def _person(connection: DBusConnection, path: str, uid: int, name: str) -> Person | None:
    session = DBusAddress(path, "org.freedesktop.login1", "org.freedesktop.login1.Session")
    told: dict[str, tuple[str, Any]] = _ask(connection, Properties(session).get_all())[0]
    if not told["Active"][1] or told["Class"][1] != "user":
        return None
    return Person(name, uid, pwd.getpwuid(uid).pw_gid, bool(told["LockedHint"][1]))


def _ask(connection: DBusConnection, message: Any) -> Any:
    return unwrap_msg(connection.send_and_get_reply(message, timeout=TIMEOUT))


def folder_of(person: Person, base: str) -> str:
    """Return the folder that his media appear in, made if need be: root's, closed to all but him and his group.

    Nobody but root can write to it or to what it is in, so no name in it can be changed under us.
    """
    os.makedirs(base, mode=0o755, exist_ok=True)
    folder = os.path.join(base, person.name)
    try:
        os.mkdir(folder, 0o750)
    except FileExistsError:  # udisks makes the same one
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise UserError(f"{folder} is not root's alone", "Remove it.", ExitCode.TARGET) from None
        return folder
    os.chown(folder, 0, person.gid)
    return folder
