"""Rules in TOML, and what they say about a medium. Pure: text in, decision out.

The first rule whose every condition holds decides. What no rule decides is opened in a virtual machine if it is
external, and left to the system if it is not. A policy that cannot be read refuses everything external: a typing error
must not open a door. Whether what is opened may be written to is decided by a rule, or by the file as a whole.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from mountsafe import fsoptions
from mountsafe.policy.conditions import ASKED_LATER, CHECKS, CONDITIONS, PolicyError, as_list
from mountsafe.policy.facts import Facts
from mountsafe.policy.zones import is_zone
from mountsafe.text import printable

VERSION = 1
MAX_PATH = 4095  # characters: PATH_MAX


class Verdict(StrEnum):
    """What is done with a medium."""

    SANDBOX = "sandbox"  # a virtual machine opens it
    KERNEL = "kernel"  # it is left to the system
    ASK = "ask"  # the user of the seat is asked
    REFUSE = "refuse"  # nobody opens it


class Access(StrEnum):
    """Whether a medium that a virtual machine opens may be written to."""

    READ_ONLY = "read-only"
    ON_DEMAND = "on-demand"  # it is only read until somebody changes something


@dataclass(frozen=True, slots=True)
class Options:
    """How it is opened. `owner` as the --owner of `mountsafe mount`; `hide`: desktops do not show it.

    `timezone`: that of the clock whose local times it keeps; "" is the machine's. `mount_options` as those of
    `mountsafe mount`. `key_file`: what unlocks it; "" is nothing. `access`: None if no rule says it, see
    `Decision.access`.
    """

    owner: str = "user"
    hide: bool = False
    timezone: str = ""
    mount_options: tuple[str, ...] = ()
    key_file: str = ""
    access: Access | None = None

    @property
    def general(self) -> "Options":
        """What holds for a medium as a whole, and not for one of its volumes alone."""
        return replace(self, mount_options=(), key_file="", access=None)


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
        return all(CONDITIONS[key](facts, wanted) for key, wanted in self.conditions.items())


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done, which rule said so ("" if none did), and why. `access`: what holds for it if it lies in nothing."""

    verdict: Verdict
    rule: str
    origin: str
    reason: str
    options: Options
    access: Access = Access.READ_ONLY

    @property
    def wished(self) -> Options:
        """How it is opened, with what is to be done of writing."""
        return replace(self.options, access=self.access)


class Policy:
    """Ordered rules. `broken`: why nothing external may be opened.

    `access`: whether it may be written to where no rule says so; None is as shipped.
    """

    def __init__(self, rules: Iterable[Rule], broken: str = "", access: Access | None = None) -> None:
        self.rules = tuple(rules)
        self.broken = broken
        self.access = access

    @classmethod
    def parse(cls, texts: Iterable[tuple[str, str]]) -> "Policy":
        """Read (name, TOML) pairs, the most important first. Never raises: a broken one refuses."""
        rules: list[Rule] = []
        said: list[Access] = []
        try:
            for name, text in texts:
                more, access = _parsed(name, text)
                rules += more
                said += access
        except PolicyError as error:
            return cls([], str(error), Access.READ_ONLY)
        return cls(rules, access=next(iter(said), None))

    def decide(self, facts: Facts) -> Decision:
        """Return what is to be done with a medium."""
        decision = self._decided(facts)
        return replace(decision, access=decision.options.access or self.access or _shipped(facts))

    def _decided(self, facts: Facts) -> Decision:
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


def _shipped(facts: Facts) -> Access:
    """Return what holds where nobody says anything: README.md has the reasons."""
    return Access.READ_ONLY if facts.encrypted else Access.ON_DEMAND


def parse_rules(origin: str, text: str) -> list[Rule]:
    """Return the rules of a TOML text. Raises PolicyError."""
    return _parsed(origin, text)[0]


