"""The agent: compares what the daemon keeps with what is shown, after every signal, and makes the two agree.

A signal only says that it is time to look: who sent it does not matter, and one that is lost costs nothing.
"""

import logging
import os
import pwd
import signal
from contextlib import suppress
from dataclasses import dataclass

import trio
from jeepney import HeaderFields, MatchRule, MessageType

from mountsafe.daemon import address, client, person
from mountsafe.daemon.bus import Bus, BusGone, connected
from mountsafe.desktop import notifications
from mountsafe.desktop.folders import open_folder
from mountsafe.desktop.keys import recalled, unlock
from mountsafe.desktop.notices import Action, Medium, Notice, detailed, failure, is_blocked, name_of, notice_of
from mountsafe.desktop.notifications import NOBODY, Notifications
from mountsafe.desktop.offers import Offers
from mountsafe.desktop.signals import owner_of, subscribe
from mountsafe.errors import ExitCode, UserError
from mountsafe.system.messages import Heard, Malformed

log = logging.getLogger(__name__)
PAUSE = 0.1  # seconds between two looks, however many signals come: anybody may send them
QUEUE = 1000  # signals of the desktop that wait
_SEAT = f"/org/freedesktop/login1/seat/{person.SEAT}"  # it tells when another user sits down


@dataclass(slots=True)
class Shown:
    """What is shown of a medium: by which number, NOBODY once the user has closed it."""

    notice: Notice
    number: int


