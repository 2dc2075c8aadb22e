"""`mountsafe.open`: an image or a device, opened to be read by this program, through a virtual machine of its own.

What reads it are other processes: a supervisor, which ends with this process or with the image, and what that keeps in
boxes. Neither libguestfs nor pyfuse3 is ever in this process, and FUSE is needed nowhere.
"""

import atexit
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from mountsafe.encrypted import secrecy
from mountsafe.errors import ExitCode, UserError
from mountsafe.jobs.judging import judge_of
from mountsafe.jobs.preparing import prepare
from mountsafe.library.filesystem import FileSystem
from mountsafe.library.stream import Stream
from mountsafe.limits import IDLE, INDEX_ENTRIES
from mountsafe.medium import formats
from mountsafe.medium.options import checked_options, checked_sectors, checked_type
from mountsafe.medium.part import Part
from mountsafe.medium.source import Medium, explained, open_medium
from mountsafe.session.messages import Key, KeyForm, Locked
from mountsafe.session.order import MountOptions
from mountsafe.session.record import Missing, Record
from mountsafe.session.start import Starting, Unlock
from mountsafe.system import zones

Hear = Callable[[str], None]


def _unheard(words: str) -> None:
    pass


class _Reading:
    """What runs for one image: a supervisor, and a stream for each file system. Who has none of it any more ends it."""

    closed = True

    def __init__(self, starting: Starting) -> None:
        self._starting = starting
        self._owner = os.getpid()
        self.streams = {name: Stream(sock) for name, sock in starting.take_streams().items()}
        self.closed = False
        self.name = ""
        _open.add(self)

    def close(self) -> None:
        """End it, and return when all its processes are gone; in a process that was forked, let go of what it has."""
        if self.closed:
            return
        self.closed = True
        _open.discard(self)
        for stream in self.streams.values():
            stream.close()
        if os.getpid() == self._owner:
            self._starting.end()
        else:
            self._starting.let_go()

    def forked(self) -> None:
        """Let go of what this process, a new one, has of its parent's: else the parent's death would go unnoticed."""
        with suppress(OSError):
            self.close()

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"unclosed image {self.name}", ResourceWarning, source=self, stacklevel=2)
            self.close()


_open: "weakref.WeakSet[_Reading]" = weakref.WeakSet()


def _close_all() -> None:
    for each in list(_open):
        each.close()


def _after_fork() -> None:
    for each in list(_open):
        each.forked()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)


class Image:
    """An image or a device that is open. A context manager; `close` ends what runs for it, as does the program's end.

    `filesystems` are those that were asked for; `missing` says which could not be had, and why.
    """

    def __init__(self, source: Path, reading: _Reading, record: Record) -> None:
        self.source = source
        self._reading = reading
        self._record = record
        reading.name = os.fspath(source)
        self.missing: tuple[Missing, ...] = record.missing
        mounts = [mount for mount in record.mounts if mount.name in reading.streams]
        self.filesystems: tuple[FileSystem, ...] = tuple(
            FileSystem(reading, reading.streams[mount.name], mount, number) for number, mount in enumerate(mounts, 1)
        )

    def __repr__(self) -> str:
        return f"<mountsafe.Image {os.fspath(self.source)!r}: {len(self.filesystems)} file systems>"

    def __enter__(self) -> "Image":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[FileSystem]:
        return iter(self.filesystems)

    @property
    def filesystem(self) -> FileSystem:
        """The only file system. Raises UserError (USAGE) if there are several."""
        if len(self.filesystems) == 1:
            return self.filesystems[0]
        names = ", ".join(each.name for each in self.filesystems)
        raise UserError(f"there are several file systems: {names}", "Choose a partition.", ExitCode.USAGE)

    def __getitem__(self, name: str | int) -> FileSystem:
        """Return the file system of a name, as `mountsafe inspect` shows it. Raises KeyError."""
        for each in self.filesystems:
            if each.name == str(name):
                return each
        raise KeyError(name)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._reading.closed

    def close(self) -> None:
        """End the virtual machine and all processes that read for it; return when they are gone."""
        self._reading.close()


