"""`org.mountsafe.Manager1` on the system bus: who may ask what, and what is told when something changes."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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
    <method name="Trust">
      <arg type="s" name="device" direction="in"/>
      <arg type="s" name="verdict" direction="in"/>
    </method>
    <method name="Untrust"><arg type="s" name="device" direction="in"/></method>
    <method name="Reload"/>
    <method name="Status"><arg type="a{{sv}}" name="status" direction="out"/></method>
    <signal name="MediumAdded"><arg type="a{{sv}}" name="medium"/></signal>
    <signal name="MediumChanged"><arg type="a{{sv}}" name="medium"/></signal>
    <signal name="MediumRemoved"><arg type="s" name="device"/></signal>
    <signal name="Incident">
      <arg type="s" name="device"/>
      <arg type="s" name="kind"/>
      <arg type="s" name="words"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg type="s" name="xml" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer"><method name="Ping"/></interface>
</node>
"""

_TYPES: dict[type, str] = {str: "s", int: "u", list: "as"}
Told = Mapping[str, str | int | list[str]]


class Desk(Protocol):
    """What can be asked of the daemon. Each raises UserError."""

    def media(self) -> list[Told]:
        """Return what is kept."""

    def status(self) -> Told:
        """Return what the daemon says of itself."""

    def owner(self, device: str) -> int | None:
        """Return the uid that a medium is shown to; None if nobody is."""

    async def open(self, device: str) -> None:
        """Show a medium that was held back or unmounted."""

    async def eject(self, device: str) -> None:
        """Unmount a medium, and let go of it."""

    async def trust(self, device: str, verdict: str) -> None:
        """Write a rule for a device that is plugged in, and treat it so at once."""

    async def untrust(self, device: str) -> None:
        """Take the rules for a device back, and treat it as the others say."""

    async def reload(self) -> None:
        """Read the rules anew, for what is plugged in from then on."""


@dataclass(frozen=True, slots=True)
class Act:
    """A method that polkit is asked about: its arguments, the action, what does it.

    `own` is the action instead if the medium is shown to the caller.
    """

    signature: str | None
    action: str
    run: Callable[..., Awaitable[None]]
    own: str = ""


class Refused(UserError):
    """The caller may not do that."""

    def __init__(self, action: str) -> None:
        super().__init__(f"not authorized: {action}", "Ask an administrator.", ExitCode.FAILURE)


class Control:
    """The service's end."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._router: DBusRouter
        self._acts = {
            "Open": Act("s", "org.mountsafe.open-own", desk.open),
            "Eject": Act("s", "org.mountsafe.eject", desk.eject, own="org.mountsafe.eject-own"),
            "Trust": Act("ss", "org.mountsafe.trust", desk.trust),
            "Untrust": Act("s", "org.mountsafe.trust", desk.untrust),
            "Reload": Act(None, "org.mountsafe.reload", desk.reload),
        }
        self._news, self._to_tell = trio.open_memory_channel[Message](QUEUE)

    def added(self, medium: Told) -> None:
        """Tell everybody of a medium that is new."""
        self._announce(new_signal(_EMITTER, "MediumAdded", "a{sv}", (_variants(medium),)))

    def changed(self, medium: Told) -> None:
        """Tell everybody of a medium that is in another state: it is blocked in the states "ask" and "refuse"."""
        self._announce(new_signal(_EMITTER, "MediumChanged", "a{sv}", (_variants(medium),)))

    def removed(self, device: str) -> None:
        """Tell everybody of a medium that is gone."""
        self._announce(new_signal(_EMITTER, "MediumRemoved", "s", (device,)))

    def incident(self, device: str, kind: str, words: str) -> None:
        """Tell everybody that something went wrong with a medium: see `keeper.Trouble` for the kinds."""
        self._announce(new_signal(_EMITTER, "Incident", "sss", (device, kind, words)))

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
            reply = new_error(call, f"{NAME}.{kind}", "ss", (error.message, error.hint))
        except DBusErrorResponse as error:
            log.warning("polkit or the bus did not answer: %s", error)
            reply = new_error(
                call, f"{NAME}.AccessDenied", "ss", ("nobody could say whether that is allowed", "Is polkit running?")
            )
        await self._router.send(reply)

    async def _do(self, call: Message) -> Message:
        fields = call.header.fields
        member = fields.get(HeaderFields.member)
        interface = fields.get(HeaderFields.interface, NAME)
        if interface == NAME and member == "ListMedia":
            return new_method_return(call, "aa{sv}", ([_variants(medium) for medium in self._desk.media()],))
        if interface == NAME and member == "Status":
            return new_method_return(call, "a{sv}", (_variants(self._desk.status()),))
        act = self._acts.get(member) if interface == NAME else None
        if act is not None and fields.get(HeaderFields.signature) == act.signature:
            await self._authorize(fields[HeaderFields.sender], act, call.body)
            await act.run(*call.body)
            return new_method_return(call)
        if (interface, member) == ("org.freedesktop.DBus.Introspectable", "Introspect"):
            return new_method_return(call, "s", (INTROSPECTION,))
        if (interface, member) == ("org.freedesktop.DBus.Peer", "Ping"):
            return new_method_return(call)
        return new_error(call, "org.freedesktop.DBus.Error.UnknownMethod", "s", (f"there is no {member}",))

    async def _authorize(self, sender: str, act: Act, arguments: tuple[str, ...]) -> None:
        """Raise Refused unless polkit lets the caller do it."""
        (uid,) = unwrap_msg(await self._router.send_and_get_reply(message_bus.GetConnectionUnixUser(sender)))
        if uid == 0:
            return
        action = act.own if act.own and self._desk.owner(arguments[0]) == uid else act.action
        subject = ("system-bus-name", {"name": ("s", sender)})
        details = dict(zip(("device", "verdict"), arguments, strict=False))  # for polkit's rules: action.lookup()
        question = new_method_call(
            _POLKIT, "CheckAuthorization", "(sa{sv})sa{ss}us", (subject, action, details, _ALLOW_INTERACTION, "")
        )
        ((authorized, _, _),) = unwrap_msg(await self._router.send_and_get_reply(question))
        if not authorized:
            raise Refused(action)


def _variants(told: Told) -> dict[str, tuple[str, Any]]:
    return {key: (_TYPES[type(value)], value) for key, value in told.items()}
