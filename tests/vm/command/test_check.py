"""`check`: what a person and a program are told, exit codes, and nothing written or left behind."""

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mountsafe.errors import ExitCode
from tests.damage import DAMAGES, damaged
from tests.luks import PASSPHRASE, luks
from tests.vm import qemu_img
from tests.vm.command.stage import PATH, Person, Stage
from tests.vm.command.terminal import at_a_terminal
from tests.vm.command.test_errors import refused
from tests.vm.command.test_interrupt import interrupted
from tests.vm.command.traces import PATIENCE, Traces
from tests.vm.test_sectors import gpt

Image = Callable[[str], Path]
ESCAPE = b"\x1b[2Jgone\x07"


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Look at a medium's bytes and times before and after."""
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    yield
    assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before


def ext4_with_errors(image: Image, folder: Path) -> Path:
    path = damaged(image("ext4"), folder / "damaged.img", DAMAGES["ext4"])
    path.chmod(0o644)
    return path


def test_a_clean_image(person: Person, image: Image) -> None:
    with unchanged(image("vfat")):
        done = person.run("check", image("vfat")).ok()
        assert done.out == 'vfat.img: whole disk: vfat "VFAT", 8.0 MiB: no errors\n'
        assert "checking whole disk: vfat" in done.err
        told = person.run("check", image("vfat"), "--json").ok()
    assert told.err == ""
    (volume,) = told.json()["checked"]
    assert (volume["outcome"], volume["checker"], volume["checker_exit_code"]) == ("clean", "fsck.fat", 0)
    assert volume["words"]


def test_an_image_with_errors(person: Person, image: Image, folder: Path) -> None:
    source = ext4_with_errors(image, folder)
    with unchanged(source):
        done = person.run("check", source)
        assert done.code == ExitCode.DAMAGED
        first, says, *words = done.out.splitlines()
        assert first == 'damaged.img: whole disk: ext4 "EXT4", 16.0 MiB: has errors'
        assert says == "  e2fsck says:"
        assert words[0].startswith("    e2fsck ")
        assert words[-1].startswith("    EXT4: 331/1024 files ")
        told = person.run("check", source, "--json")
    assert told.code == ExitCode.DAMAGED
    (volume,) = told.json()["checked"]
    assert (volume["outcome"], volume["checker_exit_code"], volume["why"]) == ("errors", 4, "")
    assert [f"    {line}" for line in volume["words"]] == words


def test_of_many_words_a_person_is_shown_the_first(user: Person, image: Image, folder: Path) -> None:
    source = damaged(image("minix"), folder / "minix.img", DAMAGES["minix"])
    source.chmod(0o644)
    words = user.run("check", source, "--json").json()["checked"][0]["words"]
    shown = user.run("check", source).out.splitlines()
    assert shown[2:-1] == [f"    {line}" for line in words[:20]]
    assert shown[-1] == f"    {len(words) - 20} more lines: --verbose or --json shows them"
    assert len(user.run("check", source, "--verbose").out.splitlines()) == len(words) + 2


def test_words_from_the_medium_do_not_reach_the_terminal_as_they_are(user: Person, image: Image, folder: Path) -> None:
    source = damaged(image("ext2"), folder / "label.img", DAMAGES["ext2"])
    with source.open("r+b") as file:
        file.seek(1024 + 120)  # s_volume_name
        file.write(ESCAPE.ljust(16, b"\0"))
    source.chmod(0o644)
    for how in ([], ["--json"], ["--verbose"]):
        done = user.run("check", source, *how)
        assert done.code == ExitCode.DAMAGED
        assert not {"\x1b", "\x07"} & set(done.out + done.err)
    words = user.run("check", source, "--json").json()["checked"][0]["words"]
    assert any(r"\x1b[2Jgone\x07" in line for line in words)


