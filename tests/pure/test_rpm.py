"""The reader of rpm's database, on one that is written here as rpm writes it, and what a distribution calls things."""

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from mountsafe import __version__, distribution
from mountsafe.appliance import dpkg, inputs, rpm
from mountsafe.errors import UserError

Value = str | list[str] | int | list[int]


def header(**fields: Value) -> bytes:
    """A package's header: fields by the names of rpm's tags."""
    index, data = b"", b""
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], int):
            kind, packed = rpm.INT32, struct.pack(f">{len(values)}I", *values)
            data += bytes(-len(data) % 4)
        else:
            kind = rpm.STRINGS if isinstance(value, list) else rpm.STRING
            packed = b"".join(str(each).encode() + b"\0" for each in values)
        index += struct.pack(">IIII", getattr(rpm, name), kind, len(data), len(values))
        data += packed
    index += struct.pack(">IIII", 1004, rpm.TRANSLATED, 0, 1)  # a summary, which nobody asks for
    return struct.pack(">II", len(index) // 16, len(data)) + index + data


BASH = header(
    NAME="bash", VERSION="5.2", RELEASE="1.fc43", EPOCH=1,
    PROVIDES=["bash", "config(bash)"], REQUIRES=["libc.so.6", "filesystem"],
    FOLDER_NUMBERS=[0, 1], BASE_NAMES=["bash", "README"], FOLDERS=["/usr/bin/", "/usr/share/doc/bash/"],
)  # fmt: skip
GLIBC = header(NAME="glibc", VERSION="2.42", RELEASE="4", PROVIDES=["glibc", "libc.so.6"])
LVM = header(NAME="lvm2", VERSION="2.03", RELEASE="1", REQUIRES=["/usr/bin/bash"])


def written(path: Path, *blobs: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
        database.executemany("INSERT INTO Packages (blob) VALUES (?)", [(blob,) for blob in blobs])
    return path


def test_packages_are_read_with_what_they_need(tmp_path: Path) -> None:
    database = rpm.Database(written(tmp_path / "rpmdb.sqlite", BASH, GLIBC, LVM))
    assert database.version("bash") == "bash 1:5.2-1.fc43"
    assert database.version("nothing") == "nothing -"
    assert [package.name for package in database.closure(["lvm2"])] == ["bash", "glibc", "lvm2"]
    assert database.files("bash") == ["/usr/bin/bash", "/usr/share/doc/bash/README"]
    assert database.stamp()


@pytest.mark.parametrize("blob", [b"", BASH[:40], struct.pack(">II", 1 << 31, 1 << 31), b"\xff" * 64])
def test_what_is_no_header_is_an_error_for_the_user(tmp_path: Path, blob: bytes) -> None:
    with pytest.raises(UserError, match="rpm's database"):
        _ = rpm.Database(written(tmp_path / "rpmdb.sqlite", blob)).packages


def test_what_is_no_database_is_an_error_for_the_user(tmp_path: Path) -> None:
    path = tmp_path / "rpmdb.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="rpm's database"):
        _ = rpm.Database(path).packages


@pytest.mark.parametrize("place", distribution.RPM)
def test_one_place_knows_whose_database_it_is_and_how_to_install(tmp_path: Path, place: Path) -> None:
    assert isinstance(inputs.database(tmp_path), dpkg.Database)
    with pytest.raises(UserError, match="neither dpkg nor rpm"):
        _ = inputs.database(tmp_path).packages
    written(tmp_path / place, GLIBC)
    assert set(inputs.database(tmp_path).packages) == {"glibc"}
    command = distribution.install("python3-guestfs", "lvm2", root=tmp_path)
    assert command == "sudo dnf install python3-libguestfs lvm2"
    (tmp_path / distribution.DPKG).parent.mkdir(parents=True)
    (tmp_path / distribution.DPKG).touch()  # a Debian on which somebody builds for others
    assert isinstance(inputs.database(tmp_path), dpkg.Database)
    assert distribution.install("python3-guestfs", root=tmp_path) == "sudo apt install python3-guestfs"


def test_how_packages_are_installed_is_said_in_one_place(repository: Path) -> None:
    sources = [*(repository / "mountsafe").rglob("*.py")]
    assert [path.name for path in sources if "apt install" in path.read_text(encoding="utf-8")] == []


def test_the_spec_is_of_this_version_and_knows_what_fedora_calls_things(repository: Path) -> None:
    spec = (repository / "packaging/mountsafe.spec").read_text(encoding="utf-8")
    assert f"\nVersion:        {__version__}\n" in spec
    words = {
        word for line in spec.splitlines() if line.startswith(("Requires:", "Recommends:")) for word in line.split()
    }
    assert not words.intersection(distribution.FEDORA), "Debian's names"
    control = (repository / "debian/control").read_text(encoding="utf-8").partition("\nDepends:")[2]
    needed = [line.strip(" ,") for line in control.partition("\nRecommends:")[0].splitlines() if "$" not in line]
    missing = {distribution.FEDORA.get(name, name) for name in needed if name} - words - {"util-linux-core"}
    assert missing == set()
