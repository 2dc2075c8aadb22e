"""What the policy says once a virtual machine has looked inside. Pure.

udev sees no partition table that the host's kernel does not parse, and no volume below a layer. So what decided when
the medium was plugged in is asked again of everything that is to be shown, and of what it lies in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision, Verdict


@dataclass(frozen=True, slots=True)
class Seen:
    """A volume that was found. `layers`: the names of what it lies in. `chosen`: it is to be shown. Bytes."""

    name: str
    fstype: str
    label: str
    uuid: str
    size: int
    layers: tuple[str, ...]
    chosen: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is not to be shown, by the volumes' names, and the decision that a person has to be asked about."""

    refused: Mapping[str, Decision]
    asks: Decision | None
    nothing: bool  # all that was to be shown is refused
    options: Mapping[str, Sequence[str]]  # what the others are to be mounted with, by the volumes' names

    @property
    def words(self) -> str:
        """Why something is refused."""
        return "; ".join(dict.fromkeys(decision.reason for decision in self.refused.values()))


def judge(decide: Callable[[Facts], Decision], known: Facts, found: Sequence[Seen]) -> Judgement:
    """Judge what was found in a medium of which the host knows `known`."""
    decisions = {seen.name: decide(_facts(known, seen)) for seen in found}
    refused: dict[str, Decision] = {}
    asks = None
    chosen = [seen for seen in found if seen.chosen]
    for seen in chosen:
        deciding = [decisions[each.name] for each in found if each is seen or _holds(each, seen)]
        if denied := next((each for each in deciding if each.verdict == Verdict.REFUSE), None):
            refused[seen.name] = denied
        else:
            asks = asks or next((each for each in deciding if each.verdict == Verdict.ASK), None)
    options = {seen.name: decisions[seen.name].options.mount_options for seen in chosen if seen.name not in refused}
    nothing = bool(chosen) and len(refused) == len(chosen)
    return Judgement(refused, asks, nothing, {name: wished for name, wished in options.items() if wished})


def _facts(known: Facts, seen: Seen) -> Facts:
    return replace(known, fstype=seen.fstype, label=seen.label, uuid=seen.uuid, size=seen.size)


def _holds(outer: Seen, inner: Seen) -> bool:
    """Whether a volume with a type of its own may be what another one lies in; of many members not all are named."""
    members = {name for layer in inner.layers for name in (layer, *layer.split("+"))}
    return bool(outer.fstype) and (outer.name in members or "..." in members)
