"""Whom media are shown to: the user whose session is active at the seat, and whether their screen is locked."""

import os
import pwd
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, Properties, new_method_call

from mountsafe import environment
from mountsafe.errors import ExitCode, UserError
from mountsafe.system.answers import Connection, connected
from mountsafe.system.messages import Malformed

_LOGIND = DBusAddress("/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager")
TIMEOUT = 10.0
ACL = "system.posix_acl_access"
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
        with connected() as connection:
            (sessions,) = connection.ask(new_method_call(_LOGIND, "ListSessions"), TIMEOUT, "a(susso)")
            for _, uid, name, its_seat, path in sessions:
                if its_seat == seat and uid and (person := _person(connection, path, uid, name)) is not None:
                    return person
    except (OSError, KeyError, DBusErrorResponse, Malformed):
        return None
    return None


def _person(connection: Connection, path: str, uid: int, name: str) -> Person | None:
    session = DBusAddress(path, "org.freedesktop.login1", "org.freedesktop.login1.Session")
    told: dict[str, tuple[str, Any]] = connection.ask(Properties(session).get_all(), TIMEOUT, "a{sv}")[0]
    if not told["Active"][1] or told["Class"][1] != "user":
        return None
    return Person(name, uid, pwd.getpwuid(uid).pw_gid, bool(told["LockedHint"][1]))


def folder_of(person: Person, base: str) -> str:
    """Return the folder that their media appear in, made if need be: root's, closed to all others. Raises UserError.

    Nobody but root can write to it or to what it is in, so no name in it can be changed under us. His group may be
    everybody's, so it is an access control list that lets the user in, as udisks has it.
    """
    environment.require_folder(Path(base), (0,))
    os.makedirs(base, mode=0o755, exist_ok=True)
    folder = os.path.join(os.path.realpath(base), person.name)
    with suppress(FileExistsError):  # udisks makes the same one
        os.mkdir(folder, 0o700)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _not_ours(folder) from error
    try:
        status = os.fstat(fd)
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise _not_ours(folder)
        os.chown(fd, 0, 0)
        os.setxattr(fd, ACL, _for_one(person.uid))
    except OSError as error:
        # Without a list it would be open to the user's group, or to all who guess a label, or not be root's alone.
        hint = "Name a folder on another file system, a tmpfs for example, with --media."
        raise UserError(
            f"{folder} cannot be made private to one user: {error.strerror}", hint, ExitCode.TARGET
        ) from error
    finally:
        os.close(fd)
    return folder


def _not_ours(folder: str) -> UserError:
    return UserError(f"{folder} is not root's alone", "Remove it.", ExitCode.TARGET)


def _for_one(uid: int) -> bytes:
    """Return the access control list (include/uapi/linux/posix_acl_xattr.h) of a folder that root and one user read."""
    nobody = 0xFFFFFFFF
    owner, user, group, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    entries = ((owner, 7, nobody), (user, 5, uid), (group, 0, nobody), (mask, 5, nobody), (other, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
