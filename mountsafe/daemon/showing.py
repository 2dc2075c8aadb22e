"""How media are shown, and who is told of them: what keepers share with whoever makes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import trio

from mountsafe.daemon.aside import aside
from mountsafe.daemon.person import Person
from mountsafe.daemon.spare import Spare
from mountsafe.errors import ExitCode, UserError

PERSON_PATIENCE = 60.0  # seconds until logind is left behind
UNLOCK_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class DisplaySettings:
    """How media are shown. `person` is asked for whenever one is: it returns None while nobody is there.

    `base`: where each user has a folder of their media; `hidden`: the same for those that desktops are not to show.
    """

    person: Callable[[], Person | None]
    base: str
    hidden: str
    idle: float
    spare: Spare


class IncidentKind(StrEnum):
    """What can go wrong with a medium: the kinds of incidents."""

    CLAIM = "claim"  # it cannot be claimed
    OPEN = "open"  # it cannot be opened
    PARTIAL = "partial"  # some of its file systems cannot be opened
    KEY = "key"  # the key file that the policy names for it does not unlock it
    GUEST = "guest"  # its virtual machine died or broke the rules, and was ended
    PULLED = "pulled"  # it was pulled out while it was shown
    UNSAVED = "unsaved"  # changes that programs were told of are not on it
    BUG = "bug"  # a fault of ours


class Public(Protocol):
    """Whoever is told what happens to media."""

    def changed(self, medium: Mapping[str, str | int | list[str]]) -> None:
        """Hear of a medium in another state."""

    def incident(self, device: str, kind: str, words: str) -> None:
        """Hear that something went wrong."""


async def until_there(display: DisplaySettings, uid: int | None, waiting: Callable[[], None]) -> Person:
    """Wait until somebody is there and the screen is not locked; `waiting` is called if that is not so.

    `uid`: who has a key. Raises UserError (LOCKED) if it is not that one.
    """
    while True:
        person = await aside(display.person, PERSON_PATIENCE)
        if person is not None and not person.locked and uid in (None, person.uid):
            return person
        if uid is not None:
            why = "nobody is at the seat any more, or somebody else is, or the screen is locked"
            raise UserError(why, "Try again.", ExitCode.LOCKED)
        waiting()
        await trio.sleep(UNLOCK_INTERVAL)
