"""Rules in TOML, and what they say of a medium. Pure: text in, decision out.

The first rule whose every condition holds decides. What no rule decides is opened in a virtual machine if it is
external, and left to the system if it is not. A policy that cannot be read refuses everything external: a typing error
must not open a door.
"""

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from mountsafe import fsoptions
from mountsafe.policy.facts import Facts
from mountsafe.policy.risk import RiskClass
from mountsafe.text import printable

VERSION = 1


class Verdict(StrEnum):
    """What is done with a medium."""

    SANDBOX = "sandbox"  # a virtual machine opens it
    KERNEL = "kernel"  # it is left to the system
    ASK = "ask"  # the user of the seat is asked
    REFUSE = "refuse"  # nobody opens it


@dataclass(frozen=True, slots=True)
class Options:
    """How it is opened. `owner` and `mount_options` as those of `mountsafe mount`; `hide`: desktops do not show it."""

    owner: str = "user"
    hide: bool = False
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, a verdict, and where it was written."""

    name: str
    origin: str
    verdict: Verdict
    conditions: Mapping[str, Any]
    reason: str = ""
    options: Options = field(default_factory=Options)

    def holds(self, facts: Facts) -> bool:
        """Whether every condition holds."""
        return all(_CONDITIONS[key](facts, wanted) for key, wanted in self.conditions.items())


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done, which rule said so ("" if none did), and why."""

    verdict: Verdict
    rule: str
    origin: str
    reason: str
    options: Options


class PolicyError(ValueError):
    """A policy that cannot be read: where, and what is wrong."""


class Policy:
    """Ordered rules. `broken`: why nothing external may be opened."""

    def __init__(self, rules: Iterable[Rule], broken: str = "") -> None:
        self.rules = tuple(rules)
        self.broken = broken

    @classmethod
    def parse(cls, texts: Iterable[tuple[str, str]]) -> "Policy":
        """Read (name, TOML) pairs, the most important first. Never raises: a broken one refuses."""
        rules: list[Rule] = []
        try:
            for name, text in texts:
                rules += parse_rules(name, text)
        except PolicyError as error:
            return cls([], str(error))
        return cls(rules)

    def decide(self, facts: Facts) -> Decision:
        """Return what is to be done with a medium."""
        if self.broken:
            if facts.external:
                return Decision(Verdict.REFUSE, "", "", f"the policy cannot be read: {self.broken}", Options())
            return Decision(Verdict.KERNEL, "", "", "it is inside the machine", Options())
        for rule in self.rules:
            if rule.holds(facts):
                return Decision(rule.verdict, rule.name, rule.origin, rule.reason or facts.risk.reason, rule.options)
        if facts.external:
            return Decision(Verdict.SANDBOX, "", "", f"it is external; {facts.risk.reason}", Options())
        return Decision(Verdict.KERNEL, "", "", "it is inside the machine", Options())


