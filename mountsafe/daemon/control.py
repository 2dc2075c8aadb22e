"""`org.mountsafe.Manager1` on the system bus: who may ask what, and what is told when something changes."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio
from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    HeaderFields,
    MatchRule,
    Message,
    message_bus,
    new_error,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.io.trio import DBusRouter
from jeepney.wrappers import unwrap_msg

from mountsafe.daemon.address import NAME, PATH
from mountsafe.daemon.bus import BusGone, connected
from mountsafe.errors import ExitCode, UserError

log = logging.getLogger(__name__)
QUEUE = 64  # calls and announcements that wait; more are dropped by the bus's client, and a caller's call times out
_EMITTER = DBusAddress(PATH, interface=NAME)
_POLKIT = DBusAddress(
    "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1", "org.freedesktop.PolicyKit1.Authority"
)
_ALLOW_INTERACTION = 1
_OWNER_TAKEN = 3  # RequestName's answer: somebody else has the name

INTROSPECTION = f"""\
<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
  <interface name="{NAME}">
    <method name="ListMedia"><arg type="aa{{sv}}" name="media" direction="out"/></method>
    <method name="Open"><arg type="s" name="device" direction="in"/></method>
    <method name="Eject"><arg type="s" name="device" direction="in"/></method>
    <signal name="MediumChanged"><arg type="a{{sv}}" name="medium"/></signal>
    <signal name="MediumRemoved"><arg type="s" name="device"/></signal>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg type="s" name="xml" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer"><method name="Ping"/></interface>
</node>
"""

Told = Mapping[str, str | list[str]]


class Desk(Protocol):
    """What can be asked of the daemon. Each raises UserError."""

    def media(self) -> list[Told]:
        """Return what is kept."""

    def owner(self, device: str) -> int | None:
        """Return the uid that a medium is shown to; None if nobody is."""

    async def open(self, device: str) -> None:
        """Show a medium that was held back or unmounted."""

    async def eject(self, device: str) -> None:
        """Unmount a medium, and let go of it."""


class Refused(UserError):
    """The caller may not do that."""

    def __init__(self, action: str) -> None:
        super().__init__(f"not authorized: {action}", "Ask an administrator.", ExitCode.FAILURE)


class Control:
    """The service's end."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._router: DBusRouter
        self._news, self._to_tell = trio.open_memory_channel[Message](QUEUE)

    def changed(self, medium: Told) -> None:
        """Tell everybody of a medium that is new or in another state."""
        self._announce(new_signal(_EMITTER, "MediumChanged", "a{sv}", (_variants(medium),)))

    def removed(self, device: str) -> None:
        """Tell everybody of a medium that is gone."""
        self._announce(new_signal(_EMITTER, "MediumRemoved", "s", (device,)))

    def _announce(self, signal: Message) -> None:
        try:
            self._news.send_nowait(signal)
        except trio.WouldBlock:
            log.warning("nobody takes what is to be announced: it is dropped")

    async def run(self) -> None:
        """Serve. Without a bus, or when it ends, media are shown all the same, and nobody can ask."""
        try:
            async with connected("SYSTEM") as router:
                await self._serve(router)
        except BusGone as error:
            log.warning("no system bus (%s): nobody can ask", error)

    async def _serve(self, router: DBusRouter) -> None:
        self._router = router
        async with trio.open_nursery() as nursery, router.filter(MatchRule(type="method_call"), bufsize=QUEUE) as calls:
            (answer,) = unwrap_msg(await router.send_and_get_reply(message_bus.RequestName(NAME)))
            if answer == _OWNER_TAKEN:
                raise UserError(f"somebody else owns {NAME}", "Is another daemon running?")
            nursery.start_soon(self._tell)
            async for call in calls:
                nursery.start_soon(self._answer, call)

    async def _tell(self) -> None:
        async for signal in self._to_tell:
            await self._router.send(signal)

    async def _answer(self, call: Message) -> None:
        try:
            reply = await self._do(call)
        except UserError as error:
            kind = "AccessDenied" if isinstance(error, Refused) else "Failed"
            reply = new_error(call, f"{NAME}.{kind}", "s", (f"{error.message}. {error.hint}",))
        except DBusErrorResponse as error:
            log.warning("polkit or the bus did not answer: %s", error)
            reply = new_error(call, f"{NAME}.AccessDenied", "s", ("nobody could say whether that is allowed",))
        await self._router.send(reply)

    async def _do(self, call: Message) -> Message:
        fields = call.header.fields
        member = fields.get(HeaderFields.member)
        interface = fields.get(HeaderFields.interface, NAME)
        if interface == NAME and member == "ListMedia":
            return new_method_return(call, "aa{sv}", ([_variants(medium) for medium in self._desk.media()],))
        acts: dict[str, tuple[str, Callable[[str], Awaitable[None]]]] = {
            "Open": ("org.mountsafe.open", self._desk.open),
            "Eject": ("org.mountsafe.eject", self._desk.eject),
        }
        if interface == NAME and member in acts and fields.get(HeaderFields.signature) == "s":
            (device,) = call.body
            action, act = acts[member]
            await self._authorize(fields[HeaderFields.sender], action, device)
            await act(device)
            return new_method_return(call)
        if (interface, member) == ("org.freedesktop.DBus.Introspectable", "Introspect"):
            return new_method_return(call, "s", (INTROSPECTION,))
        if (interface, member) == ("org.freedesktop.DBus.Peer", "Ping"):
            return new_method_return(call)
        return new_error(call, "org.freedesktop.DBus.Error.UnknownMethod", "s", (f"there is no {member}",))

    async def _authorize(self, sender: str, action: str, device: str) -> None:
        """Raise Refused unless polkit lets the caller do it: with less to ask where the medium is shown to him."""
        (uid,) = unwrap_msg(await self._router.send_and_get_reply(message_bus.GetConnectionUnixUser(sender)))
        if uid == 0:
            return
        owner = self._desk.owner(device)
        if action == "org.mountsafe.open" or owner == uid:
            action += "-own"
        subject = ("system-bus-name", {"name": ("s", sender)})
        question = new_method_call(
            _POLKIT, "CheckAuthorization", "(sa{sv})sa{ss}us", (subject, action, {}, _ALLOW_INTERACTION, "")
        )
        ((authorized, _, _),) = unwrap_msg(await self._router.send_and_get_reply(question))
        if not authorized:
            raise Refused(action)


def _variants(medium: Told) -> dict[str, tuple[str, str | list[str]]]:
    return {key: ("s" if isinstance(value, str) else "as", value) for key, value in medium.items()}
