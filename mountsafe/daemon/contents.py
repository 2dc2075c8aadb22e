"""A medium in words for people: what udev knows about it, and what the virtual machine has found inside since."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mountsafe.hotplug.devices import Device
from mountsafe.policy.facts import Facts
from mountsafe.policy.inside import Seen
from mountsafe.session.messages import Locked
from mountsafe.session.record import Mount
from mountsafe.text import printable, shown_path

NOTE = 1000  # characters of what is to be known of a medium's mounts
MOST = 500  # characters of all labels, or of all types


@dataclass(frozen=True, slots=True)
class Contents:
    """Types, labels and model, fit to be shown; of several file systems joined by a comma."""

    fstype: str = ""
    label: str = ""
    model: str = ""

    @classmethod
    def known(cls, device: Device) -> "Contents":
        """Return what is known when it is plugged in."""
        facts = device.facts or Facts()
        return cls(facts.fstype, facts.label, _model(device, facts))

    def found(self, volumes: Sequence[Seen | Mount]) -> "Contents":
        """Return what is known when a virtual machine has told of volumes."""
        types, labels = _joined(each.fstype for each in volumes), _joined(each.label for each in volumes)
        return Contents(types or self.fstype, labels or self.label, self.model)

    @property
    def words(self) -> str:
        """All of it in a line."""
        return " ".join(filter(None, (self.fstype, self.label)))


def _joined(texts: Iterable[str]) -> str:
    return printable(", ".join(dict.fromkeys(filter(None, texts))), MOST)


def _model(device: Device, facts: Facts) -> str:
    """Return what a device calls itself; udev has underscores for spaces."""
    words = " ".join(filter(None, (facts.vendor, facts.model)))
    return printable(" ".join(words.replace("_", " ").split()), 100)


def noted(mounts: Sequence[Mount]) -> str:
    """Return what is to be known of what is shown: of a journal, of what is missing, of what is damaged."""
    notes: dict[str, list[str]] = {}
    for mounted in mounts:
        if mounted.note:
            notes.setdefault(mounted.note, []).append(os.path.basename(mounted.target))
    many = len(mounts) > 1
    words = [f"{', '.join(names)}: {note}" if many else note for note, names in notes.items()]
    return printable("; ".join(words), NOTE)


def told_of_mounts(mounts: Sequence[Mount]) -> dict[str, str | list[str]]:
    """Return what others are told of what is shown."""
    return {
        "note": noted(mounts),
        "mounts": [shown_path(mounted.target) for mounted in mounts],
        "types": [printable(mounted.fstype) for mounted in mounts],
        "labels": [printable(mounted.label) for mounted in mounts],
        "accesses": [mounted.access for mounted in mounts],
        "read_only": "; ".join(dict.fromkeys(printable(each.read_only) for each in mounts if each.read_only)),
    }


def told_of_locked(locked: Sequence[Locked]) -> dict[str, str]:
    """Return what others are told of what needs a key."""
    return {
        "locked": ", ".join(each.kind for each in locked),
        "locked_uuid": next((each.uuid for each in locked), ""),
        "locked_hint": next((each.hint for each in locked), ""),
    }
