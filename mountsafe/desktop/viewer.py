"""An image that somebody opens from a file manager: its folder is shown, and a notification unmounts it.

Nobody looks at a terminal then, so whatever goes wrong is a notification as well.
"""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import trio
from jeepney import HeaderFields, MatchRule, MessageType

from mountsafe.daemon.bus import Bus, BusGone, connected
from mountsafe.desktop import notifications
from mountsafe.desktop.folders import open_folder
from mountsafe.desktop.notices import TEXT, Action, Notice
from mountsafe.desktop.notifications import NOBODY, Notifications
from mountsafe.desktop.signals import subscribe
from mountsafe.errors import UserError
from mountsafe.system.messages import Heard, Malformed
from mountsafe.text import shown_path
from mountsafe.trios import in_thread

GRACE = 1.0  # seconds: a server may tell that a notification is closed before it tells which button did that
QUEUE = 100  # signals that wait


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that is mounted. `what`: types and labels; `problem`: what is missing. Both are fit to be shown."""

    folder: str
    what: str
    problem: str
    supervisor: int


class Viewer:
    """Opens an image called `name` for its user. `mount` and `unmount` block, and raise UserError."""

    def __init__(self, name: str, mount: Callable[[], Opened], unmount: Callable[[], object]) -> None:
        self._name = name
        self._mount = mount
        self._unmount = unmount
        self._heard, self._signals = trio.open_memory_channel[Heard](QUEUE)
        self._desktop: Notifications
        self._number = NOBODY
        self._unmounting = False

    async def run(self) -> None:
        """Return when it is unmounted, or its notification is closed. Raises UserError if it could not be opened."""
        reached = False
        try:
            async with connected("SESSION", self._hear) as session:
                reached = True
                await self._serve(session)
        except BusGone:
            if not reached:  # no desktop to talk to: the folder may be shown all the same
                await open_folder((await in_thread(self._mount)).folder)

    def _hear(self, message: Heard) -> None:
        if message.kind is MessageType.signal:
            with suppress(trio.WouldBlock):
                self._heard.send_nowait(message)

    async def _serve(self, session: Bus) -> None:
        self._desktop = Notifications(session)
        await subscribe(session, MatchRule(interface=notifications.NAME))
        await self._show(Notice(f"{self._name} is being opened", "A virtual machine looks at it first.", lasts=True))
        try:
            opened = await in_thread(self._mount)
        except UserError as error:
            await self._show(self._failed(f"{self._name} could not be opened", error))
            raise
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_folder, opened.folder)
            nursery.start_soon(self._end_when_unmounted, opened, nursery.cancel_scope)
            await self._answer(opened, nursery)
            if self._number == NOBODY:  # nobody has shown it, so nobody can close it: only the folder is waited for
                return
            nursery.cancel_scope.cancel()

    async def _answer(self, opened: Opened, nursery: trio.Nursery) -> None:
        """Do what the buttons say, until it is unmounted or the user has closed the notification."""
        notice = self._open(opened)
        while True:
            await self._show(notice)
            action = await self._pressed() if self._number != NOBODY else None
            if action is None:
                return
            if action is not Action.UNMOUNT:
                nursery.start_soon(open_folder, opened.folder)
                continue
            self._unmounting = True
            try:
                await in_thread(self._unmount)
            except UserError as error:
                self._unmounting = False
                words = self._failed(f"{self._name} cannot be unmounted", error)
                notice = replace(words, actions=(Action.UNMOUNT, Action.OPEN))
                continue
            await self._show(Notice(f"{self._name} is unmounted", "", category="device.removed"))
            return

    def _open(self, opened: Opened) -> Notice:
        how = f"{opened.what}, read-only, in a virtual machine"
        body = "\n".join(filter(None, (how, shown_path(opened.folder, TEXT), opened.problem)))
        actions = (Action.DEFAULT, Action.OPEN, Action.UNMOUNT)
        return Notice(f"{self._name} is open", body, actions, category="device.added", lasts=True)

    def _failed(self, summary: str, error: UserError) -> Notice:
        body = "\n".join(filter(None, (f"{error.message[:1].upper()}{error.message[1:]}.", error.hint)))
        return Notice(summary, body, icon="dialog-error", category="device.error", lasts=True)

    async def _show(self, notice: Notice) -> None:
        self._number = await self._desktop.show(notice, self._number)

    async def _pressed(self) -> Action | None:
        """Wait for a button of what is shown; None: it was closed."""
        closes = math.inf
        while True:
            with trio.move_on_at(closes) as waiting:
                signal = await self._signals.receive()
            if waiting.cancelled_caught:
                return None
            with suppress(Malformed, ValueError):
                match str(signal.header.fields.get(HeaderFields.member)):
                    case "ActionInvoked":
                        number, action = signal.body("us")
                        if number == self._number:
                            return Action(action)
                    case "NotificationClosed":
                        number, _ = signal.body("uu")
                        if number == self._number:
                            closes = trio.current_time() + GRACE

    async def _end_when_unmounted(self, opened: Opened, scope: trio.CancelScope) -> None:
        """Take the notification away when somebody else has unmounted it."""
        try:
            pidfd = os.pidfd_open(opened.supervisor)
        except OSError:  # it was faster
            pidfd = -1
        if pidfd >= 0:
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        if self._unmounting:
            return
        await self._desktop.close(self._number)
        scope.cancel()
