"""`org.mountsafe.Manager1` on the system bus: who may ask for what, and what is announced when something changes.

Anybody on this machine may send anything here, at any rate. So the task that reads messages never waits; a call that
does something is a task of its own, of which a user has a few at a time; and nothing that goes wrong in it affects
another call, the connection or the daemon. If the bus goes away, it is connected to again.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
    new_signal,
)

from mountsafe.daemon.address import NAME, PATH
from mountsafe.daemon.admission import OF_A_CALLER, UNKNOWN, Admission, Crowded
from mountsafe.daemon.authority import Authority, Refused
from mountsafe.daemon.bus import BUS, Bus, BusGone, connected
from mountsafe.daemon.interface import INTROSPECTION, Told, variants
from mountsafe.daemon.keys import TooManyTries, WrongKey
from mountsafe.errors import MountsafeError, UserError
from mountsafe.system.messages import Heard, Malformed
from mountsafe.text import printable

log = logging.getLogger(__name__)
QUEUE = 64  # announcements that wait; more are dropped
MAX_ARGUMENT = 4096  # characters: no path is longer
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a bus that has gone is looked for again
MAX_CALLERS = 1024  # whose users are remembered
_EMITTER = DBusAddress(PATH, interface=NAME)
_IN_QUEUE = 2  # RequestName's answer: somebody else has the name; it is ours when they release it
_FAILED, _DENIED, _CROWDED = f"{NAME}.Failed", f"{NAME}.AccessDenied", f"{BUS}.Error.LimitsExceeded"
# Errors that a caller tells apart; all others are _FAILED.
_NAMES: dict[type[UserError], str] = {
    Refused: _DENIED,
    Crowded: _CROWDED,
    WrongKey: f"{NAME}.WrongKey",
    TooManyTries: f"{NAME}.TooManyTries",
}


@dataclass(frozen=True, slots=True)
class Request:
    """Something that can be done, if whoever asks for it may: `run` does it, to that very medium or not at all.

    `device` is a name that is known; `owner`: the uid that the medium is shown to. `run` raises UserError.
    """

    device: str
    owner: int | None
    run: Callable[[], Awaitable[None]]


class Desk(Protocol):
    """What can be asked of the daemon. A descriptor among the arguments is its caller's, and closed after `run`."""

    def media(self) -> list[Told]:
        """Return what is kept."""

    async def status(self) -> Told:
        """Return what the daemon says of itself."""

    async def asked(self, method: str, *arguments: str | int) -> Request:
        """Return what a method is about. Raises UserError if there is nothing like it."""


@dataclass(frozen=True, slots=True)
class Act:
    """A method that polkit is asked about. `own` is the action instead if the medium is shown to the caller.

    `detail`: what polkit's variable of the second argument is called.
    """

    signature: str
    action: str
    own: str = ""
    detail: str = "verdict"


ACTS = {
    "Open": Act("s", "org.mountsafe.open-own"),
    "OpenAs": Act("ssub", "org.mountsafe.open-own", detail="fstype"),
    "Eject": Act("s", "org.mountsafe.eject", own="org.mountsafe.eject-own"),
    "Unlock": Act("ssh", "org.mountsafe.unlock", own="org.mountsafe.unlock-own", detail="form"),
    "Lock": Act("s", "org.mountsafe.eject", own="org.mountsafe.eject-own"),
    "Trust": Act("ss", "org.mountsafe.trust"),
    "Untrust": Act("s", "org.mountsafe.trust"),
    "Reload": Act("", "org.mountsafe.reload"),
}


