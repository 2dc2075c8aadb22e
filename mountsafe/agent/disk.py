"""The disk under a file system that is changed: when it has all, and whether its driver still writes to it."""

import errno
import os
import time

from mountsafe.agent.programs import Refused, run

RELEASE = 10.0  # seconds in which a driver that was told to unmount lets go of the device


class Disk:
    """Of what is mounted at `where`, from the device `device`; "" if there is none to be waited for."""

    def __init__(self, where: str, device: str) -> None:
        self._where = where
        self._path = device
        self._fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC) if device else -1
        self._failure: Refused | OSError | None = None  # the first one

    def close(self) -> None:
        """Let go of the device."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def synchronise(self) -> None:
        """Have all on the disk. An error is raised by this and every later call: what is lost does not come back."""
        try:
            # syncfs(2), which Python has not, says what could not be written; sync(2) says nothing.
            code, words = run("sync", "-f", self._where)
            if code:
                raise Refused(errno.ENOSPC if "No space" in words else errno.EIO, words)
            self.flush()
        except (OSError, Refused) as error:
            self._failure = self._failure or error
        self.require_whole()

    def require_whole(self) -> None:
        """Raise the error of an earlier `synchronise`."""
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Have the kernel write what it keeps for the device itself, and the device what it keeps."""
        if self._fd >= 0:
            os.fsync(self._fd)

    def require_sound(self) -> None:
        """Raise Refused if the driver has found errors, and writes no more."""
        if os.statvfs(self._where).f_flag & os.ST_RDONLY:
            raise Refused(errno.EROFS, "the file system has errors: its driver has made it read-only")

    def unmount(self) -> None:
        """Unmount, and wait until the driver, which may be a program, has written all. Raises OSError, Refused."""
        code, words = run("umount", "-n", self._where)
        if code:
            raise Refused(errno.EBUSY, f"it cannot be unmounted: {words}")
        if not self._path:
            return
        fd = _released(self._path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _released(device: str) -> int:
    """Return a device's descriptor when no driver has it any more. Raises OSError."""
    until = time.monotonic() + RELEASE
    while True:
        try:
            return os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(0.005)
