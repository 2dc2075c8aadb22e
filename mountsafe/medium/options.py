"""The mount options that a person or a policy gives, and which of a medium's file systems take them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mountsafe import fsoptions
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.volumes import Volume
from mountsafe.text import printable

HINT = 1000  # characters


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