def _parsed(origin: str, text: str) -> tuple[list[Rule], list[Access]]:
    """Return the rules of a TOML text, and what it says of writing where they do not. Raises PolicyError."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and what int() says of a number with thousands of digits
        raise PolicyError(f"{origin}: {error}") from error
    except RecursionError as error:
        raise PolicyError(f"{origin}: lists in lists, too many of them") from error
    unknown = set(document) - {"version", "access", "rule"}
    if unknown:
        at = _Places(origin, text, 0)(None, min(unknown))
        raise PolicyError(f"{at}: unknown key {min(unknown)!r}: a file has version, access and tables [[rule]]")
    if document.get("version", VERSION) != VERSION:
        raise PolicyError(f"{origin}: version {document['version']!r}; this program knows {VERSION}")
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError(f"{origin}: rules are tables [[rule]]")
    places = _Places(origin, text, len(tables))
    access = _access(document, places(None, "access"))
    return [_rule(table, number, places) for number, table in enumerate(tables, 1)], access


def _access(table: dict[str, Any], origin: str) -> list[Access]:
    """Return what a rule, or a file, says of writing; nothing if it does not. Raises PolicyError."""
    if "access" not in table:
        return []
    try:
        return [Access(table["access"])]
    except ValueError:
        raise PolicyError(f"{origin}: access is one of {', '.join(Access)}") from None


_TABLE = re.compile(r"\s*\[\[\s*rule\s*\]\]")


class _Places:
    """Says where in a file something stands: tomllib tells no lines, so they are looked for."""

    def __init__(self, origin: str, text: str, rules: int) -> None:
        self._origin = origin
        self._lines = text.splitlines()
        self._starts = [number for number, line in enumerate(self._lines) if _TABLE.match(line)]
        self._known = len(self._starts) == rules  # else some of it is in texts of several lines

    def rule(self, number: int) -> str:
        """Return what a rule is called, counted from 1, that has no name of its own."""
        return f"{self._origin}, rule {number}"

    def __call__(self, number: int | None, key: str) -> str:
        """Return where a key of a rule stands, or one outside of rules."""
        what = self._origin if number is None else self.rule(number)
        if number is None:
            first, end = 0, len(self._lines)
        elif self._known:
            first, end = [*self._starts, len(self._lines)][number - 1 : number + 1]
        else:
            return what
        wanted = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
        line = next((line for line in range(first, end) if wanted.match(self._lines[line])), first)
        return f"{self._origin}, line {line + 1}" + ("" if number is None else f" (rule {number})")


_STRINGS = ("name", "reason", "owner", "timezone", "key_file")


def _rule(table: dict[str, Any], number: int, places: _Places) -> Rule:
    known = ("verdict", *_STRINGS, "access", "hide", "mount_options", *CHECKS)
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"do you mean {near[0]}? The" if near else "the"
            raise PolicyError(
                f"{places(number, key)}: unknown key {key!r}: {hint} keys of a rule are {', '.join(known)}"
            )
        if key in _STRINGS and not isinstance(value, str):
            raise PolicyError(f"{places(number, key)}: {key} is a text")
        if key in CHECKS:
            CHECKS[key](places(number, key), key, value)
    try:
        verdict = Verdict(table["verdict"])
    except (KeyError, ValueError):
        raise PolicyError(f"{places(number, 'verdict')}: verdict is one of {', '.join(Verdict)}") from None
    if table.get("owner", "user") not in ("user", "image"):
        raise PolicyError(f"{places(number, 'owner')}: owner is user or image")
    if not isinstance(table.get("hide", False), bool):
        raise PolicyError(f"{places(number, 'hide')}: hide is true or false")
    conditions = {key: value for key, value in table.items() if key in CHECKS}
    if verdict == Verdict.KERNEL and (late := [key for key in ASKED_LATER if key in conditions]):
        at = places(number, late[0])
        raise PolicyError(f"{at}: what is left to the system cannot depend on {late[0]}: udev decides, and cannot ask")
    if "timezone" in table and not is_zone(table["timezone"]):
        at = places(number, "timezone")
        raise PolicyError(f"{at}: timezone is a name such as Europe/Berlin, or an offset such as +05:30")
    options = Options(
        table.get("owner", "user"),
        table.get("hide", False),
        table.get("timezone", ""),
        _mount_options(table, places(number, "mount_options"), verdict),
        _key_file(table, places(number, "key_file"), verdict),
        _access_of_rule(table, places(number, "access"), verdict),
    )
    origin = places.rule(number)
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


def _access_of_rule(table: dict[str, Any], origin: str, verdict: Verdict) -> Access | None:
    said = _access(table, origin)
    if said and verdict in (Verdict.KERNEL, Verdict.REFUSE):
        raise PolicyError(f"{origin}: access is for what a virtual machine opens, not for {verdict}")
    return next(iter(said), None)


def _key_file(table: dict[str, Any], origin: str, verdict: Verdict) -> str:
    """Return the path of a key. Whether the file can be believed is looked at when it is used: here nothing is read."""
    path: str = table.get("key_file", "")
    if "key_file" not in table:
        return ""
    if verdict in (Verdict.KERNEL, Verdict.REFUSE):
        raise PolicyError(f"{origin}: key_file is for what a virtual machine opens, not for {verdict}")
    if not path.startswith("/") or path.endswith("/") or printable(path, len(path)) != path or len(path) > MAX_PATH:
        raise PolicyError(f"{origin}: key_file is the whole path of a file, such as /etc/mountsafe/keys/backup")
    return path
