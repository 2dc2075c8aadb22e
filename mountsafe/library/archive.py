"""An image's files as a tar archive: POSIX's pax format (POSIX.1-2001), which takes any name, size and time."""

import io
import os
import stat
import tarfile
from typing import IO

from mountsafe.library.files import ImageFile
from mountsafe.library.whole import Failed, Found, Whole

RIGHTS = 0o777  # of modes: an archive that root unpacks makes no set-user-ID programs
TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
NANO = 1_000_000_000


class Archive:
    """Writes to a stream that need not be seekable. What cannot be read goes to `failed`; what is half told has zeros
    instead.
    """

    def __init__(self, whole: Whole, out: IO[bytes], failed: Failed) -> None:
        self._whole = whole
        self._failed = failed
        self._tar = tarfile.open(  # noqa: SIM115  # closed by `close`
            fileobj=_Once(out), mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
        self._made: dict[tuple[int, int], str] = {}  # names of files that have more than one

    def add(self, top: Found) -> None:
        """Add something and all below it, by their paths. Devices are left out: their numbers are not known."""
        for found in self._whole.below(top, self._failed):
            self._add(found)

    def _add(self, found: Found) -> None:
        kind = TYPES.get(stat.S_IFMT(found.status.st_mode))
        name = os.fsdecode(found.path).strip("/")
        if kind is None or not name:
            return
        info = tarfile.TarInfo(name)
        info.type = kind
        info.mode = stat.S_IMODE(found.status.st_mode) & RIGHTS
        info.uid, info.gid = found.status.st_uid, found.status.st_gid
        info.pax_headers = {"mtime": _seconds(found.status.st_mtime_ns)}
        if found.is_link:
            info.linkname = os.fsdecode(found.target)
        if not found.is_file:
            self._tar.addfile(info)
            return
        if found.status.st_nlink > 1 and found.identity in self._made:
            info.type, info.linkname = tarfile.LNKTYPE, self._made[found.identity]
            self._tar.addfile(info)
            return
        try:
            file = self._whole.open(found.path)
        except OSError as error:
            self._failed(found.path, error)
            return
        info.size = file.size
        with file:
            self._tar.addfile(info, io.BufferedReader(_Padded(file, found.path, self._failed), 1 << 20))
        self._made.setdefault(found.identity, name)

    def close(self) -> None:
        """Write the archive's end."""
        self._tar.close()


class _Once(io.RawIOBase):
    """A stream that is written to no more once it could not be: tarfile writes an archive's end even then."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__()
        self._out: IO[bytes] | None = out

    def writable(self) -> bool:
        """It is written to alone."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # tarfile gives no other
        """Write all of it. Raises OSError, once."""
        out, self._out = self._out, None
        if out is not None:
            out.write(data)
            self._out = out
        return len(data)


class _Padded(io.RawIOBase):
    """A file of which all bytes are there: what cannot be read is zeros, and told."""

    def __init__(self, file: ImageFile, path: bytes, failed: Failed) -> None:
        super().__init__()
        self._file = file
        self._path = path
        self._failed = failed
        self._at = 0
        self._broken = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader gives no other
        wanted = min(len(buffer), self._file.size - self._at)
        data: bytes | bytearray = b""
        if not self._broken and wanted:
            try:
                data = self._file.pread(wanted, self._at)
            except OSError as error:
                self._broken = True
                self._failed(self._path, error)
        count = len(data) or wanted
        buffer[:count] = data or bytes(count)
        self._at += count
        return count


def _seconds(time_ns: int) -> str:
    """Return a time as pax has it: seconds, with all its digits."""
    sign, time_ns = ("-", -time_ns) if time_ns < 0 else ("", time_ns)
    whole, part = divmod(time_ns, NANO)
    return f"{sign}{whole}.{part:09}" if part else f"{sign}{whole}"
