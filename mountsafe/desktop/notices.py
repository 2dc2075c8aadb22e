"""Notifications about media. Pure: takes what the daemon tells, returns words and buttons.

No button leaves a device to the host's kernel: `Trust` means that a virtual machine opens it without asking. The other
kind of trust is for the command line, which says what it costs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mountsafe.policy.risk import risk_of
from mountsafe.session.record import READ_ONLY
from mountsafe.text import printable

Medium = Mapping[str, Any]  # as `mountsafe.daemon.client.media` returns it
TEXT = 300  # characters of anything that others say
LOST = 1500  # characters of which files were not saved


class Action(StrEnum):
    """A button. "default" is what a click on the notification itself does."""

    DEFAULT = "default"
    OPEN = "open"
    UNLOCK = "unlock"
    EJECT = "eject"
    TRUST = "trust"
    DETAILS = "details"
    UNMOUNT = "unmount"
    UNTIL_LOGOUT = "until-logout"
    ALWAYS = "always"


LABELS = {
    Action.DEFAULT: "Open",
    Action.OPEN: "Open",
    Action.UNLOCK: "Unlock",
    Action.EJECT: "Eject",
    Action.TRUST: "Trust",
    Action.DETAILS: "Details",
    Action.UNMOUNT: "Unmount",
    Action.UNTIL_LOGOUT: "Until logout",
    Action.ALWAYS: "Always",
}


_OPEN = (Action.DEFAULT, Action.OPEN, Action.EJECT, Action.DETAILS)
_ASK = (Action.OPEN, Action.TRUST, Action.DETAILS)
_REFUSE = (Action.TRUST, Action.DETAILS)
_LOCKED = (Action.UNLOCK, Action.EJECT, Action.DETAILS)
_UNMOUNTED = (Action.OPEN,)
# Where something was not saved; in other states there is nothing to be done but to look.
_LOST = {"open": _OPEN, "unmounted": (*_UNMOUNTED, Action.DETAILS), "locked": _LOCKED}
_FAILED = (Action.OPEN, Action.DETAILS)


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification. `lasts`: it stays until it is answered or its reason is gone. The body is plain text."""

    summary: str
    body: str
    actions: tuple[Action, ...] = ()
    icon: str = "drive-removable-media"
    category: str = "device"
    lasts: bool = False


# What is said of a medium in a state by which everything is said; before each summary goes its name.
_PLAIN = {
    "opening": Notice("is being opened", "A virtual machine looks at it first."),
    "saving": Notice("is being saved", "Do not pull it out yet: what was changed is being saved.", lasts=True),
    "ejected": Notice("can be pulled out", "", category="device.removed"),
    "unmounted": Notice(
        "can be pulled out", "It is unmounted. Open shows it again.", _UNMOUNTED, category="device.removed"
    ),
}
_STATES = {
    "saving": "what was changed is being saved",
    "ejected": "it can be pulled out",
    "busy": "another program uses it",
    "waiting for a user": "nobody is at the seat, or the screen is locked",
    "opening": "a virtual machine looks at it first",
}


def notice_of(medium: Medium) -> Notice | None:
    """Return what is to be said of a medium in its state; None is nothing."""
    name, why, problem = name_of(medium), _because(medium), _text(medium, "problem")
    if lost := _told(medium, "lost", LOST):
        return _notice_of_loss(medium, name, lost)
    if plain := _PLAIN.get(medium["state"]):
        return replace(plain, summary=f"{name} {plain.summary}")
    match medium["state"]:
        case "open":
            access = _told(medium, "access") or READ_ONLY
            how = ", ".join(filter(None, (_text(medium, "fstype"), access, "in a virtual machine")))
            body = "\n".join(filter(None, (how, _note(medium), problem)))
            return Notice(f"{name} is open", body, _OPEN, category="device.added")
        case "ask":
            return Notice(f"Open {name}?", f"The policy asks because {why}", _ASK, "dialog-question", lasts=True)
        case "refuse":
            return Notice(f"{name} is blocked", f"blocked because {why}", _REFUSE, "dialog-warning", lasts=True)
        case "locked":
            kinds = _told(medium, "locked")
            what = f"A part of {name} is encrypted" if medium["mounts"] else f"{name} is encrypted"
            body = "\n".join(filter(None, ("Unlock asks for its key.", _told(medium, "locked_hint"), problem)))
            return Notice(f"{what} ({kinds})" if kinds else what, body, _LOCKED, "dialog-password", lasts=True)
        case "failed":
            return Notice(f"{name} could not be opened", problem, _FAILED, "dialog-error", "device.error")
    return None


