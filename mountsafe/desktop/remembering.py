"""Keys that a user wants remembered: in their Secret Service, by the UUID of what they unlock. Imports `secretstorage`.

Every program of the session may read what is there, as it may read the user's files. Copying a UUID gains nothing: a
remembered key goes to the daemon, which has it tried in a box (see SECURITY.md).
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from typing import Any

from mountsafe.distribution import install
from mountsafe.errors import ExitCode, UserError
from mountsafe.text import printable

log = logging.getLogger(__name__)
_OURS = {"application": "mountsafe"}


class Keeping(StrEnum):
    """Until when: the aliases of collections that the Secret Service has."""

    SESSION = "session"  # in memory, until logout
    ALWAYS = "default"  # in the user's own keyring


class NoKeyring(UserError):
    """Nothing is remembered here."""

    def __init__(self, why: str) -> None:
        hint = install("python3-secretstorage", "gnome-keyring")
        super().__init__(f"there is no Secret Service to remember keys: {why}", hint, ExitCode.DEPENDENCY)


@contextmanager
def _service() -> Iterator[tuple[Any, Any]]:
    """Yield the library and a connection. Raises NoKeyring, for whatever goes wrong meanwhile as well."""
    try:
        import secretstorage
    except ImportError as error:
        raise NoKeyring("python3-secretstorage is missing") from error
    try:
        with closing(secretstorage.dbus_init()) as connection:
            yield secretstorage, connection
    except UserError:
        raise
    except Exception as error:  # the library raises what it, jeepney and the other end come to
        raise NoKeyring(printable(str(error), 200) or type(error).__name__) from error


def is_there() -> bool:
    """Whether keys can be remembered. Blocks."""
    try:
        with _service() as (library, connection):
            return bool(library.check_service_availability(connection))
    except UserError:
        return False


def recall(uuid: str) -> bytes | None:
    """Return the key of what has this UUID; None if none is remembered, or its keyring is locked. Blocks."""
    try:
        with _service() as (library, connection):
            for item in library.search_items(connection, {**_OURS, "uuid": uuid}):
                if not item.is_locked():
                    return bytes(item.get_secret())
    except NoKeyring as error:
        log.info("%s", error)
    return None


def remember(uuid: str, name: str, secret: bytes, keeping: Keeping) -> None:
    """Keep a key, in place of another one of this UUID. The user may be asked to open their keyring. Blocks.

    Raises NoKeyring.
    """
    forget(uuid)
    with _service() as (library, connection):
        collection = library.collection.get_collection_by_alias(connection, str(keeping))
        if collection.is_locked() and collection.unlock():
            raise NoKeyring("its keyring is locked")
        collection.create_item(f"mountsafe: {name}", {**_OURS, "uuid": uuid}, secret, True, "application/octet-stream")


def forget(uuid: str = "") -> int:
    """Remove what is remembered of a UUID, or all of it; return how many keys that were. Blocks. Raises NoKeyring."""
    with _service() as (library, connection):
        found = list(library.search_items(connection, {**_OURS, **({"uuid": uuid} if uuid else {})}))
        for item in found:
            item.delete()
        return len(found)