def test_a_disk_of_which_one_has_errors(user: Person, image: Image, folder: Path) -> None:
    """Errors come first in the exit code, whatever else was not checked."""
    source = folder / "disk.img"
    broken = ext4_with_errors(image, folder).read_bytes()
    source.write_bytes(gpt(512, image("vfat").read_bytes(), broken, image("udf").read_bytes()))
    with unchanged(source):
        done = user.run("check", source, "--json")
        assert done.code == ExitCode.DAMAGED
        assert [each["outcome"] for each in done.json()["checked"]] == ["clean", "errors", "no-checker"]
        assert user.run("check", source, "-p", "1").ok().out.startswith("disk.img: partition 1: vfat")
        only = user.run("check", source, "-p", "3")
    assert (only.code, "there is no program that checks udf" in only.out) == (ExitCode.UNCHECKED, True)
    source.write_bytes(gpt(512, image("vfat").read_bytes(), image("udf").read_bytes()))
    assert user.run("check", source).code == ExitCode.PARTIAL


def test_what_is_in_a_container(user: Person, image: Image, folder: Path) -> None:
    source = folder / "disk.qcow2"
    qemu_img.convert(ext4_with_errors(image, folder), "qcow2", source)
    user.give(source)
    with unchanged(source):
        done = user.run("check", source, "--json")
    assert (done.code, done.json()["format"]) == (ExitCode.DAMAGED, "qcow2")


def test_what_is_encrypted(user: Person, image: Image, folder: Path) -> None:
    source = luks(ext4_with_errors(image, folder).read_bytes(), folder / "luks.img")
    source.chmod(0o644)
    key = folder / "key"
    key.write_bytes(PASSPHRASE)
    key.chmod(0o644)
    with unchanged(source):
        done = user.run("check", source, "--json", "--key-file", key)
        assert done.code == ExitCode.DAMAGED, done.err
        (volume,) = done.json()["checked"]
        assert (volume["name"], volume["fstype"], volume["outcome"]) == ("0/0", "ext4", "errors")
        failed(user, ExitCode.LOCKED, "is encrypted", source)
        key.write_bytes(b"wrong")
        failed(user, ExitCode.LOCKED, "was not unlocked", source, "--key-file", key)


def failed(person: Person, code: ExitCode, words: str, *arguments: str | Path) -> None:
    """Have a check fail, after a virtual machine was started for it."""
    done = person.run("check", *arguments, "--json")
    assert (done.code, words in done.json()["error"]["message"]) == (code, True), done.err


def test_what_cannot_be_checked(user: Person, image: Image, folder: Path) -> None:
    failed(user, ExitCode.SOURCE, "no file system was found", image("garbage"))
    refused(user, ExitCode.SOURCE, "does not exist", "check", folder / "absent")
    failed(user, ExitCode.SOURCE, "partition 77", image("disk-gpt"), "-p", "77")
    refused(user, ExitCode.USAGE, "is not a file system type", "check", image("ext4"), "--type", "EXT4")


