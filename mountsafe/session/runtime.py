"""What runs at the moment, on disk: a folder for each medium that this user has mounted.

The supervisor of a medium holds a lock in its folder as long as it lives, so a folder without one is a leftover of one
that was killed, and whoever finds it cleans up. The record is replaced as a whole, so readers see the old or the new
one; the lock is a file of its own, which never is.
"""

import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mountsafe import channel
from mountsafe.codec import OtherVersion
from mountsafe.errors import ExitCode, ProtocolFault, UserError
from mountsafe.limits import CONTROL_WHOLE
from mountsafe.session.record import Record
from mountsafe.text import shown_path

RECORD = "record.json"
LOCK = "lock"
CONTROL = "control"
LOG = "log"
# Versions that locked the record itself called it so, the second at first. One that still runs does not know of LOCK,
# and would take a record of that name for a leftover.
OLD_RECORD, _OLD_START = "mount.json", ".mount.json"
_ID_BYTES = 6
_LEFTOVER = re.compile(f"[0-9a-f]{{{2 * _ID_BYTES}}}")
_SWEEP = 1.0  # seconds to wait for somebody else who looks for leftovers: they may be stopped
_SOCKET_PATH = 107  # bytes: sun_path of unix(7), and its end


def base() -> Path:
    """Return the folder of this user's records, made if need be and checked to be theirs alone."""
    uid = os.geteuid()
    path = _place(uid)
    try:
        path.parent.mkdir(mode=0o755 if uid == 0 else 0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    except OSError as error:
        hint = (
            "Set XDG_RUNTIME_DIR to a folder that is yours alone." if uid else "Make room there; it must be writable."
        )
        raise UserError(f"cannot make {path}: {error.strerror}", hint, ExitCode.FAILURE) from error
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
        hint = f"Move it away (mv {path} {path}.old), then try again."
        raise UserError(f"{path} is not a folder of yours alone", hint, ExitCode.FAILURE)
    return path


def _place(uid: int) -> Path:
    """Return where the records are: a place in which nobody but this user could have made anything.

    XDG_RUNTIME_DIR and HOME may name another's folders: su and `sudo -E` keep them. So the account's home counts.
    """
    if uid == 0:
        return Path("/run/mountsafe/mounts")
    for runtime in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if os.path.isabs(runtime) and _is_private(Path(runtime), uid):
            return Path(runtime) / "mountsafe"
    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = ""
    if not os.path.isabs(home):
        hint = "Set XDG_RUNTIME_DIR to a folder that is yours alone."
        raise UserError("there is no place for records: you have no home folder", hint, ExitCode.FAILURE)
    return Path(home) / ".local/state/mountsafe"


def _is_private(path: Path, uid: int) -> bool:
    """Whether only this user can make something in a folder."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & 0o022


class RecordFault(UserError):
    """A record that cannot be read: torn, foreign, or of another version (`of_another_version`)."""

    def __init__(self, path: Path, fault: ProtocolFault) -> None:
        shown = shown_path(path)
        self.of_another_version = isinstance(fault, OtherVersion)
        hint = f"What it has mounted is unknown: findmnt -t fuse.mountsafe shows all, and {shown} can then be removed."
        super().__init__(f"the record of a mount in {shown} cannot be read: {fault}", hint)


class Runtime:
    """The folder of one medium: its record, its control socket, its log."""

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls) -> "Runtime":
        """Make a folder and take its lock."""
        place = base()
        path = place / secrets.token_hex(_ID_BYTES)
        made = cls(path)
        try:
            with _held(place, fcntl.LOCK_SH):  # until it is locked, it would be a leftover to whoever looks
                path.mkdir(mode=0o700)
                made._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(made._lock, fcntl.LOCK_EX)
                made._replace(b"")
        except OSError as error:
            made.remove()
            raise _no_record(path, error) from error
        return made

    def write(self, record: Record) -> None:
        """Store the record; readers see the old or the new one. Raises UserError."""
        try:
            self._replace(json.dumps(record.saved()).encode())
        except OSError as error:
            raise _no_record(self.path, error) from error

    def _replace(self, content: bytes) -> None:
        fresh = self.path / f"{RECORD}.new"  # only who holds the lock writes
        try:
            fresh.write_bytes(content)
            fresh.rename(self.path / RECORD)
        except BaseException:
            with suppress(OSError):
                fresh.unlink()
            raise

    def read(self) -> Record | None:
        """Return the record; None while the mount is being made, or when it is gone. Raises RecordFault."""
        try:
            with self._record().open("rb") as file:
                content = file.read(CONTROL_WHOLE + 1)
        except OSError:
            return None
        if not content:
            return None
        try:
            if len(content) > CONTROL_WHOLE:
                raise ProtocolFault("it is too long")
            return Record.restored(channel.decode(content))
        except ProtocolFault as fault:
            raise RecordFault(self.path, fault) from fault

    def _record(self) -> Path:
        old = self.path / OLD_RECORD
        return old if old.exists() else self.path / RECORD

    def alive(self) -> bool:
        """Whether its supervisor lives. One of an older version, which an upgrade outlived, locks its record."""
        old = self.path / OLD_RECORD
        return _locked(old if old.exists() else self.path / LOCK)

    @contextmanager
    def control(self) -> Iterator[str]:
        """Give an address of its control socket that is short enough for one."""
        path = os.fspath(self.path / CONTROL)
        if len(os.fsencode(path)) <= _SOCKET_PATH:
            yield path
            return
        folder = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{CONTROL}"
        finally:
            os.close(folder)

    def remove(self) -> None:
        """Remove the folder, the record first: a folder without one is nobody's mount."""
        with suppress(OSError):
            self._record().unlink()
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _take(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _no_record(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot keep a record in {path.parent}: {error.strerror}", "Make room there, and make it yours.")


@contextmanager
def _held(place: Path, how: int) -> Iterator[bool]:
    """Hold a lock of the folder of all records, and say whether it was to be had: shared to make one, else to sweep."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    end = time.monotonic() + (_SWEEP if how == fcntl.LOCK_SH else 0.0)
    try:
        while not (had := _take(fd, how)) and time.monotonic() < end:
            time.sleep(0.01)
        yield had
    finally:
        os.close(fd)


def _take(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(place: Path) -> None:
    """Remove what a supervisor left that was killed before it had written a record."""
    with _held(place, fcntl.LOCK_EX) as alone:
        for path in place.iterdir() if alone else ():
            known = any((path / name).exists() for name in (RECORD, OLD_RECORD, _OLD_START))
            if _LEFTOVER.fullmatch(path.name) and not known and not Runtime(path).alive():
                shutil.rmtree(path, ignore_errors=True)


def runtimes() -> Iterator[Runtime]:
    """Yield every medium's folder, leftovers too, but for those that nothing was mounted for yet."""
    place = base()
    _sweep(place)
    for path in sorted(place.iterdir()):
        if (path / RECORD).exists() or (path / OLD_RECORD).exists():
            yield Runtime(path)
