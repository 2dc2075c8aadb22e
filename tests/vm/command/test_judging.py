"""`mount` goes by the policy of this machine: what is refused is not shown, in whatever way it is asked for."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode
from tests.vm.command.stage import Person, Stage
from tests.vm.command.test_mount import check_tree

Image = Callable[[str], Path]
NO_FAT = '[[rule]]\nname = "no FAT"\nverdict = "{}"\nfstype = "vfat"\nreason = "not here"\n'
MIB, SECTOR = 1 << 20, 512
LINUX, FAT32 = 0x83, 0x0C


@pytest.fixture(scope="module")
def judging(stage: Stage) -> tuple[str, Path]:
    """Return a copy of the command whose rules are in a folder of the stage's, and the policy there."""
    policy = stage.root / "etc/policy.toml"
    policy.parent.mkdir()
    place = {'Path("/etc/mountsafe")': f'Path("{policy.parent}")'}
    return str(stage.variant("judging", {"policy/files.py": place})), policy


@pytest.fixture
def two(image: Image, folder: Path) -> Path:
    """A disk with a FAT and an ext2 in partitions."""
    entries, parts, start = b"", b"", MIB
    for name, kind in (("vfat", FAT32), ("ext2", LINUX)):
        data = image(name).read_bytes()
        data += bytes(-len(data) % MIB)
        entries += struct.pack("<B3xB3xII", 0, kind, start // SECTOR, len(data) // SECTOR)
        parts += data
        start += len(data)
    disk = folder / "two.img"
    disk.write_bytes(bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa" + bytes(MIB - SECTOR) + parts)
    return disk


def test_what_the_policy_refuses_is_not_shown_by_hand(
    judging: tuple[str, Path], person: Person, folder: Path, image: Image, two: Path
) -> None:
    command, policy = judging
    policy.write_text(NO_FAT.format("refuse"))
    refused(person, command, image("vfat"), folder / "m")
    part = person.run("mount", two, folder / "m", "--json", program=[command])
    assert part.code == ExitCode.PARTIAL
    assert [each["fstype"] for each in part.json()["mounts"]] == ["ext2"]
    assert "the policy refuses it: not here" in part.json()["missing"][0]["message"]
    check_tree(person, folder / "m", images.expected("ext2"))
    person.run("unmount", two).ok()


def test_no_way_to_name_it_hides_what_is_refused(
    judging: tuple[str, Path], user: Person, folder: Path, image: Image, two: Path
) -> None:
    command, policy = judging
    policy.write_text(NO_FAT.format("refuse"))
    refused(user, command, image("vfat"), folder / "m", "--type", "msdos")
    refused(user, command, two, folder / "m", "--partition", "1")
    refused(user, command, two, folder / "m", "--offset", str(MIB), "--sizelimit", str(image("vfat").stat().st_size))


def refused(person: Person, command: str, source: Path, target: Path, *how: str) -> None:
    done = person.run("mount", source, target, *how, "--json", program=[command])
    assert done.code == ExitCode.SOURCE
    assert done.json()["error"]["message"] == f'the policy refuses {source.name}: not here (rule "no FAT")'
    assert not target.exists()


def test_who_names_a_medium_has_answered_what_the_policy_asks(
    judging: tuple[str, Path], user: Person, folder: Path, image: Image
) -> None:
    command, policy = judging
    policy.write_text(NO_FAT.format("ask"))
    done = user.run("mount", image("vfat"), folder / "m", program=[command]).ok()
    assert "the policy asks before it opens vfat.img: not here" in done.err
    check_tree(user, folder / "m", images.expected("vfat"))
    user.run("unmount", folder / "m").ok()


def test_a_policy_that_cannot_be_read_shows_nothing(
    judging: tuple[str, Path], user: Person, folder: Path, image: Image
) -> None:
    command, policy = judging
    policy.write_text("[[rule")
    done = user.run("mount", image("ext2"), folder / "m", program=[command])
    assert (done.code, (folder / "m").exists()) == (ExitCode.SOURCE, False)
    assert str(policy) in done.err
