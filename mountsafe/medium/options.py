"""What a person or a policy says of a medium, checked; and which of its file systems take the mount options."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mountsafe import fsoptions
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.volumes import ENCRYPTED, Volume
from mountsafe.text import printable
from mountsafe.wire import SECTOR_SIZES

HINT = 1000  # characters
_ENCRYPTIONS = {title.lower(): fstype for fstype, title in ENCRYPTED.items()}  # as people name them
# For mount(8), which the guest calls, "noext4" is every type but ext4.
_FSTYPE = re.compile(r"(?!no|auto$)[a-z0-9_.+-]{1,32}")


def checked_type(fstype: str | None, partition: str | None) -> str | None:
    """Return the type that is named. Raises UserError (USAGE) for what can be none, or no partition."""
    fstype = _ENCRYPTIONS.get(fstype or "", fstype)
    if fstype is not None and not _FSTYPE.fullmatch(fstype) and fstype not in ENCRYPTED:
        message = f"{printable(fstype)} is not a file system type"
        raise UserError(message, "For example: vfat, udf, affs.", ExitCode.USAGE)
    if partition is not None and (not partition or partition.startswith("-")):
        message = f"{printable(partition) or 'nothing'} is no number or name of a partition"
        raise UserError(message, "mountsafe inspect shows them; 0 is the whole disk.", ExitCode.USAGE)
    return fstype


def checked_sectors(sector_size: int | None) -> int | None:
    """Return a size of sectors that is named. Raises UserError (USAGE) if it is none."""
    if sector_size is not None and sector_size not in SECTOR_SIZES:
        known = ", ".join(map(str, sorted(SECTOR_SIZES)))
        raise UserError(f"no disk has sectors of {sector_size} bytes", f"There are {known}.", ExitCode.USAGE)
    return sector_size


def checked_options(words: Sequence[str], fstype: str | None) -> tuple[str, ...]:
    """Return the options in words, each of which may be several, with commas. Raises UserError (USAGE).

    Each must be one of the type's; if none is said, one that some type takes.
    """
    options = tuple(option for word in words for option in word.split(","))
    _check(options, [fstype] if fstype else [])
    return options


def with_options(volumes: Sequence[Volume], options: Sequence[str]) -> list[Volume]:
    """Return the volumes, each with those of the options that its type takes. Raises UserError (USAGE) if none does."""
    if options:
        _check(options, [volume.fstype for volume in volumes])
    return [replace(volume, options=fsoptions.taken(options, volume.fstype)) for volume in volumes]


def with_wished(volumes: Sequence[Volume], wished: Mapping[str, Sequence[str]]) -> list[Volume]:
    """Return the volumes with the options that a policy has for each, by name, as far as its type takes them."""
    return [replace(v, options=fsoptions.taken(wished.get(v.name, v.options), v.fstype)) for v in volumes]


def _check(options: Sequence[str], fstypes: Sequence[str]) -> None:
    try:
        fsoptions.check(options, fstypes)
    except fsoptions.NotTaken as wrong:
        raise UserError(printable(wrong.message), printable(wrong.hint, HINT), ExitCode.USAGE) from wrong
