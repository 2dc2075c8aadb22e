"""Rules for devices that somebody trusts: a file of rules that only `trust` and `untrust` write. Pure.

There are two kinds of trust: the device is left to the system, or a virtual machine opens it without asking.
"""

import json
import re
import tomllib

from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Verdict

NAME = "policy.d/50-trusted.toml"
VERDICTS = (Verdict.KERNEL, Verdict.SANDBOX)
WARNING = (
    "A device is known by what it says of itself. Whoever can copy its vendor, model and serial number can make "
    "another one that is trusted as well, and the host's kernel will parse what is on it."
)
_HEAD = f"""\
# Devices that somebody trusts. Written by `mountsafe trust` and `mountsafe untrust`.
# {WARNING}
"""
_KEYS = ("bus", "vendor", "model", "serial")


def conditions(facts: Facts) -> dict[str, str]:
    """Return what tells this device from others; no "serial" in it if it has none."""
    found = {key: _pattern(getattr(facts, key)) for key in _KEYS}
    return {key: pattern for key, pattern in found.items() if pattern}


def _pattern(value: str) -> str:
    """What rules cannot hold, and what would match more than itself, stands as any one character."""
    return re.sub(r'["\\|*?\[\]]', "?", value)


def trusted(text: str) -> list[dict[str, str]]:
    """Return the verdict and the conditions of each rule in the file. Raises ValueError if it is no such file."""
    return [
        {"verdict": str(rule.get("verdict", "")), **{key: str(rule[key]) for key in _KEYS if key in rule}}
        for rule in tomllib.loads(text).get("rule", [])
    ]


def with_rule(text: str, facts: Facts, verdict: Verdict = Verdict.KERNEL) -> str:
    """Return the file with one rule for this device."""
    rule = {"verdict": str(verdict), **conditions(facts)}
    rules = trusted(text)
    return _render(rules if rule in rules else [*_others(rules, facts), rule])


def without_rule(text: str, facts: Facts) -> str:
    """Return the file without any for this device."""
    return _render(_others(trusted(text), facts))


def _others(rules: list[dict[str, str]], facts: Facts) -> list[dict[str, str]]:
    wanted = conditions(facts)
    return [rule for rule in rules if {key: rule[key] for key in _KEYS if key in rule} != wanted]


def _render(rules: list[dict[str, str]]) -> str:
    parts = [_HEAD]
    for rule in rules:
        name = " ".join(rule[key] for key in ("vendor", "model", "serial") if key in rule)
        lines = ["[[rule]]", f"name = {_quoted(f'trusted: {name}')}", f"verdict = {_quoted(rule['verdict'])}"]
        lines += [f"{key} = {_quoted(rule[key])}" for key in _KEYS if key in rule]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _quoted(text: str) -> str:
    """Return a TOML string: as JSON's, but for characters that JSON would write in two halves."""
    return json.dumps(text, ensure_ascii=False)
