"""Which of the volumes on a medium are shown, and the names of the folders that they are shown in."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mountsafe import wire
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.unopened import UNOPENED
from mountsafe.medium.volumes import ENCRYPTED, FORCED, NO_SIGNATURE, PREFIXES, WHOLE_DISK, Volume
from mountsafe.medium.wrappers import NOTHING_FOUND
from mountsafe.text import printable

NAME_LENGTH = 48  # characters of a label in a folder's name; with 4 bytes each and a number, fewer than NAME_MAX
TITLE_LENGTH = 40  # characters of the name of an array or a logical volume in a folder's name: ASCII alone
# Types that span a whole disk beside a partition table, of which some partitions are parts of it.
_HYBRID = frozenset({"iso9660", "udf"})


def _wanted(volumes: Sequence[Volume], wanted: int | str) -> list[Volume]:
    """Return the volume of a number or a name. A number is the disk's partition, 0 the disk, else an inner partition's.

    A name may leave out what it has in common with no other: the volume group, or the machine that an array is of.
    """
    name = str(wanted)
    if named := [volume for volume in volumes if volume.name == name]:
        return named
    if name.isdecimal():
        inner = [v for v in volumes if v.kind == "partition" and str(v.number) == name]
        return inner if len(inner) == 1 else []
    short = [volume for volume in volumes if name in (re.split("[/:]", volume.name)[-1], volume.device)]
    return short if len(short) == 1 else []


def choose(
    volumes: Sequence[Volume], partition: int | str | None, fstype: str | None, medium: str = "it"
) -> list[Volume]:
    """Return what to mount: the volume asked for, or the whole disk's file system, or every one there is.

    What is encrypted is to be unlocked first: see `deeper` for what is then asked for. `partition` is a number or a
    name; `fstype` forces a type on the volume that is chosen. Raises UserError (SOURCE) with what there is instead,
    which names the `medium`.
    """
    if partition is not None:
        chosen = _wanted(volumes, partition)
        if not chosen and (around := _may_hold(volumes, str(partition))):
            return around
        if not chosen:
            what = f"partition {partition}" if str(partition).isdecimal() else f"volume {printable(str(partition))}"
            raise UserError(f"there is no {what}", _there_is(volumes), ExitCode.SOURCE)
        return [_as(v, fstype) for v in chosen]
    disk = [v for v in volumes if v.kind == "disk"]
    if fstype:
        matching = [v for v in volumes if v.fstype == fstype and not v.absent] or _noise(volumes, disk, fstype)
        return [_as(v, fstype) for v in (matching or disk)[:1]]
    if disk and disk[0].mountable and disk[0].fstype in _HYBRID:
        return [*disk[:1], *(v for v in volumes if v.mountable and v.kind != "disk" and not v.inside)]
    if disk and _opens(disk[0]) and (len(volumes) == 1 or not disk[0].table):
        return disk[:1]
    chosen = [v for v in volumes if _opens(v) and v.kind != "disk"] or [v for v in disk if _opens(v)]
    if not chosen:
        raise _nothing_of(volumes, medium)
    return chosen


def _noise(volumes: Sequence[Volume], disk: Sequence[Volume], fstype: str) -> list[Volume]:
    """Return the partition that can be of a type without a signature, if there is one such on a disk with a table."""
    if fstype not in NO_SIGNATURE or not (disk and disk[0].table):
        return []
    noise = [v for v in volumes if v.kind == "partition" and not v.fstype and not v.absent]
    return noise if len(noise) == 1 else []


def _opens(volume: Volume) -> bool:
    return volume.mountable or volume.encrypted


def _nothing_of(volumes: Sequence[Volume], medium: str) -> UserError:
    """Say why there is nothing to mount."""
    if absent := left_out(volumes):
        return UserError(absent[0].describe(), _there_is(volumes), ExitCode.SOURCE)
    if any(volume.resorts & wire.Resort.UNFINISHED for volume in volumes):
        hint = "Try again when this machine has less to do."
        return UserError(f"the search on {medium} was ended before a file system was found", hint, ExitCode.DEADLINE)
    if known := next((v for v in volumes if v.fstype in UNOPENED and not v.mountable), None):
        which = "it" if known.kind == "disk" else known.title
        kind = UNOPENED[known.fstype]
        return UserError(f"{NOTHING_FOUND} on {medium}: {which} is {kind.what}", kind.what_to_do, ExitCode.SOURCE)
    return UserError(f"{NOTHING_FOUND} on {medium}", _there_is(volumes), ExitCode.SOURCE)


def left_out(volumes: Sequence[Volume]) -> list[Volume]:
    """Return what the medium tells of and cannot be mounted, because something is missing or wrong."""
    return [volume for volume in volumes if volume.absent]


def parts(volumes: Sequence[Volume], chosen: Sequence[Volume]) -> list[Volume]:
    """Return the file systems in partitions that lie inside another one which is shown, unless they are the same."""
    whole = [v for v in chosen if v.kind == "disk" and v.fstype in _HYBRID]
    inside = [v for v in volumes if v.inside and v.mountable and v not in chosen] if whole else []
    return [v for v in inside if (v.fstype, v.uuid) != (whole[0].fstype, whole[0].uuid)]


def _as(volume: Volume, fstype: str | None) -> Volume:
    if volume.absent:
        raise UserError(volume.describe(), "It can be opened when all that it needs is there.", ExitCode.SOURCE)
    if fstype is None:
        if not volume.fstype:
            hint = "If you know its type, name it with --type."
            raise UserError(f"no file system was recognised on {volume.describe()}", hint, ExitCode.SOURCE)
        if volume.usage and not _opens(volume):
            hint = "If there is one all the same, name its type with --type."
            raise UserError(f"there is no file system on {volume.describe()}", hint, ExitCode.SOURCE)
        return volume
    return replace(volume, fstype=fstype, usage=FORCED if fstype in ENCRYPTED else "filesystem")


def within(host: Volume | None, volume: Volume) -> Volume:
    """Return a volume of an encrypted one's plaintext, by a name that is its own among all of the medium."""
    if host is None:
        return volume
    layers = (*host.layers, host.name, *volume.layers)
    return replace(volume, name=f"{host.name}/{volume.name}", layers=layers, host=host)


