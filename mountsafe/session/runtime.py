"""What runs at the moment, on disk: a folder for each medium that this user has mounted.

The supervisor of a medium holds a lock on its record as long as it lives, so a record without a lock is a leftover of
one that was killed, and whoever finds it cleans up.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mountsafe.errors import ExitCode, UserError

RECORD = "mount.json"
CONTROL = "control"
LOG = "log"


def base() -> Path:
    """Return the folder of this user's records, made if need be and checked to be his alone."""
    uid = os.geteuid()
    if uid == 0:
        path = Path("/run/mountsafe/mounts")
        path.parent.mkdir(mode=0o755, exist_ok=True)
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        path = Path(runtime) / "mountsafe" if runtime and os.access(runtime, os.W_OK) else Path(f"/tmp/mountsafe-{uid}")
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
        raise UserError(f"{path} is not a folder of yours alone", "Remove it, then try again.", ExitCode.FAILURE)
    return path


class Runtime:
    """The folder of one medium: its record, its control socket, its log."""

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls) -> "Runtime":
        """Make a folder and take its lock."""
        path = base() / secrets.token_hex(6)
        try:
            path.mkdir(mode=0o700)
            lock = os.open(path / f".{RECORD}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Seen only from here on: a record that is not locked is a leftover to whoever looks.
            os.rename(path / f".{RECORD}", path / RECORD)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise _no_record(path, error) from error
        return cls(path, lock)

    def write(self, record: dict[str, Any]) -> None:
        """Store the record; readers see the old or the new one. Raises UserError."""
        assert self._lock is not None
        data = json.dumps(record).encode()
        try:
            if os.pwrite(self._lock, data, 0) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(self._lock, len(data))
        except OSError as error:
            raise _no_record(self.path, error) from error

    def read(self) -> dict[str, Any]:
        """Return the record; empty while the mount is being made."""
        try:
            record = json.loads((self.path / RECORD).read_bytes())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def alive(self) -> bool:
        """Whether its supervisor lives."""
        try:
            fd = os.open(self.path / RECORD, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _no_record(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot keep a record in {path.parent}: {error.strerror}", "Make room there, and make it yours.")


def runtimes() -> Iterator[Runtime]:
    """Yield every medium's folder, leftovers too."""
    for path in sorted(base().iterdir()):
        if (path / RECORD).exists():
            yield Runtime(path)
