"""What rpm has installed, read from its database: SQLite, one header a package, as rpm 4.16 and later have it.

A header is two numbers (entries, bytes of data), an index of four numbers an entry (tag, type, offset, count), all of
32 bits and big-endian, and the data (rpm's docs/manual/format_header.md).
"""

import sqlite3
import struct
from contextlib import closing

from mountsafe.appliance import installed
from mountsafe.appliance.installed import Package
from mountsafe.errors import ExitCode, UserError

# include/rpm/rpmtag.h
NAME, VERSION, RELEASE, EPOCH, PROVIDES, REQUIRES = 1000, 1001, 1002, 1003, 1047, 1049
FOLDER_NUMBERS, BASE_NAMES, FOLDERS = 1116, 1117, 1118
WANTED = {NAME, VERSION, RELEASE, EPOCH, PROVIDES, REQUIRES, FOLDER_NUMBERS, BASE_NAMES, FOLDERS}
INT32, STRING, STRINGS, TRANSLATED = 4, 6, 8, 9

Header = dict[int, list[str] | list[int]]


class Database(installed.Database):
    """The table Packages. `path` is its file."""

    def _read(self) -> dict[str, Package]:
        headers = self._headers()
        # What is needed may be a file of somebody's.
        needed = {each for header in headers for each in _texts(header, REQUIRES) if each.startswith("/")}
        found: dict[str, Package] = {}
        for header in headers:
            name = _texts(header, NAME)[0]
            provides = {*_texts(header, PROVIDES), *needed.intersection(_paths(header))} - {name}
            version = "-".join(_texts(header, VERSION) + _texts(header, RELEASE))
            if epoch := header.get(EPOCH):
                version = f"{epoch[0]}:{version}"
            found[name] = Package(name, version, frozenset(_texts(header, REQUIRES)), frozenset(provides))
        return found

    def files(self, name: str) -> list[str]:
        """Return the paths that a package brought."""
        return [path for header in self._headers() if _texts(header, NAME) == [name] for path in _paths(header)]

    def _headers(self) -> list[Header]:
        try:
            # It is only read, by users who may not write beside it: no lock, no journal.
            with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
                return [parse(blob) for (blob,) in database.execute("SELECT blob FROM Packages ORDER BY hnum")]
        except (sqlite3.Error, ValueError, struct.error) as error:
            raise UserError(f"rpm's database: {error}", "sudo rpm --rebuilddb", ExitCode.DEPENDENCY) from error


def parse(blob: bytes) -> Header:
    """Return what is asked for here of a header, by tag. Raises ValueError or struct.error for what is none."""
    entries, size = struct.unpack_from(">II", blob)
    start = 8 + 16 * entries
    if start + size > len(blob):
        raise ValueError("a header ends before its data")
    data = blob[start : start + size]
    header: Header = {}
    for tag, kind, offset, count in struct.iter_unpack(">IIII", blob[8:start]):
        if tag not in WANTED:
            continue
        if kind == INT32:
            header[tag] = list(struct.unpack_from(f">{count}I", data, offset))
        elif kind in (STRING, STRINGS, TRANSLATED):
            header[tag] = [text.decode("utf-8", "replace") for text in data[offset:].split(b"\0", count)[:count]]
    return header


def _texts(header: Header, tag: int) -> list[str]:
    return [str(each) for each in header.get(tag, [])]


def _paths(header: Header) -> list[str]:
    folders = _texts(header, FOLDERS)
    numbers = [int(each) for each in header.get(FOLDER_NUMBERS, [])]
    return [folders[number] + name for number, name in zip(numbers, _texts(header, BASE_NAMES), strict=True)]