def parse_rules(origin: str, text: str) -> list[Rule]:
    """Return the rules of a TOML text. Raises PolicyError."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and what int() says of a number with thousands of digits
        raise PolicyError(f"{origin}: {error}") from error
    except RecursionError as error:
        raise PolicyError(f"{origin}: lists in lists, too many of them") from error
    unknown = set(document) - {"version", "rule"}
    if unknown:
        raise PolicyError(f"{origin}: unknown key {min(unknown)!r}; rules are tables [[rule]]")
    if document.get("version", VERSION) != VERSION:
        raise PolicyError(f"{origin}: version {document['version']!r}; this program knows {VERSION}")
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError(f"{origin}: rules are tables [[rule]]")
    return [_rule(table, f"{origin}, rule {number}") for number, table in enumerate(tables, 1)]


_STRINGS = ("name", "reason", "owner")


def _rule(table: dict[str, Any], origin: str) -> Rule:
    for key, value in table.items():
        if key not in (*_STRINGS, "verdict", "hide", "mount_options", *_CHECKS):
            raise PolicyError(f"{origin}: unknown key {key!r}")
        if key in _STRINGS and not isinstance(value, str):
            raise PolicyError(f"{origin}: {key} is a text")
        if key in _CHECKS:
            _CHECKS[key](origin, key, value)
    try:
        verdict = Verdict(table["verdict"])
    except (KeyError, ValueError):
        raise PolicyError(f"{origin}: verdict is one of {', '.join(Verdict)}") from None
    if table.get("owner", "user") not in ("user", "image"):
        raise PolicyError(f"{origin}: owner is user or image")
    if not isinstance(table.get("hide", False), bool):
        raise PolicyError(f"{origin}: hide is true or false")
    conditions = {key: value for key, value in table.items() if key in _CHECKS}
    if verdict == Verdict.KERNEL and (late := [key for key in _ASKED_LATER if key in conditions]):
        raise PolicyError(
            f"{origin}: what is left to the system cannot depend on {late[0]}: udev decides, and cannot ask"
        )
    options = Options(table.get("owner", "user"), table.get("hide", False), _mount_options(table, origin, verdict))
    return Rule(table.get("name", origin), origin, verdict, conditions, table.get("reason", ""), options)


def _mount_options(table: dict[str, Any], origin: str, verdict: Verdict) -> tuple[str, ...]:
    """Return a rule's mount options. Those that a medium's types do not take are left out when it is opened."""
    wanted = as_list(table.get("mount_options", []))
    if not isinstance(wanted, list) or not all(isinstance(each, str) for each in wanted):
        raise PolicyError(f"{origin}: mount_options is a text or a list of texts")
    if wanted and verdict in (Verdict.KERNEL, Verdict.REFUSE):
        raise PolicyError(f"{origin}: mount_options are for what a virtual machine opens, not for {verdict}")
    fstypes = as_list(table.get("fstype", []))
    named = [each for each in fstypes if not set("*?[") & set(each)]
    try:
        fsoptions.check(wanted, named if named == fstypes else [])
    except fsoptions.NotTaken as wrong:
        raise PolicyError(f"{origin}: {wrong.message}. {wrong.hint}") from wrong
    return tuple(wanted)


# --- conditions ------------------------------------------------------------------------------------------------------
# udev's rules have no way to write these in a pattern (udev(7)); "?" stands for any character.
_NOT_IN_PATTERNS = frozenset('"\\|')
# What udev cannot ask when it decides whether the system gets to see a medium.
_ASKED_LATER = ("min_size", "max_size", "seat", "locked")
_SIZE = re.compile(r"(\d{1,18})\s*(B|KiB|MiB|GiB|TiB)?")
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TEXTS = ("fstype", "label", "uuid", "bus", "vendor", "model", "serial", "seat")
_SWITCHES = ("external", "removable", "locked")


def as_list(wanted: Any) -> Any:
    """The texts of a condition: one or a list."""
    return [wanted] if isinstance(wanted, str) else wanted


def _check_patterns(origin: str, key: str, value: Any) -> None:
    wanted = as_list(value)
    if not isinstance(wanted, list) or not wanted or not all(isinstance(each, str) for each in wanted):
        raise PolicyError(f"{origin}: {key} is a text or a list of texts, which may hold * and ?")
    if any(printable(each, len(each)) != each or _NOT_IN_PATTERNS & set(each) for each in wanted):
        raise PolicyError(f"{origin}: {key} may not hold quotes, backslashes, | or control characters: write ?")


def _check_risk(origin: str, key: str, value: Any) -> None:
    _check_patterns(origin, key, value)
    if not set(as_list(value)) <= set(RiskClass):
        raise PolicyError(f"{origin}: risk is of {', '.join(RiskClass)}")


def _check_switch(origin: str, key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise PolicyError(f"{origin}: {key} is true or false")


def _check_size(origin: str, key: str, value: Any) -> None:
    if not isinstance(value, str) or not _SIZE.fullmatch(value):
        raise PolicyError(f'{origin}: {key} is a size such as "64 GiB"')


def _bytes(wanted: str) -> int:
    match = _SIZE.fullmatch(wanted)
    assert match is not None
    return int(match[1]) * _UNITS[match[2] or ""]


def _text_holds(key: str) -> Any:
    return lambda facts, wanted: any(fnmatch.fnmatchcase(getattr(facts, key), each) for each in as_list(wanted))


def _switch_holds(key: str) -> Any:
    return lambda facts, wanted: getattr(facts, key) is wanted


_CHECKS = {
    **dict.fromkeys(_TEXTS, _check_patterns),
    **dict.fromkeys(_SWITCHES, _check_switch),
    "risk": _check_risk,
    "min_size": _check_size,
    "max_size": _check_size,
}
_CONDITIONS = {
    **{key: _text_holds(key) for key in _TEXTS},
    **{key: _switch_holds(key) for key in _SWITCHES},
    "risk": lambda facts, wanted: facts.risk.level in as_list(wanted),
    "min_size": lambda facts, wanted: facts.size >= _bytes(wanted),
    "max_size": lambda facts, wanted: facts.size <= _bytes(wanted),
}
assert {field_.name for field_ in fields(Facts)} >= {*_TEXTS, *_SWITCHES}
