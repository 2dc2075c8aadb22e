"""What is heard on a bus."""

from jeepney import DBusErrorResponse, MatchRule, message_bus

from mountsafe.daemon.bus import BUS, Bus, BusGone


def owner_of(name: str) -> MatchRule:
    """Match the news that a name has another owner."""
    rule = MatchRule(sender=BUS, interface=BUS, member="NameOwnerChanged")
    rule.add_arg_condition(0, name)
    return rule


async def subscribe(bus: Bus, *rules: MatchRule) -> None:
    """Have what matches told. Raises BusGone."""
    for rule in rules:
        try:
            await bus.ask(message_bus.AddMatch(rule))
        except DBusErrorResponse as error:
            raise BusGone(f"it does not tell what happens: {error}") from error
