"""Offers to remember a key that has just unlocked something: a notification each, and the key until it is answered."""

import logging
from dataclasses import dataclass
from functools import partial

import trio

from mountsafe.desktop import remembering
from mountsafe.desktop.notices import Action, Notice
from mountsafe.desktop.notifications import NOBODY, Notifications
from mountsafe.desktop.remembering import Keeping
from mountsafe.encrypted import secrecy
from mountsafe.errors import UserError

log = logging.getLogger(__name__)
PATIENCE = 60.0  # seconds for an answer
GRACE = 1.0  # seconds: a server may tell that a notification is closed before it tells which button did that
KEEPING = {Action.UNTIL_LOGOUT: Keeping.SESSION, Action.ALWAYS: Keeping.ALWAYS}


@dataclass(slots=True)
class _Offer:
    """`secret` is wiped when it is over; `closed` is set by whatever ends it."""

    uuid: str
    name: str
    secret: bytes
    closed: trio.Event
    answer: Action | None = None


class Offers:
    """Those of one user, on their desktop."""

    def __init__(self, desktop: Notifications) -> None:
        self._desktop = desktop
        self._open: dict[int, _Offer] = {}

    async def make(self, uuid: str, name: str, secret: bytes) -> None:
        """Offer to remember a key, and do as the user says; the key is wiped after that. No answer is a no."""
        try:
            there: bool = await trio.to_thread.run_sync(remembering.is_there)
            if uuid and there:
                await self._offered(_Offer(uuid, name, secret, trio.Event()))
        finally:
            secrecy.wipe(secret)

    async def _offered(self, offer: _Offer) -> None:
        words = f"{offer.name} then opens by itself when it is plugged in. mountsafe forget removes the key."
        notice = Notice(f"Remember the key of {offer.name}?", words, tuple(KEEPING), "dialog-password", lasts=True)
        number = await self._desktop.show(notice)
        if number == NOBODY:
            return
        self._open[number] = offer
        try:
            with trio.move_on_after(PATIENCE):
                await offer.closed.wait()
                if offer.answer is None:
                    await trio.sleep(GRACE)
        finally:
            del self._open[number]
        await self._desktop.close(number)
        if offer.answer is not None:
            keep = partial(remembering.remember, offer.uuid, offer.name, offer.secret, KEEPING[offer.answer])
            try:
                await trio.to_thread.run_sync(keep)
            except UserError as error:
                log.info("%s", error)
                failed = Notice(f"The key of {offer.name} is not remembered", error.message, icon="dialog-error")
                await self._desktop.show(failed)

    def pressed(self, number: int, action: str) -> bool:
        """Hear of a button; return whether it is one of an offer."""
        if (offer := self._open.get(number)) is None:
            return False
        if action in KEEPING:
            offer.answer = Action(action)
        offer.closed.set()
        return True

    def closed(self, number: int) -> None:
        """Hear that a notification was closed."""
        if (offer := self._open.get(number)) is not None:
            offer.closed.set()
