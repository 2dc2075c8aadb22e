"""`org.freedesktop.Notifications` on the session bus: https://specifications.freedesktop.org/notification-spec/."""

import html
import logging
from typing import Any

import trio
from jeepney import DBusAddress, DBusErrorResponse, new_method_call

from mountsafe.daemon.bus import ANYBODY, Bus
from mountsafe.desktop.notices import LABELS, Notice
from mountsafe.system.messages import Malformed

log = logging.getLogger(__name__)
NAME, PATH = "org.freedesktop.Notifications", "/org/freedesktop/Notifications"
NOBODY = 0  # the number of no notification
DEADLINE = 20.0  # seconds: a server may have to be started
_SERVER = DBusAddress(PATH, NAME, NAME)
_DEFAULT_TIME, _FOR_EVER = -1, 0


class Notifications:
    """Shows notices, by whatever server there is."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def show(self, notice: Notice, replaces: int = NOBODY) -> int:
        """Show a notice, in place of another one; return its number, or NOBODY where no server shows it."""
        told = await self._ask("GetCapabilities", "as")
        if told is None:
            return NOBODY
        capabilities = told[0]
        # Where markup is not known, what is escaped would be shown so.
        body = html.escape(notice.body, quote=False) if "body-markup" in capabilities else notice.body
        actions = notice.actions if "actions" in capabilities else ()
        said = [word for action in actions for word in (str(action), LABELS[action])]
        hints = {"category": ("s", notice.category), "desktop-entry": ("s", "mountsafe")}
        time = _FOR_EVER if notice.lasts else _DEFAULT_TIME
        words = ("mountsafe", replaces, notice.icon, notice.summary, body, said, hints, time)
        told = await self._ask("Notify", "u", "susssasa{sv}i", words)
        return NOBODY if told is None else int(told[0])

    async def close(self, number: int) -> None:
        """Take a notification away, if it is there still."""
        if number != NOBODY:
            await self._ask("CloseNotification", "", "u", (number,))

    async def _ask(
        self, method: str, answer: str, signature: str | None = None, body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...] | None:
        """Return the answer, of the signature `answer`; None if there is none."""
        with trio.move_on_after(DEADLINE):
            try:
                question = new_method_call(_SERVER, method, signature, body)
                return await self._bus.ask(question, answer, ANYBODY)  # whoever is on it is the user himself
            except (DBusErrorResponse, Malformed) as error:
                log.info("no notification server: %s", error)
        return None
