"""Dataclasses as JSON objects, there and back: what our own processes tell each other, and what a record keeps.

A value is accepted only if it has the type of its field: bool, int, float, str, None, an enumeration, a tuple, a union,
or another dataclass. Nothing is converted, except an int where a float is meant. Readers trust nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from mountsafe.errors import ProtocolFault

_VERSION = "version"
T = TypeVar("T")


class OtherVersion(ProtocolFault):
    """The other end is of a version of mountsafe that speaks otherwise."""

    def __init__(self, theirs: int, ours: int) -> None:
        super().__init__(f"it is of another version of mountsafe (it speaks version {theirs}, and this one {ours})")


def plain(value: Any) -> Any:
    """Return what JSON has for a value: objects for dataclasses, lists for tuples."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return value


def read(kind: type[T], untrusted: object, strict: bool = True) -> T:
    """Return the dataclass of an object. Raises ProtocolFault, which names the field.

    A key that is missing is a fault unless its field has a default. One that is unknown is a fault if `strict`, and
    left out if not: what is ordered must be understood as a whole, and what is told need not.
    """
    made: T = _object(kind, untrusted, kind.__name__, strict)
    return made


@cache
def _shape(kind: type) -> Mapping[str, tuple[Any, Field[Any]]]:
    hints = get_type_hints(kind)
    return {field.name: (hints[field.name], field) for field in fields(kind)}


def _object(kind: Any, untrusted: object, where: str, strict: bool) -> Any:
    if not isinstance(untrusted, dict):
        raise ProtocolFault(f"{where} is no object")
    shape = _shape(kind)
    if strict and (unknown := next((key for key in untrusted if key not in shape), None)) is not None:
        raise ProtocolFault(f"{where} has an unknown key: {unknown[:64]!r}")
    found = {}
    for name, (hint, field) in shape.items():
        if name in untrusted:
            found[name] = _value(hint, untrusted[name], f"{where}.{name}", strict)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ProtocolFault(f"{where} has no {name}")
    return kind(**found)


def _value(hint: Any, untrusted: Any, where: str, strict: bool) -> Any:
    if is_dataclass(hint):
        return _object(hint, untrusted, where, strict)
    if isinstance(hint, UnionType):
        return _one_of(get_args(hint), untrusted, where, strict)
    if get_origin(hint) is tuple:
        return _tuple(get_args(hint), untrusted, where, strict)
    if issubclass(hint, Enum):
        return _member(hint, untrusted, where)
    fits = type(untrusted) is hint or (hint is float and type(untrusted) is int)
    if not fits or (hint in (int, float) and not -(1 << 63) <= untrusted < 1 << 64):  # nor is NaN
        raise ProtocolFault(f"{where} is no {hint.__name__}")
    return float(untrusted) if hint is float else untrusted


def _one_of(hints: tuple[Any, ...], untrusted: Any, where: str, strict: bool) -> Any:
    *others, last = hints
    for hint in others:
        try:
            return _value(hint, untrusted, where, strict)
        except ProtocolFault:
            continue
    return _value(last, untrusted, where, strict)


def _tuple(hints: tuple[Any, ...], untrusted: Any, where: str, strict: bool) -> tuple[Any, ...]:
    if not isinstance(untrusted, list):
        raise ProtocolFault(f"{where} is no list")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(untrusted)
    if len(hints) != len(untrusted):
        raise ProtocolFault(f"{where} has {len(untrusted)} values and not {len(hints)}")
    return tuple(
        _value(hint, each, f"{where}[{place}]", strict)
        for place, (hint, each) in enumerate(zip(hints, untrusted, strict=True))
    )


def _member(hint: type[Enum], untrusted: Any, where: str) -> Enum:
    try:
        if type(untrusted) in (int, str):
            return hint(untrusted)
    except ValueError:
        pass
    raise ProtocolFault(f"{where} is no {hint.__name__}")


@dataclass(frozen=True)
class Messages(Generic[T]):
    """What one side of a conversation may say: an object with one key, which tells the kind, and the version.

    A kind with a single field stands for that: Progress("starting") is {"progress": "starting"}. `version`: that is
    written; `read`: those that are understood. A message without one is of version 1.
    """

    kinds: Mapping[str, Any]
    version: int = 1
    known: Collection[int] = (1,)
    strict: bool = True

    def told(self, message: T) -> dict[str, Any]:
        """Return the object of a message."""
        word = next(word for word, kind in self.kinds.items() if type(message) is kind)
        told = plain(message)
        return {word: next(iter(told.values())) if len(told) == 1 else told} | self._stamp()

    def _stamp(self) -> dict[str, Any]:
        return {_VERSION: self.version} if self.version != 1 else {}

    def read(self, untrusted: Mapping[str, object]) -> T:
        """Return the message of an object. Raises ProtocolFault; OtherVersion if it is of one that is not known."""
        check_version(untrusted, self.version, self.known)
        words = [word for word in untrusted if word != _VERSION]
        kind = self.kinds.get(words[0]) if len(words) == 1 else None
        if kind is None:
            raise ProtocolFault("an unknown message")
        told = untrusted[words[0]]
        shape = _shape(kind)
        if len(shape) == 1:
            told = {next(iter(shape)): told}
        made: T = read(kind, told, self.strict)
        return made


def check_version(untrusted: Mapping[str, object], ours: int, known: Collection[int]) -> None:
    """Raise OtherVersion if an object is of a version that is not known, ProtocolFault if it is of none."""
    theirs = untrusted.get(_VERSION, 1)
    if type(theirs) is not int:
        raise ProtocolFault("a version that is no number")
    if theirs not in known:
        raise OtherVersion(theirs, ours)
