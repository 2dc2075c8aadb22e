"""The claim on a block device: while it is held, nobody can mount the device or a part of it, not even root."""

import fcntl
import logging
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.flag import is_read_only, set_read_only
from mountsafe.medium.source import Medium, check_device, device_size
from mountsafe.medium.swapped import number_of

log = logging.getLogger(__name__)
BLKGETDISKSEQ = 0x80081280  # include/uapi/linux/fs.h
CDROMEJECT, CDROM_LOCKDOOR = 0x5309, 0x5329  # include/uapi/linux/cdrom.h; SCSI disks know the first one too


class Swapped(UserError):
    """The node leads to another device than udev spoke of, or to another medium in it."""

    def __init__(self, node: str) -> None:
        super().__init__(f"{node} is another medium by now", "It is looked at anew.", ExitCode.SOURCE)


class Claim:
    """An exclusive hold on a device, which reads. Raises OSError (EBUSY if it is in use), Swapped.

    That the device itself is made read-only outlives us if we are killed, so a note in the folder `notes` says that it
    was we who did it: see `take_back`. Where no note can be written (a full /run) the hold matters more than what would
    be left of it.
    """

    def __init__(self, node: str, number: tuple[int, int], sequence: int, notes: Path) -> None:
        self._note = notes / f"{number[0]}:{number[1]}"
        self._made_read_only = False
        self.fd = os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            status = os.fstat(self.fd)
            opened = (os.major(status.st_rdev), os.minor(status.st_rdev))
            if not stat.S_ISBLK(status.st_mode) or opened != number or sequence != _sequence(self.fd, sequence):
                raise Swapped(node)
            if self._note.exists() or not is_read_only(self.fd):
                self._make_read_only()
            size, of_medium = device_size(self.fd), sequence or number_of(status)
            self.medium = Medium(Path(node), self.fd, size, block_device=True, sequence=of_medium)
        except BaseException:
            self.release()
            raise

    def open_for_writing(self) -> int | None:
        """Return a descriptor that is open for writing as well; None if the device may not be written to.

        It may not if it was write-protected before we came, or if who is held by nothing but its mode could open it
        anew. Until somebody writes the device stays read-only: who writes lifts that (`medium.flag`).
        """
        if not self._made_read_only:
            log.info("%s is write-protected", self.medium.path)
            return None
        try:
            check_device(self.fd, os.fstat(self.fd).st_mode, self.medium.name, writable=True)
            set_read_only(self.fd, True)  # whoever wrote before may have been killed
            return os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, UserError) as error:
            log.warning("%s is only read: %s", self.medium.path, error)
            return None

    def eject(self) -> None:
        """Open the tray, or let the drive stop: whatever it can. Nobody else may have it open."""
        for request in (CDROM_LOCKDOOR, CDROMEJECT):
            with suppress(OSError):
                fcntl.ioctl(self.fd, request, 0)

    def _make_read_only(self) -> None:
        try:
            self._note.touch()
        except OSError as error:
            log.warning("if we are killed, %s stays read-only: %s", self._note.name, error)
        self._made_read_only = True
        set_read_only(self.fd, True)

    def release(self) -> None:
        """Let go, and let the device be as writable as it was."""
        try:
            if self._made_read_only:
                with suppress(OSError):  # it may have been pulled out
                    set_read_only(self.fd, False)
                self._note.unlink(missing_ok=True)
        finally:
            os.close(self.fd)


def take_back(notes: Path) -> None:
    """Make writable again what a process that was killed has left read-only; make the folder if need be.

    What cannot be done is logged: it is no reason to leave media to others.
    """
    try:
        notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = sorted(notes.iterdir())
    except OSError as error:
        log.warning("what was left read-only is not known: %s", error)
        return
    for note in found:
        try:
            with suppress(OSError):
                fd = os.open(f"/dev/block/{note.name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                try:
                    set_read_only(fd, False)
                finally:
                    os.close(fd)
            note.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a note of a device that was read-only stays: %s", error)


def _get(fd: int, request: int, form: str) -> int:
    return int(struct.unpack(form, fcntl.ioctl(fd, request, bytes(struct.calcsize(form))))[0])


def _sequence(fd: int, expected: int) -> int:
    """Return the number of the medium, or what is expected where neither udev nor the kernel know it (before 5.15)."""
    try:
        return _get(fd, BLKGETDISKSEQ, "Q") if expected else expected
    except OSError:
        return expected