class Agent:
    """Serves the user who runs it. `any_seat`: they are told of blocked media wherever they sit."""

    def __init__(self, any_seat: bool) -> None:
        self._name = pwd.getpwuid(os.getuid()).pw_name
        self._any_seat = any_seat
        self._media: dict[str, Medium] = {}
        self._shown: dict[str, Shown] = {}
        self._to_open: set[str] = set()  # their folders, as soon as they are there
        self._asking: dict[str, trio.CancelScope] = {}  # devices whose key somebody is asked for
        self._wake, self._woken = trio.open_memory_channel[None](1)
        self._of_desktop, self._from_desktop = trio.open_memory_channel[Heard](QUEUE)
        self._recalled: set[str] = set()  # devices for which it was looked whether their key is remembered
        self._desktop: Notifications
        self._offers: Offers
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT, or the end of one of the two buses. Raises UserError."""
        reached = False
        try:
            async with connected("SESSION", self._hear) as session, connected("SYSTEM", self._hear_daemon) as system:
                reached = True
                await self._serve(session, system)
        except BusGone as error:
            if not reached:
                hint = "It is for a user's session: dbus-run-session makes one."
                raise UserError(f"a bus cannot be reached: {error}", hint, ExitCode.DEPENDENCY) from error
            log.info("the session is over: %s", error)

    async def _serve(self, session: Bus, system: Bus) -> None:
        self._desktop = Notifications(session)
        self._offers = Offers(self._desktop)
        async with trio.open_nursery() as self._nursery:
            await subscribe(session, owner_of(notifications.NAME), MatchRule(interface=notifications.NAME))
            await subscribe(system, owner_of(address.NAME), MatchRule(sender=address.NAME), MatchRule(path=_SEAT))
            self._nursery.start_soon(self._obey_signals)
            self._nursery.start_soon(self._hear_desktop)
            self._look()
            async for _ in self._woken:
                await self._agree()
                await trio.sleep(PAUSE)

    def _look(self) -> None:
        """Have it compared, soon."""
        try:
            self._wake.send_nowait(None)
        except trio.WouldBlock:
            return  # it will be

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                for shown in list(self._shown.values()):
                    await self._desktop.close(shown.number)
                self._nursery.cancel_scope.cancel()

    def _hear_daemon(self, message: Heard) -> None:
        """Look, whatever it is: not a byte of it is read."""
        if message.kind is MessageType.signal:
            self._look()

    def _hear(self, message: Heard) -> None:
        if message.kind is MessageType.signal:
            with suppress(trio.WouldBlock):
                self._of_desktop.send_nowait(message)

    async def _hear_desktop(self) -> None:
        async for heard in self._from_desktop:
            try:
                self._obey_desktop(str(heard.header.fields.get(HeaderFields.member)), heard)
            except Malformed as error:
                log.info("a signal that is none: %s", error)

    def _obey_desktop(self, member: str, heard: Heard) -> None:
        match member:
            case "NameOwnerChanged":  # a new server knows nothing of what another one showed
                self._shown.clear()
                self._look()
            case "NotificationClosed":
                closed, _ = heard.body("uu")
                self._offers.closed(closed)
                for shown in self._shown.values():
                    if shown.number == closed:
                        shown.number = NOBODY
            case "ActionInvoked":
                number, action = heard.body("us")
                if self._offers.pressed(number, action):
                    return
                for device, shown in self._shown.items():
                    medium = self._media.get(device)
                    if medium and shown.number == number and action in shown.notice.actions:
                        self._nursery.start_soon(self._act, medium, shown.notice, Action(action))

    # --- what is shown -----------------------------------------------------------------------------------------------
    async def _agree(self) -> None:
        """Make what is shown agree with what the daemon keeps."""
        self._media = {medium["device"]: medium for medium in await self._kept()}
        wanted = {device: notice for device, medium in self._media.items() if (notice := notice_of(medium))}
        for device in [device for device in self._shown if device not in wanted]:
            await self._desktop.close(self._shown.pop(device).number)
        for device, notice in wanted.items():
            if device not in self._shown or self._shown[device].notice != notice:
                await self._show(device, notice, notice)
            if device in self._to_open and self._media[device]["mounts"]:
                self._to_open.discard(device)
                self._open_folders(self._media[device])
        self._to_open &= set(self._media)
        self._recalled &= set(self._media)
        for device in [device for device in self._asking if device not in self._media]:
            self._asking[device].cancel()
        for device, medium in self._media.items():
            if medium["state"] == "locked" and device not in self._recalled | set(self._asking):
                self._recalled.add(device)
                self._nursery.start_soon(self._recall, medium)

    async def _kept(self) -> list[Medium]:
        """Return the media that concern this user."""
        try:
            media = await trio.to_thread.run_sync(client.media)
        except UserError as error:
            log.info("%s", error)  # it may come later
            return []
        at_seat = self._any_seat
        if not at_seat and any(map(is_blocked, media)):
            found = await trio.to_thread.run_sync(person.at_seat)
            at_seat = found is not None and found.name == self._name
        return [each for each in media if each["user"] == self._name or (not each["user"] and at_seat)]

    async def _show(self, device: str, notice: Notice, words: Notice) -> None:
        """Show words about a medium, which `notice` is to be said of, in place of what is shown of it."""
        before = self._shown.get(device)
        number = await self._desktop.show(words, before.number if before else NOBODY)
        if number != NOBODY:
            self._shown[device] = Shown(notice, number)

    # --- what the user does ------------------------------------------------------------------------------------------
    async def _act(self, medium: Medium, notice: Notice, action: Action) -> None:
        device = medium["device"]
        try:
            match action:
                case Action.OPEN | Action.DEFAULT if medium["state"] == "open":
                    self._open_folders(medium)
                case Action.OPEN:
                    self._to_open.add(device)
                    await trio.to_thread.run_sync(client.act, "Open", device)
                case Action.UNLOCK:
                    await self._unlock(medium)
                case Action.EJECT:
                    await trio.to_thread.run_sync(client.act, "Eject", device)
                case Action.TRUST:
                    await trio.to_thread.run_sync(client.act, "Trust", device, "sandbox")
                case Action.DETAILS:
                    await self._show(device, notice, detailed(notice, medium))
        except UserError as error:
            self._to_open.discard(device)
            words = ". ".join(filter(None, (error.message, error.hint)))
            await self._show(device, notice, failure(notice, action, words))

    async def _unlock(self, medium: Medium) -> None:
        """Have somebody type its key, who sits there, and show it. Raises UserError."""
        device = medium["device"]
        if device in self._asking:
            return
        with trio.CancelScope() as scope:
            self._asking[device] = scope
            try:
                if not self._any_seat:
                    await self._require_seat()
                if (secret := await unlock(medium)) is not None:
                    self._to_open.add(device)
                    self._look()
                    name, uuid = name_of(medium), medium.get("locked_uuid", "")
                    self._nursery.start_soon(self._offers.make, uuid, name, secret)
            finally:
                del self._asking[device]

    async def _recall(self, medium: Medium) -> None:
        """Have it unlocked with what its user wanted remembered, once each time that it is plugged in."""
        device = medium["device"]
        with trio.CancelScope() as scope, suppress(UserError):
            self._asking[device] = scope
            try:
                if not self._any_seat:
                    await self._require_seat()
                await recalled(medium)
            finally:
                del self._asking[device]

    async def _require_seat(self) -> None:
        found = await trio.to_thread.run_sync(person.at_seat)
        if found is None or found.name != self._name or found.locked:
            raise UserError("nobody is asked for a key while the screen is locked, or somebody else sits there")

    def _open_folders(self, medium: Medium) -> None:
        for folder in medium["mounts"]:
            self._nursery.start_soon(open_folder, folder)