def _may_hold(volumes: Sequence[Volume], wanted: str) -> list[Volume]:
    """Return the encrypted volumes in which one may lie that is not found outside of them."""
    encrypted = [volume for volume in volumes if volume.encrypted and not wanted.isdecimal()]
    return [volume for volume in encrypted if wanted.startswith(f"{volume.name}/")] or encrypted


def deeper(volumes: Sequence[Volume], wanted: int | str | None, volume: Volume) -> int | str | None:
    """Return what is wanted of an encrypted volume's plaintext; None if all of it is, because that volume was."""
    if wanted is None or _wanted(volumes, wanted):
        return None
    return str(wanted).removeprefix(f"{volume.name}/")


def locked(volume: Volume, medium: str) -> UserError:
    """Return the error of an encrypted volume that was not unlocked."""
    hint = "On a terminal its passphrase is asked for; --key-file FILE, or --recovery-key, gives another key."
    return UserError(f"{called(volume, medium)} is encrypted ({ENCRYPTED[volume.fstype]})", hint, ExitCode.LOCKED)


def called(volume: Volume, medium: str) -> str:
    """Return what a person calls a volume of a medium."""
    return medium if volume.title == WHOLE_DISK else f"{volume.title} of {medium}"


def _there_is(volumes: Sequence[Volume]) -> str:
    shown = [v.describe() for v in volumes if v.fstype or v.table or v.kind != "disk"]
    if not shown:
        return "If you know its type, name it with --type."
    return "There is: " + "; ".join(shown[:20]) + ". --partition and --type FSTYPE choose."


def folder_names(volumes: Sequence[Volume]) -> list[str]:
    """Return a folder name for each of several volumes: what it is, and its label if it has one that can be a name."""
    names: list[str] = []
    for volume in volumes:
        shown = volume
        while shown.kind == "disk" and shown.host:
            shown = shown.host
        title = f"{PREFIXES[shown.kind]}{shown.number or ''}"
        if shown.nested or shown.host:
            title = re.sub(r"[^A-Za-z0-9_.+-]+", "-", volume.name).strip("._-+")[:TITLE_LENGTH] or title
        label = _as_name(volume.label)
        name, count = f"{title}{'-' if label else ''}{label}", 1
        while (numbered := name if count == 1 else f"{name}-{count}") in names:
            count += 1
        names.append(numbered)
    return names


def label_name(volume: Volume) -> str:
    """Return a folder name for a file system that stands for itself: its label, or its type if it has none.

    The type is the guest's word as well, and may be "..".
    """
    return _as_name(volume.label, " ") or _as_name(volume.fstype) or volume.kind


def _as_name(label: str, also: str = "") -> str:
    """Return what of a label can be a folder's name: letters, digits, a few signs, and the characters in `also`."""
    return re.sub(rf"[^\w.+{also}-]+", "_", label).strip(f"._-{also}")[:NAME_LENGTH]
