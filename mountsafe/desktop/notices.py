"""What a desktop says of a medium. Pure: what the daemon tells in, words and buttons out.

No button leaves a device to the host's kernel: `Trust` means that a virtual machine opens it without asking. The other
kind of trust is for the command line, which says what it costs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mountsafe.policy.risk import risk_of
from mountsafe.text import printable

Medium = Mapping[str, Any]  # as `mountsafe.daemon.client.media` returns it
TEXT = 300  # characters of anything that others say


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


def notice_of(medium: Medium) -> Notice | None:
    """Return what is to be said of a medium in its state; None is nothing."""
    name, why, problem = name_of(medium), _because(medium), _text(medium, "problem")
    match medium["state"]:
        case "opening":
            return Notice(f"{name} is being opened", "A virtual machine looks at it first.")
        case "open":
            how = ", ".join(filter(None, (_text(medium, "fstype"), "read-only, in a virtual machine")))
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
        case "ejected":
            return Notice(f"{name} can be pulled out", "", category="device.removed")
        case "unmounted":
            words = "It is unmounted. Open shows it again."
            return Notice(f"{name} can be pulled out", words, _UNMOUNTED, category="device.removed")
    return None


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
        case "unmounted":
            return f"unmounted: it can be pulled out (mountsafe open {device} shows it again)"
        case "ejected":
            return "it can be pulled out"
        case "busy":
            return "another program uses it"
        case "waiting for a user":
            return "nobody is at the seat, or the screen is locked"
        case "opening":
            return "a virtual machine looks at it first"
    return problem or reason


def _because(medium: Medium) -> str:
    """Return the policy's reason, with the type that it is about unless it says that itself."""
    fstype, reason = _text(medium, "fstype"), _text(medium, "reason")
    said = not fstype or any(each in re.findall(r"[\w.+-]+", reason) for each in fstype.split(", "))
    return reason if said else f"{fstype}: {reason}"


def _note(medium: Medium) -> str:
    """What is to be known of its files."""
    return _told(medium, "note")


def _told(medium: Medium, key: str) -> str:
    """What a daemon of an earlier version does not tell."""
    return _text(medium, key) if key in medium else ""


def _text(medium: Medium, key: str) -> str:
    return printable(str(medium[key]), TEXT)