@dataclass(frozen=True, slots=True)
class Person:
    """Who opens it: hears how far it is (`progress`), what is worse than it might be (`warn`), and may have keys."""

    progress: Hear = _unheard
    warn: Hear = _unheard
    unlock: Unlock | None = None


def opened_image(medium: Medium, options: MountOptions, person: Person) -> Image:
    """Open a medium's file systems, as far as the policy lets them be shown. The descriptor is closed. Blocks.

    Interrupted, it leaves nothing. Raises UserError.
    """
    try:
        prepare(medium, person.progress)
        starting = Starting(options.verbose)
        starting.order(medium, None, options)
        try:
            record = starting.follow(person.progress, person.warn, judge_of(medium, person.warn), person.unlock)
        except UserError as error:
            starting.abandon()
            raise explained(medium, error) from error
        except BaseException:
            starting.abandon()
            raise
        return Image(medium.path, _Reading(starting), record)
    finally:
        os.close(medium.fd)


def stream_options(
    partition: str | None, fstype: str | None, timezone: str, mount_options: Sequence[str], verbose: bool = False
) -> MountOptions:
    """Return what is ordered of an image that is to be read. Raises UserError (USAGE)."""
    fstype = checked_type(fstype, partition)
    zones.rules_of(timezone)  # or an error, before anything is done
    return MountOptions(
        partition=partition,
        fstype=fstype,
        owner="image",
        verbose=verbose,
        foreground=True,
        idle=IDLE,
        entries=INDEX_ENTRIES,
        judged=True,
        timezone=timezone,
        mount_options=checked_options(mount_options, fstype),
        unlock=True,
        stream=True,
    )


def open(  # noqa: PLR0913  # named as io.open is, with a parameter for each option of `mountsafe mount`
    source: str | os.PathLike[str],
    *,
    partition: int | str | None = None,
    type: str | None = None,  # as the command line's --type
    format: str | None = None,  # and its --format
    sector_size: int | None = None,
    offset: int = 0,
    sizelimit: int | None = None,
    mount_options: Sequence[str] = (),
    timezone: str = "",
    passphrase: str | bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    progress: Hear = _unheard,
    warn: Hear = _unheard,
) -> Image:
    """Open an image file or a block device to read its file systems. Blocks for a second or two.

    Every option means what it means to `mountsafe mount`. What is encrypted is unlocked with `passphrase` or `key_file`
    (of BitLocker a .BEK file), and is otherwise missing. What the policy refuses is missing too.

    Raises UserError: `code` is an `errors.ExitCode`, `hint` says what to do. Each call has a virtual machine of its
    own; one process may have several. After a fork the child cannot use what its parent opened, and opens its own.
    """
    wanted = None if format in (None, "auto") else formats.Format(format)
    options = stream_options(None if partition is None else str(partition), type, timezone, mount_options)
    unlock = partial(_unlock, passphrase, None if key_file is None else Path(key_file))
    medium = open_medium(Path(source), wanted, checked_sectors(sector_size), Part.checked(offset, sizelimit))
    return opened_image(medium, options, Person(progress, warn, unlock))


def _unlock(passphrase: str | bytes | None, key_file: Path | None, locked: Locked) -> tuple[Key, list[int]] | None:
    """Return the key that was given, once."""
    if locked.why:
        return None
    if passphrase is not None:
        secret = passphrase.encode(errors="surrogateescape") if isinstance(passphrase, str) else passphrase
        return Key(KeyForm.PASSPHRASE), [secrecy.sealed(secret)]
    if key_file is not None:
        form = KeyForm.BEK_FILE if locked.kind == "BitLocker" else KeyForm.KEY_FILE
        return Key(form), [secrecy.sealed(key_file.read_bytes())]
    return None