def _notice_of_loss(medium: Medium, name: str, lost: str) -> Notice:
    """Return what is to be said of a medium that has not all that programs were told is on it."""
    if medium["state"] == "lost":
        summary, words = f"{name} was pulled out too early", "Eject it before you pull it out."
    else:
        summary, words = f"Not everything was saved on {name}", "Save it once more, elsewhere perhaps."
    actions = _LOST.get(medium["state"], (Action.DETAILS,))
    return Notice(summary, f"{lost}.\n{words}", actions, "dialog-error", "device.error", lasts=True)


def is_blocked(medium: Medium) -> bool:
    """Whether it is shown to nobody, so that who is at the seat is told."""
    return medium["state"] in ("ask", "refuse", "failed")


def details_of(medium: Medium) -> str:
    """Return all that is known of a medium, a line each."""
    fstype = _text(medium, "fstype")
    risks = "; ".join(f"{each}: {risk_of(each).reason}" for each in fstype.split(", "))
    lines = (
        ("Device", _text(medium, "device")),
        ("Type", risks if fstype else "unknown"),
        ("Label", _text(medium, "label")),
        ("Model", _text(medium, "model")),
        ("Verdict", f"{_text(medium, 'verdict')}, by {_text(medium, 'rule') or 'no rule'}: {_text(medium, 'reason')}"),
        ("Shown on", ", ".join(printable(mount, TEXT) for mount in medium["mounts"])),
        ("Access", ", ".join(filter(None, (_told(medium, "access"), _told(medium, "read_only"))))),
        ("Not saved", _told(medium, "lost", LOST)),
        ("Note", _note(medium)),
        ("Encrypted", ", ".join(filter(None, (_told(medium, "locked"), _told(medium, "locked_hint"))))),
        ("UUID", _told(medium, "locked_uuid")),
        ("Problem", _text(medium, "problem")),
    )
    return "\n".join(f"{what}: {value}" for what, value in lines if value)


def detailed(notice: Notice, medium: Medium) -> Notice:
    """Return a notice with all that is known in place of its words."""
    actions = tuple(action for action in notice.actions if action != Action.DETAILS)
    return replace(notice, body=details_of(medium), actions=actions)


def failure(notice: Notice, action: Action, words: str) -> Notice:
    """Return a notice that says why a button did nothing."""
    return replace(notice, summary=f"{LABELS[action]} failed", body=words, icon="dialog-error")


def name_of(medium: Medium) -> str:
    """Return what people know a medium by: its label, its model, its type, or where it is plugged in."""
    return next(filter(None, (_text(medium, key) for key in ("label", "model", "fstype", "device"))), "")


def encryption_of(medium: Medium) -> str:
    """Return what of a medium is locked."""
    kinds = _told(medium, "locked")
    what = "a part of it is encrypted" if medium["mounts"] else "it is encrypted"
    return f"{what}: {kinds}" if kinds else what


def state_of(medium: Medium) -> str:
    """Return why a medium is in its state, and what can be done, in a line."""
    device, reason, problem = (_text(medium, key) for key in ("device", "reason", "problem"))
    match medium["state"]:
        case "failed":
            return problem
        case "ask":
            return f"the policy asks: {reason} (mountsafe open {device} shows it)"
        case "refuse":
            return f"the policy refuses it: {reason}"
        case "locked":
            words = f"{encryption_of(medium)} (mountsafe unlock {device} asks for the key)"
            return "; ".join(filter(None, (words, problem)))
        case "lost":
            return f"it was pulled out too early: {_told(medium, 'lost', LOST)}"
        case "ejected" | "unmounted" if lost := _told(medium, "lost", LOST):
            return f"not everything was saved: {lost}"
        case "unmounted":
            return f"unmounted: it can be pulled out (mountsafe open {device} shows it again)"
    return _STATES.get(medium["state"]) or problem or reason


def _because(medium: Medium) -> str:
    """Return the policy's reason, with the type that it is about unless it says that itself."""
    fstype, reason = _text(medium, "fstype"), _text(medium, "reason")
    said = not fstype or any(each in re.findall(r"[\w.+-]+", reason) for each in fstype.split(", "))
    return reason if said else f"{fstype}: {reason}"


def _note(medium: Medium) -> str:
    """What is to be known of its files."""
    return _told(medium, "note")


def _told(medium: Medium, key: str, limit: int = TEXT) -> str:
    """What a daemon of an earlier version does not tell."""
    return _text(medium, key, limit) if key in medium else ""


def _text(medium: Medium, key: str, limit: int = TEXT) -> str:
    return printable(str(medium[key]), limit)
