"""What a user says of a medium beside its name: which part of it counts. It counts in the next virtual machine too."""

import os
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode
from tests.vm.command.stage import Person
from tests.vm.command.test_errors import refused
from tests.vm.command.test_faults import ASK, kill, machine, questions
from tests.vm.command.test_mount import Image, check_tree, mounted

BEFORE = 12_345  # bytes: no multiple of anything


@pytest.fixture
def dump(folder: Path, image: Image) -> Path:
    """A file system with something before it and something behind it."""
    path = folder / "dump.bin"
    path.write_bytes(b"\xa5" * BEFORE + image("ext4").read_bytes() + b"\xa5" * 1_000_001)
    os.chown(path, folder.stat().st_uid, -1)
    return path


def test_a_part_of_a_file(person: Person, folder: Path, dump: Path, image: Image) -> None:
    size = image("ext4").stat().st_size
    part = ("--offset", str(BEFORE), "--sizelimit", f"{size // 512}s")
    told = person.run("inspect", dump, "--json", *part).ok().json()
    assert (told["offset"], told["size"], told["volumes"][0]["label"]) == (BEFORE, size, "EXT4")
    with mounted(person, dump, folder / "m", *part) as record:
        assert (record["offset"], record["sizelimit"]) == (BEFORE, size)
        check_tree(person, folder / "m", images.expected("ext4"))
        before = machine(person, dump)
        kill(before["qemu"])
        person.python(ASK, questions(folder / "m")[0]).ok()
        assert machine(person, dump)["qemu"] != before["qemu"]
        check_tree(person, folder / "m", images.expected("ext4"))


def test_parts_that_are_not_there(user: Person, folder: Path, dump: Path) -> None:
    wrong = {
        "is no number of bytes": ("--offset", "1.5M"),
        "is negative": ("--offset", "-1"),
        "is beyond the end: dump.bin has": ("--offset", "1T"),
        "is within the last sector": ("--offset", str(dump.stat().st_size - 1)),
        "reaches beyond the end": ("--offset", "1MiB", "--sizelimit", "1TiB"),
        "is no multiple of 512": ("--sizelimit", "1000"),
    }
    for words, options in wrong.items():
        refused(user, ExitCode.USAGE, words, "mount", dump, folder / "m", *options)
    refused(user, ExitCode.USAGE, "is beyond the end", "inspect", dump, "--offset", "1T")
