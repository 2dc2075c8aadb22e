"""Trying one key slot after the other: what is said when none of them opened."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.medium.encryption import Layout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The plaintext's layout, and the volume key for it."""

    layout: Layout
    key: bytes


def first_that_opens(slots: Iterable[T], attempt: Callable[[T], bytes | None]) -> bytes:
    """Return the first key that an attempt gives. `attempt`: None where the secret is not the slot's.

    Raises KeyFault: NO_SLOT if there is none; what kept one from being tried, since the secret might be its; else
    WRONG_KEY.
    """
    kept: KeyFault | None = None
    any_slot = False
    for slot in slots:
        any_slot = True
        try:
            key = attempt(slot)
        except KeyFault as fault:
            kept = kept or fault
            continue
        if key is not None:
            return key
    if kept is not None:
        raise kept
    raise KeyFault(Fault.WRONG_KEY if any_slot else Fault.NO_SLOT)
