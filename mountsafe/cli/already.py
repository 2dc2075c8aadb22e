"""What is mounted already: whoever asks for it once more is told where, and another part of it is mounted beside it."""

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import STATUS_DEADLINE
from mountsafe.medium.formats import Format
from mountsafe.medium.part import Part
from mountsafe.medium.swapped import number_of
from mountsafe.session import asking, running
from mountsafe.session.order import MountOptions
from mountsafe.session.record import READ_ONLY, READ_WRITE, Asked, Record
from mountsafe.session.runtime import Runtime
from mountsafe.text import shown_path


def mounted(
    source: Path, options: MountOptions, format_: Format | None, sector_size: int | None, part: Part
) -> Record | None:
    """Return the record of the mount that shows what is asked for; None if there is none.

    Raises UserError (TARGET) if one shows it in another way than is asked for, or what was in the device before.
    """
    for runtime, record in _of(source):
        if not _of_this_medium(record, source):
            shown = shown_path(source.name)
            hint = f"It is being unmounted; mountsafe unmount {shlex.quote(shown_path(record.target))} does so at once."
            message = f"{shown_path(record.target)} is a mount of what was in {shown} before"
            raise UserError(message, hint, ExitCode.TARGET)
        same = part == Part(record.offset, record.sizelimit)
        if not same or not _shows(record, options.partition):
            if (options.write or _writes(record)) and not (same and _is_beside(record, options.partition)):
                raise _otherwise(record, source, options)
            continue
        if not _so(record, options, format_, sector_size):
            raise _otherwise(record, source, options)
        return running.told(runtime, record)
    return None


def _otherwise(record: Record, source: Path, options: MountOptions) -> UserError:
    """Return what is said of what is mounted in another way than is asked for."""
    shown = shown_path(source.name)
    hint = f"mountsafe unmount {shlex.quote(shown_path(record.target))}, then it can be mounted in this way."
    how = ", with other options"
    if _writes(record) != options.write:
        how = f", {READ_WRITE if _writes(record) else READ_ONLY}"
    message = f"{shown} is already mounted on {shown_path(record.target)}{how}"
    return UserError(message, hint, ExitCode.TARGET)


def _writes(record: Record) -> bool:
    """Whether it was asked for to be written to."""
    return record.asked is not None and record.asked.write


def lent(source: Path) -> int | None:
    """Return a descriptor of a device that a mount of the caller's holds alone, for another part of it; else None."""
    try:
        status = source.stat()
    except OSError:
        return None
    for runtime, record in _of(source) if stat.S_ISBLK(status.st_mode) else ():
        if _of_this_medium(record, source) and (fd := asking.lent(runtime, STATUS_DEADLINE)) is not None:
            if _is_device(fd, status.st_rdev):
                return fd
            os.close(fd)
    return None


def _is_device(fd: int, number: int) -> bool:
    """Whether a descriptor is that of a device: a name may lead elsewhere since it was looked at."""
    status = os.fstat(fd)
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == number


def _of(source: Path) -> Iterator[tuple[Runtime, Record]]:
    """Yield the media of the caller that are this source, by whatever name."""
    for runtime, record in running.running():
        if _same(Path(record.source), source):
            yield runtime, record


def _same(one: Path, other: Path) -> bool:
    try:
        first, second = one.stat(), other.stat()
    except OSError:  # removed, or replaced by what we may not see
        return one == other.absolute()
    if stat.S_ISBLK(first.st_mode) and stat.S_ISBLK(second.st_mode):
        return first.st_rdev == second.st_rdev
    return os.path.samestat(first, second)


def _of_this_medium(record: Record, source: Path) -> bool:
    """Whether a mount of a device is one of the medium that is in it now."""
    try:
        return not record.sequence or number_of(source.stat()) in (0, record.sequence)
    except OSError:
        return True


def _shows(record: Record, partition: int | str | None) -> bool:
    """Whether it was asked for the same part, or shows that part among others."""
    asked = record.asked.partition if record.asked is not None else None
    if partition is None:
        return asked is None
    return partition in (asked, *(each.name for each in record.mounts))


def _is_beside(record: Record, partition: int | str | None) -> bool:
    """Whether a partition that is asked for is none that it shows: else what one writes the other would not see."""
    asked = record.asked.partition if record.asked is not None else None
    return partition is not None and asked is not None


def _so(record: Record, options: MountOptions, format_: Format | None, sector_size: int | None) -> bool:
    """Whether it is shown in the way that is asked for, so far as its supervisor tells."""
    if record.asked is None:
        return True
    same = Asked.of(options) == replace(record.asked, partition=options.partition)
    return same and format_ in (None, record.format) and sector_size == record.sector_size