class Control:
    """The service's end."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._news, self._to_tell = trio.open_memory_channel[Message](QUEUE)

    def added(self, medium: Told) -> None:
        """Tell everybody of a medium that is new."""
        self._announce(new_signal(_EMITTER, "MediumAdded", "a{sv}", (variants(medium),)))

    def changed(self, medium: Told) -> None:
        """Tell everybody of a medium that is in another state: it is blocked in the states "ask" and "refuse"."""
        self._announce(new_signal(_EMITTER, "MediumChanged", "a{sv}", (variants(medium),)))

    def removed(self, device: str) -> None:
        """Tell everybody of a medium that is gone."""
        self._announce(new_signal(_EMITTER, "MediumRemoved", "s", (device,)))

    def incident(self, device: str, kind: str, words: str) -> None:
        """Tell everybody that something went wrong with a medium: see `keeper.IncidentKind` for the kinds."""
        self._announce(new_signal(_EMITTER, "Incident", "sss", (device, kind, words)))

    def _announce(self, signal: Message) -> None:
        try:
            self._news.send_nowait(signal)
        except trio.WouldBlock:
            log.warning("nobody takes what is to be announced: it is dropped")

    async def run(self) -> None:
        """Serve for ever. Without a bus media are shown all the same, and nobody can ask until there is one."""
        pause = FIRST_PAUSE
        while True:
            began = trio.current_time()
            try:
                await self._serve()
            except BusGone as error:
                log.warning("no system bus (%s): nobody can ask until it is back", error)
            except Exception:  # one connection's end is not the daemon's
                log.exception("a bug in serving the bus")
            if trio.current_time() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _serve(self) -> None:
        """Serve until the bus is gone. Raises BusGone."""
        callers: Callers | None = None

        def heard(message: Heard) -> None:
            if callers is not None:
                callers.hear(message)

        async with connected("SYSTEM", heard, descriptors=True) as bus, trio.open_nursery() as nursery:
            callers = Callers(self._desk, bus, nursery)
            if not (why := await _name_taken(bus)):
                async for signal in self._to_tell:
                    await bus.send(signal)
            nursery.cancel_scope.cancel()
        raise BusGone(why)


async def _name_taken(bus: Bus) -> str:
    """Take our name, or wait in line for it; return why that cannot be."""
    try:
        (answer,) = await bus.ask(message_bus.RequestName(NAME), "u")
    except (DBusErrorResponse, Malformed) as error:
        return f"it does not let us be {NAME}: {error}"
    if answer == _IN_QUEUE:
        log.warning("somebody else owns %s: nobody can ask us until they release it", NAME)
    else:
        log.info("on the system bus")
    return ""


class Callers:
    """Answers whoever calls, on one connection."""

    def __init__(self, desk: Desk, bus: Bus, nursery: trio.Nursery) -> None:
        self._desk = desk
        self._bus = bus
        self._nursery = nursery
        self._authority = Authority(bus)
        self._admission = Admission()
        self._users: OrderedDict[str, int] = OrderedDict()  # by unique name, which nobody else ever has

    def hear(self, message: Heard) -> None:
        """Take a call or a signal; what takes longer than a moment becomes a task."""
        if message.kind is MessageType.method_call:
            if not self._call(message):
                message.close()
        elif message.sender == BUS:
            self._news(message)

    def _news(self, signal: Heard) -> None:
        member = signal.header.fields.get(HeaderFields.member)
        if member == "NameOwnerChanged":
            name, _, owner = signal.body("sss")
            if not owner:
                self._authority.gone(name)
                self._users.pop(name, None)
        elif member == "NameAcquired" and signal.body("s") == (NAME,):
            log.info("%s is ours", NAME)
        elif member == "NameLost" and signal.body("s") == (NAME,):
            log.warning("%s is somebody else's now: nobody can ask us until they release it", NAME)

    def _call(self, call: Heard) -> bool:
        """Answer a call; return whether a task does that, which closes what came with it."""
        fields = call.header.fields
        member = str(fields.get(HeaderFields.member, ""))
        match fields.get(HeaderFields.interface, NAME), member:
            case _ if call.untrusted_bytes is None:
                self._reply(call, new_error(call, _CROWDED, "ss", ("the message is too large", "")))
            case "org.mountsafe.Manager1", "ListMedia":
                media = [variants(medium) for medium in self._desk.media()]
                self._reply(call, new_method_return(call, "aa{sv}", (media,)))
            case "org.mountsafe.Manager1", "Status":
                self._nursery.start_soon(self._answer, call, self._tell_status)
                return True
            case "org.mountsafe.Manager1", _ if member in ACTS and call.signature == ACTS[member].signature:
                self._nursery.start_soon(self._answer, call, self._act)
                return True
            case "org.freedesktop.DBus.Introspectable", "Introspect":
                self._reply(call, new_method_return(call, "s", (INTROSPECTION,)))
            case "org.freedesktop.DBus.Peer", "Ping":
                self._reply(call, new_method_return(call))
            case _:
                words = f"there is no {printable(member, 100)}"
                self._reply(call, new_error(call, f"{BUS}.Error.UnknownMethod", "s", (words,)))
        return False

    def _reply(self, call: Heard, reply: Message) -> None:
        """Send it, if it is wanted and there is room: whoever floods us does not wait for their answers."""
        if not call.header.flags & MessageFlag.no_reply_expected:
            self._bus.post(reply)

    async def _answer(self, call: Heard, do: Callable[[Heard], Awaitable[Message]]) -> None:
        """Do it, and reply; whatever goes wrong is this call's alone."""
        try:
            with self._admission.hold(call.sender, OF_A_CALLER):
                reply = await do(call)
        except UserError as error:
            reply = new_error(call, _NAMES.get(type(error), _FAILED), "ss", (error.message, error.hint))
        except BusGone:
            return  # with the caller
        except (OSError, MountsafeError, DBusErrorResponse) as error:
            words = printable(str(error), 500)
            log.warning("a call failed: %s", words)
            reply = new_error(call, _FAILED, "ss", (words or type(error).__name__, "The log may tell more."))
        except Exception:  # the others have nothing to do with it
            log.exception("a bug in answering a call")
            reply = new_error(call, _FAILED, "ss", ("a bug in mountsafe", "The log shows it."))
        finally:
            call.close()
        self._reply(call, reply)

    async def _tell_status(self, call: Heard) -> Message:
        return new_method_return(call, "a{sv}", (variants(await self._desk.status()),))

    async def _act(self, call: Heard) -> Message:
        """Ask whether the caller may, and do it. What is asked for is known before polkit hears of it."""
        member = call.header.fields[HeaderFields.member]
        act = ACTS[member]
        arguments: tuple[Any, ...] = call.body(act.signature) if act.signature else ()
        if any(isinstance(each, str) and len(each) > MAX_ARGUMENT for each in arguments):
            raise UserError("an argument is too long", f"{MAX_ARGUMENT} characters are allowed.")
        uid = await self._user(call.sender)
        with ExitStack() as place:
            place.enter_context(self._admission.hold_for(uid))
            request = await self._desk.asked(member, *arguments)
            if uid != 0:
                action = act.own if act.own and request.owner == uid else act.action
                details = dict(zip(("device", act.detail), (request.device, *arguments[1:2]), strict=False))
                await self._authority.permit(call.sender, action, details if arguments else {})
            await request.run()
        return new_method_return(call)

    async def _user(self, sender: str) -> int:
        """Return a caller's uid, by the bus's word."""
        if sender not in self._users:
            with self._admission.hold("unknown", UNKNOWN):
                (uid,) = await self._bus.ask(message_bus.GetConnectionUnixUser(sender), "u")
            self._users[sender] = int(uid)
            if len(self._users) > MAX_CALLERS:
                self._users.popitem(last=False)
        self._users.move_to_end(sender)
        return self._users[sender]
