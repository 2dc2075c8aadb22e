"""Ask polkit whether a caller may do what they ask for."""

import logging
from collections.abc import Mapping
from itertools import count

import trio
from jeepney import DBusAddress, DBusErrorResponse, MatchRule, message_bus, new_method_call

from mountsafe.daemon.bus import BUS, Bus
from mountsafe.errors import NoRight
from mountsafe.system.messages import Malformed

log = logging.getLogger(__name__)
DEADLINE = 280.0  # seconds: somebody may have to look for a password; less than `client.ACT_TIMEOUT`
FIND_DEADLINE = 20.0
_NAME, _PATH = "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_INTERACTION = 1
_NO_OWNER = f"{BUS}.Error.NameHasNoOwner"


class Refused(NoRight):
    """The caller may not do that."""

    def __init__(self, words: str, hint: str = "") -> None:
        super().__init__(words, hint)


class Authority:
    """Asks for callers on a bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._numbers = count(1)
        self._asking: dict[str, set[trio.CancelScope]] = {}

    def gone(self, sender: str) -> None:
        """Hear that somebody has left the bus: nobody is to type a password for them."""
        for scope in self._asking.get(sender, ()):
            scope.cancel()

    async def permit(self, sender: str, action: str, details: Mapping[str, str]) -> None:
        """Raise Refused unless polkit allows it; any failure is a refusal."""
        leaves = MatchRule(type="signal", sender=BUS, interface=BUS, member="NameOwnerChanged")
        leaves.add_arg_condition(0, sender)
        answer: object = None
        with trio.CancelScope(deadline=trio.current_time() + DEADLINE) as scope:
            self._asking.setdefault(sender, set()).add(scope)
            self._bus.post(message_bus.AddMatch(leaves))
            try:
                answer = await self._ask(sender, action, details)
            finally:
                self._bus.post(message_bus.RemoveMatch(leaves))
                self._asking[sender].discard(scope)
                if not self._asking[sender]:
                    del self._asking[sender]
        if scope.cancelled_caught:
            raise Refused("nobody said in time whether that is allowed")
        if answer is not True:
            raise Refused(f"not authorized: {action}")

    async def _ask(self, sender: str, action: str, details: Mapping[str, str]) -> object:
        try:
            with trio.fail_after(FIND_DEADLINE):
                polkit = await self._polkit()
            number = f"mountsafe-{next(self._numbers)}"
            subject = ("system-bus-name", {"name": ("s", sender)})
            words = (subject, action, dict(details), _ALLOW_INTERACTION, number)
            where = DBusAddress(_PATH, polkit, _INTERFACE)
            question = new_method_call(where, "CheckAuthorization", "(sa{sv})sa{ss}us", words)
            try:
                ((authorized, _, _),) = await self._bus.ask(question, "(bba{ss})", polkit)
            except trio.Cancelled:  # the dialog is to go
                self._bus.post(new_method_call(where, "CancelCheckAuthorization", "s", (number,)))
                raise
        except (DBusErrorResponse, Malformed, ValueError, trio.TooSlowError) as error:
            log.warning("polkit or the bus did not answer: %s", str(error)[:500] or type(error).__name__)
            raise Refused("nobody could say whether that is allowed", "sudo systemctl start polkit") from error
        return authorized

    async def _polkit(self) -> str:
        """Return the unique name of polkit, started if need be."""
        try:
            (name,) = await self._bus.ask(message_bus.GetNameOwner(_NAME), "s")
        except DBusErrorResponse as error:
            if error.name != _NO_OWNER:
                raise
            await self._bus.ask(message_bus.StartServiceByName(_NAME), "u")
            (name,) = await self._bus.ask(message_bus.GetNameOwner(_NAME), "s")
        return str(name)
