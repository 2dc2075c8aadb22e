"""What the policy says once a virtual machine has looked inside. Pure.

udev sees no partition table that the host's kernel does not parse, and no volume below a layer. So what decided when
the medium was plugged in is asked again of everything that is to be shown, and of what it lies in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mountsafe.policy.facts import Facts
from mountsafe.policy.risk import ENCRYPTED
from mountsafe.policy.rules import Access, Decision, Options, Verdict


@dataclass(frozen=True, slots=True)
class Seen:
    """A volume that was found. `layers`: the names of what it lies in. `chosen`: it is to be shown. Bytes.

    `fstype`: what it is to be mounted as; `found`: what it looks like, where somebody says that it is another type.
    """

    name: str
    fstype: str
    label: str
    uuid: str
    size: int
    layers: tuple[str, ...]
    chosen: bool
    found: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is not to be shown, by the volumes' names, and the decision that a person has to be asked about.

    `options`: how what is left is to be shown, hidden if any of it is to be; `mount_options`: with what each of it is
    to be mounted, by the volumes' names; `read_only`: what of it may not be written to.
    """

    refused: Mapping[str, Decision]
    asks: Decision | None
    nothing: bool  # all that was to be shown is refused
    options: Options = field(default_factory=Options)
    mount_options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    read_only: frozenset[str] = frozenset()

    @property
    def words(self) -> str:
        """Why something is refused."""
        return "; ".join(dict.fromkeys(decision.reason for decision in self.refused.values()))


def judge(decide: Callable[[Facts], Decision], known: Facts, found: Sequence[Seen]) -> Judgement:
    """Judge what was found in a medium of which the host knows `known`.

    What lies in something encrypted is encrypted, and so is all that it lies in, as far as it goes: of a volume group
    whose only volume is encrypted nothing else is shown. What a rule says of writing to something holds for
    all that lies in it: that it is only read before all else.
    """
    refused: dict[str, Decision] = {}
    asks = None
    chosen = [seen for seen in found if seen.chosen]
    decisions: dict[str, list[Decision]] = {}  # of each that is chosen: its own first
    for seen in chosen:
        around = [seen, *(each for each in found if each is not seen and _holds(each, seen))]
        unlocked = any(each.fstype in ENCRYPTED or each.found in ENCRYPTED for each in around)
        facts = [each for volume in around for each in _facts(replace(known, unlocked=unlocked), volume)]
        deciding = decisions[seen.name] = [decide(each) for each in facts]
        if denied := next((each for each in deciding if each.verdict == Verdict.REFUSE), None):
            refused[seen.name] = denied
        else:
            asks = asks or next((each for each in deciding if each.verdict == Verdict.ASK), None)
    left = [decisions[seen.name][0].options for seen in chosen if seen.name not in refused]
    read_only = frozenset(name for name, each in decisions.items() if _access(each) is not Access.ON_DEMAND)
    options = replace(left[0].general, hide=any(each.hide for each in left)) if left else Options()
    wished = {seen.name: decisions[seen.name][0].options.mount_options for seen in chosen if seen.name not in refused}
    mount_options = {name: each for name, each in wished.items() if each}
    return Judgement(refused, asks, not left and bool(chosen), options, mount_options, read_only - set(refused))


def _access(decisions: Sequence[Decision]) -> Access:
    """Return whether a volume may be written to: its own decision comes first, then those of what it lies in."""
    said = {each.options.access for each in decisions}
    for access in (Access.READ_ONLY, Access.ON_DEMAND):
        if access in said:
            return access
    return decisions[0].access


def _facts(known: Facts, seen: Seen) -> list[Facts]:
    """Return the facts as what it is to be mounted as, and then as what it was found to be: no type hides another.

    What is `known` of being encrypted holds for each of them.
    """
    types = dict.fromkeys([seen.fstype, seen.found or seen.fstype])
    return [replace(known, fstype=each, label=seen.label, uuid=seen.uuid, size=seen.size) for each in types]


def _holds(outer: Seen, inner: Seen) -> bool:
    """Whether a volume with a type of its own may be what another one lies in; of many members not all are named."""
    members = {name for layer in inner.layers for name in (layer, *layer.split("+"))}
    return bool(outer.fstype) and (outer.name in members or "..." in members)
