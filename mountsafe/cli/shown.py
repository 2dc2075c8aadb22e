"""What the daemon shows: `list` and `mount` report it in the same way as what a user has mounted."""

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mountsafe.desktop.notices import state_of
from mountsafe.errors import ExitCode, UserError
from mountsafe.session.record import READ_ONLY

DAEMON = "daemon"
LET_GO = ("ejected", "busy")  # states of a medium that the daemon has no claim of


@dataclass(frozen=True, slots=True)
class Folder:
    """A file system that is shown, and where."""

    target: str
    fstype: str
    label: str
    access: str = READ_ONLY


@dataclass(frozen=True, slots=True)
class ShownMedium:
    """A medium that the daemon shows to `user`. All words are fit to be shown."""

    device: str
    user: str
    folders: tuple[Folder, ...]
    note: str
    problem: str

    @property
    def source(self) -> str:
        """The path of the device."""
        return f"/dev/{self.device}"

    def facts(self) -> dict[str, Any]:
        """What `--json` shows: the keys of a record of `mount` that the daemon tells of, and who shows it to whom."""
        mounts = [
            {"target": each.target, "fstype": each.fstype, "label": each.label, "access": each.access}
            for each in self.folders
        ]
        return {"source": self.source, "mounts": mounts, "note": self.note, "problem": self.problem} | by_daemon(self)

    def rows(self) -> list[list[str]]:
        """Return type, label, access and place of each file system."""
        return [[each.fstype, each.label, each.access, each.target] for each in self.folders]


def by_daemon(medium: ShownMedium | None) -> dict[str, str]:
    """What `--json` says about who shows a medium and to whom, if that is the daemon."""
    return {"shown_by": DAEMON, "user": medium.user} if medium is not None else {}


def to_me() -> list[ShownMedium]:
    """Return what the daemon shows to the caller; to root, all that it shows. Nothing if it does not run."""
    return [medium for medium in map(_shown, _kept()) if medium.folders and _mine(medium.user)]


def shown(source: Path) -> ShownMedium | None:
    """Return the medium that a device is, or is a part of, if it is shown to the caller; None if the daemon has it not.

    Raises UserError (BUSY) if it has, and does not show it to the caller: why, and what can be done.
    """
    names = _names(source)
    told = next((each for each in _kept() if each["device"] in names), None) if names else None
    if told is None or told["state"] in LET_GO:
        return None
    medium = _shown(told)
    if medium.folders and _mine(medium.user):
        return medium
    why = f"it is shown to {medium.user}" if medium.folders else state_of(told)
    hint = "mountsafe devices shows all that it keeps; mountsafe unlock --type veracrypt opens what looks like noise."
    raise UserError(f"the daemon keeps {medium.source}: {why}", hint, ExitCode.BUSY)


def _kept() -> list[dict[str, Any]]:
    from mountsafe.daemon import client  # needs a bus, which few verbs do

    try:
        return client.media()
    except UserError:  # whoever mounts by hand need not have a daemon
        return []


def _shown(told: dict[str, Any]) -> ShownMedium:
    # A daemon of an earlier version tells types and labels of all file systems in one word.
    types, labels = told.get("types", [told["fstype"]]), told.get("labels", [told["label"]])
    found = zip_longest(told["mounts"], types, labels, told.get("accesses", []), fillvalue="")
    folders = [Folder(target, fstype, label, access or READ_ONLY) for target, fstype, label, access in found]
    return ShownMedium(
        told["device"],
        told["user"],
        tuple(each for each in folders if each.target),
        told.get("note", ""),
        told["problem"],
    )


def _mine(user: str) -> bool:
    if os.geteuid() == 0:
        return True
    try:
        return user == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # an account without a name
        return False


def _names(source: Path) -> set[str]:
    """Return what a block device and its disk are called; nothing for what is none. Opens nothing."""
    try:
        status = source.stat()
        if not stat.S_ISBLK(status.st_mode):
            return set()
        place = Path(os.path.realpath(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"))
    except OSError:
        return set()
    return set(_called(place))


def _called(place: Path) -> Iterator[str]:
    yield place.name
    if (place / "partition").exists():
        yield place.parent.name