def test_a_device(root: Person, image: Image) -> None:
    """As root, and held meanwhile: nobody can mount it."""
    loop = subprocess.run(
        ["losetup", "--show", "-f", image("ext4")], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        with unchanged(image("ext4")):
            assert root.run("check", loop).ok().out.endswith(": no errors\n")
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def test_interrupted(person: Person, image: Image) -> None:
    before = Traces.taken(person)
    with person.start("check", image("xfs")) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("checking"):
            assert line
        assert "Traceback" not in interrupted(process)
    assert process.returncode == ExitCode.INTERRUPTED
    before.assert_same(person, PATIENCE)


# --- repairing --------------------------------------------------------------------------------------------------------
def test_one_is_repaired_and_its_neighbours_are_as_they_were(user: Person, image: Image, folder: Path) -> None:
    source = folder / "disk.img"
    before, after = image("vfat").read_bytes(), image("ext2").read_bytes()
    disk = gpt(512, before, ext4_with_errors(image, folder).read_bytes(), after)
    source.write_bytes(disk)
    user.give(source)
    done = user.run("check", source, "--repair", "--yes", "--json").ok()
    assert [each["outcome"] for each in done.json()["checked"]] == ["clean", "repaired", "clean"]
    start, end = (1 << 20) + len(before), (1 << 20) + len(before) + image("ext4").stat().st_size
    now = source.read_bytes()
    assert (now[:start], now[end:]) == (disk[:start], disk[end:])
    assert now[start:end] != disk[start:end]
    with unchanged(source):
        assert user.run("check", source).ok()
        assert user.run("check", source, "--repair", "--yes").ok()


def test_who_says_no_has_nothing_written(user: Person, image: Image, folder: Path) -> None:
    source = user.give(ext4_with_errors(image, folder))
    with unchanged(source):
        refused(user, ExitCode.USAGE, "nobody can be asked", "check", source, "--repair")
        said = at_a_terminal(user, "[y/N]:", ["n\n"], "check", source, "--repair")
        assert said.code == ExitCode.DAMAGED, said.out
        assert "Write to damaged.img?" in said.out
    said = at_a_terminal(user, "[y/N]:", ["y\n"], "check", source, "--repair")
    assert (said.code, "had errors, which were repaired" in said.out) == (0, True), said.out


def test_what_cannot_be_repaired(user: Person, image: Image, folder: Path) -> None:
    source = user.give(damaged(image("btrfs"), folder / "btrfs.img", DAMAGES["btrfs"]))
    with unchanged(source):
        done = user.run("check", source, "--repair", "--yes", "--json")
        assert done.code == ExitCode.DAMAGED
        assert done.json()["checked"][0]["why"].startswith(
            "it was not repaired: btrfs check --repair can make it worse"
        )
    protected = ext4_with_errors(image, folder)
    protected.chmod(0o444)
    refused(user, ExitCode.DEPENDENCY, "and not write to it", "check", protected, "--repair", "--yes")
    contained = folder / "disk.qcow2"
    qemu_img.convert(protected, "qcow2", contained)
    user.give(contained)
    refused(user, ExitCode.SOURCE, "cannot be written to", "check", contained, "--repair", "--yes")


@pytest.fixture(scope="module")
def other(stage: Stage) -> tuple[list[str], dict[str, str]]:
    """A command, and the place of an appliance, in which ext's checker hangs and FAT's is not there."""
    hangs = {'(("e2fsck", "-n", "-f"),)': '(("sh", "-c", "echo begun; sleep 1000 & sleep 1000"),)'}
    program = stage.variant("hanging", {"checkers.py": {**hangs, '"fsck.fat",\n    "dos': '"fsck.none",\n    "dos'}})
    place = stage.root / "hanging-state/appliance"
    place.mkdir(parents=True)
    for path in (place.parent, place):
        path.chmod(0o755)
    environment = {"MOUNTSAFE_APPLIANCE": str(place), "PATH": PATH, "HOME": str(stage.root)}
    subprocess.run([program, "appliance", "build"], env=environment, check=True, capture_output=True, timeout=600)
    return [str(program)], {"MOUNTSAFE_APPLIANCE": str(place)}


def test_a_checker_that_hangs(user: Person, image: Image, other: tuple[list[str], dict[str, str]]) -> None:
    program, env = other
    before = Traces.taken(user)
    done = user.run("check", image("ext4"), "--time-limit", "2", program=program, env=env)
    assert done.code == ExitCode.DEADLINE
    assert done.out.splitlines()[1:] == ["  its checker was not done in 2 s", "  e2fsck says:", "    begun"]
    before.assert_same(user, PATIENCE)


def test_a_checker_that_is_missing(user: Person, image: Image, other: tuple[list[str], dict[str, str]]) -> None:
    program, env = other
    done = user.run("check", image("vfat"), program=program, env=env)
    assert done.code == ExitCode.DEPENDENCY
    hint = "dosfstools is not installed: sudo apt install dosfstools; then mountsafe appliance build"
    assert done.out.splitlines()[1] == f"  {hint}"
