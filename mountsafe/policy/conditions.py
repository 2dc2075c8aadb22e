"""The conditions of a rule: what each key may say, and whether it holds of a medium's facts."""

import fnmatch
import re
from dataclasses import fields
from typing import Any

from mountsafe.policy.facts import Facts
from mountsafe.policy.risk import RiskClass
from mountsafe.text import printable

# udev's rules have no way to write these in a pattern (udev(7)); "?" stands for any character.
_NOT_IN_PATTERNS = frozenset('"\\|')
# What udev cannot ask when it decides whether the system gets to see a medium.
ASKED_LATER = ("min_size", "max_size", "seat", "locked")
_SIZE = re.compile(r"(\d{1,18})\s*(B|KiB|MiB|GiB|TiB)?")
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TEXTS = ("fstype", "label", "uuid", "bus", "vendor", "model", "serial", "seat")
_SWITCHES = ("external", "removable", "locked", "encrypted")


class PolicyError(ValueError):
    """A policy that cannot be read: where, and what is wrong."""


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


CHECKS = {
    **dict.fromkeys(_TEXTS, _check_patterns),
    **dict.fromkeys(_SWITCHES, _check_switch),
    "risk": _check_risk,
    "min_size": _check_size,
    "max_size": _check_size,
}
CONDITIONS = {
    **{key: _text_holds(key) for key in _TEXTS},
    **{key: _switch_holds(key) for key in _SWITCHES},
    "risk": lambda facts, wanted: facts.risk.level in as_list(wanted),
    "min_size": lambda facts, wanted: facts.size >= _bytes(wanted),
    "max_size": lambda facts, wanted: facts.size <= _bytes(wanted),
}
assert {field_.name for field_ in fields(Facts)} >= {*_TEXTS, *_SWITCHES} - {"encrypted"}
