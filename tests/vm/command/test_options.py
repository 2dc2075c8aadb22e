"""What a user says of a medium beside its name: its part and mount options, in the next virtual machine too."""

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


def test_mount_options_count_in_the_next_virtual_machine_too(user: Person, folder: Path, image: Image) -> None:
    source, target = image("iso9660"), folder / "m"
    told = user.run("inspect", source, "--json").ok().json()["volumes"][0]
    assert "map" in told["mount_options"]
    with mounted(user, source, target, "-o", "norock,nojoliet", "--mount-option", "map=off") as record:
        assert record["mounts"][0]["options"] == ["norock", "nojoliet", "map=off"]
        assert user.records_of(source)["mounts"][0]["options"] == ["norock", "nojoliet", "map=off"]
        assert user.run(target / "README.TXT;1", program=["cat"]).ok().out
        kill(machine(user, source)["qemu"])
        user.python(ASK, target / "README.TXT;1").ok()
        assert user.run(target / "README.TXT;1", program=["cat"]).ok().out


def test_mount_options_that_cannot_be(user: Person, folder: Path, image: Image) -> None:
    source = image("iso9660")
    wrong = {
        "no type takes a mount option rw": ("-o", "rw"),
        "iso9660 takes no mount option subvol": ("-o", "subvol=x"),
        "vfat takes no mount option map": ("-o", "map=off", "--type", "vfat"),
        "map is one of off, normal, acorn": ("-o", "map=none"),
        "given twice": ("-o", "norock", "-o", "norock"),
    }
    for words, options in wrong.items():
        done = refused(user, ExitCode.USAGE, words, "mount", source, folder / "m", *options)
    assert done.json()["error"]["hint"] == "Give each once."
