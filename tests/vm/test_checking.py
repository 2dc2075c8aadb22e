"""Checking in a real virtual machine: every type's checker is there, finds what is wrong, and changes nothing."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mountsafe.appliance import build
from mountsafe.checkers import CHECKERS
from mountsafe.errors import ExitCode, UserError
from mountsafe.jobs.checking import Wish, checked
from mountsafe.jobs.checks import Outcome, Result
from mountsafe.medium.exclusive import open_for_writing
from mountsafe.medium.source import open_medium
from mountsafe.session.machines import Listener
from tests.conftest import missing
from tests.damage import DAMAGES, damaged, ntfs_dirty

Image = Callable[[str], Path]
UNCHECKED = ("nilfs2", "squashfs", "udf", "iso9660", "romfs")


@pytest.fixture(scope="module", autouse=True)
def appliance() -> None:
    try:
        build.ensure(lambda _: None)
    except UserError as error:
        missing(error.message)


def results(image: Path, wish: Wish | None = None) -> list[Result]:
    """Check an image, and see that it is as it was."""
    before = hashlib.sha256(image.read_bytes()).digest()
    found = checked(open_medium(image), wish or Wish(seconds=120), Listener())
    assert hashlib.sha256(image.read_bytes()).digest() == before
    assert found.missing == []
    return found.results


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_clean(name: str, image: Image) -> None:
    (result,) = results(image(name))
    assert (result.outcome, result.code, result.why) == (Outcome.CLEAN, 0, "")
    assert result.checker == CHECKERS[name].program
    assert bool(result.note) == bool(CHECKERS[name].partial)


@pytest.mark.parametrize("name", ["hfs", "hfsplus"])
def test_what_not_every_debian_has_a_checker_for(name: str, image: Image) -> None:
    (result,) = results(image(name))
    assert result.outcome in (Outcome.CLEAN, Outcome.MISSING), result.words
    hint = "hfsprogs is not installed: sudo apt install hfsprogs; then mountsafe appliance build"
    assert result.why == (hint if result.outcome is Outcome.MISSING else "")


@pytest.mark.parametrize("name", DAMAGES)
def test_what_has_errors(name: str, image: Image, tmp_path: Path) -> None:
    (result,) = results(damaged(image(name), tmp_path / "damaged.img", DAMAGES[name]))
    assert (result.outcome, result.why) == (Outcome.ERRORS, "")
    assert result.words


def test_a_volume_that_windows_is_to_check(image: Image, tmp_path: Path) -> None:
    (result,) = results(damaged(image("ntfs"), tmp_path / "dirty.img", ntfs_dirty))
    assert result.outcome is Outcome.ERRORS
    assert any("scheduled for check" in line for line in result.words)


@pytest.mark.parametrize("name", ["dirty-ext4", "dirty-xfs"])
def test_a_journal_is_replayed_first_and_not_on_the_medium(name: str, image: Image) -> None:
    (result,) = results(image(name))
    assert result.outcome is Outcome.CLEAN, result.words
    assert result.note == "the changes in its journal were taken into account"


@pytest.mark.parametrize("name", UNCHECKED)
def test_a_type_without_a_checker(name: str, image: Image) -> None:
    (result,) = results(image(name))
    assert (result.outcome, result.code, result.words, result.checker) == (Outcome.NONE, None, (), "")
    assert result.why == f"there is no program that checks {name}"


@pytest.mark.parametrize("name", ["ext4", "vfat", "exfat", "xfs", "btrfs", "f2fs", "ntfs", "jfs", "minix", "erofs"])
def test_what_is_of_another_type(name: str, image: Image) -> None:
    """Of what is no such file system nobody says that it is clean, or that it has errors."""
    (result,) = results(image("garbage"), Wish(fstype=name, seconds=120))
    assert result.outcome is Outcome.FAILED
    assert result.why.startswith(f"{CHECKERS[name].program} could not look at it: ")


def test_each_file_system_of_a_disk(image: Image) -> None:
    found = results(image("disk-gpt"))
    assert [(each.volume.name, each.volume.fstype) for each in found] == [("1", "vfat"), ("2", "ext4"), ("3", "exfat")]
    assert {each.outcome for each in found} == {Outcome.CLEAN}
    (second,) = results(image("disk-gpt"), Wish(partition="2"))
    assert second.volume.name == "2"
    with pytest.raises(UserError, match="there is no partition 77") as failure:
        checked(open_medium(image("disk-gpt")), Wish(partition="77"), Listener())
    assert failure.value.code == ExitCode.SOURCE


@pytest.mark.parametrize("name", ["ext2", "ext4", "vfat", "exfat", "xfs", "f2fs", "ntfs"])
def test_what_has_errors_is_repaired(name: str, image: Image, tmp_path: Path) -> None:
    path = damaged(image(name), tmp_path / "damaged.img", DAMAGES[name])
    medium = open_medium(path)
    medium = replace(medium, writable_fd=open_for_writing(medium))
    (result,) = checked(medium, Wish(seconds=120, repair=True), Listener(), approve=lambda _: True).results
    assert (result.outcome, result.why) == (Outcome.REPAIRED, ""), result.words
    (result,) = results(path)
    # Windows is to look at what ntfsfix has touched.
    assert result.outcome is (Outcome.ERRORS if name == "ntfs" else Outcome.CLEAN), result.words


def test_what_is_clean_is_not_written_to(image: Image, tmp_path: Path) -> None:
    """What has no error is not written to, though its journal has changes."""
    path = tmp_path / "dirty.img"
    path.write_bytes(image("dirty-xfs").read_bytes())
    before = path.read_bytes()
    medium = open_medium(path)
    medium = replace(medium, writable_fd=open_for_writing(medium))
    (result,) = checked(medium, Wish(seconds=120, repair=True), Listener(), approve=lambda _: True).results
    assert (result.outcome, path.read_bytes() == before) == (Outcome.CLEAN, True)
