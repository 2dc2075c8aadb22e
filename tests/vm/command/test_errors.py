"""What goes wrong for a user: one sentence, a hint, the documented exit code, and nothing left behind."""

import lzma
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mountsafe.errors import ExitCode
from tests.done import Done
from tests.vm.command.stage import PATH, Person, sh
from tests.vm.command.traces import Traces

Image = Callable[[str], Path]


def refused(person: Person, code: ExitCode, words: str, *arguments: str | Path, **how: Any) -> Done:
    """Run a command that must fail in the way that is documented, for people and for programs."""
    before = Traces.taken(person)
    done = person.run(*arguments, "--json", **how)
    assert done.code == code, f"{done.code}, not {code!r}: {done.out}{done.err}"
    error = done.json()["error"]
    assert set(error) == {"message", "hint", "code"}
    assert error["code"] == code
    assert words in error["message"]
    for text in (error["message"], error["hint"]):
        assert text
        assert "\n" not in text
        assert "Traceback" not in text
    assert done.err == f"mountsafe: {error['message']}\n{error['hint']}\n"
    before.assert_same(person)
    return done


@contextmanager
def bound(what: Path, over: Path) -> Iterator[None]:
    """Show a file or folder at another place; only this session's mount namespace sees it."""
    sh("mount", "--bind", what, over)
    try:
        yield
    finally:
        sh("umount", over)


@contextmanager
def small_disk(person: Person, size: str) -> Iterator[Path]:
    """A disk of the person's that is full but for `size`."""
    path = person.folder()
    sh("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700,uid={person.uid}", "small", path)
    try:
        yield path
    finally:
        sh("umount", path)
        path.rmdir()


# --- the source -----------------------------------------------------------------------------------------------------
def test_sources_that_cannot_be_media(person: Person, folder: Path) -> None:
    (folder / "nothing").touch()
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "socket"))
    (folder / "loop").symlink_to("loop")
    places = {
        "nothing": "is empty",
        "absent": "does not exist",
        "folder": "is a directory",
        "fifo": "neither a file nor a block device",
        "socket": "neither a file nor a block device",
        "/dev/null": "neither a file nor a block device",
        "/dev/fuse": "neither a file nor a block device",
        "loop": "too many levels",
        "nothing/below": "not a directory",
        "x" * 300: "too long",
    }
    for name, words in places.items():
        refused(person, ExitCode.SOURCE, words, "mount", folder / name, folder / "m")
    refused(person, ExitCode.SOURCE, "does not exist", "inspect", folder / "absent")
    assert not (folder / "m").exists()


def test_a_source_that_the_user_may_not_read(user: Person, folder: Path, image: Image) -> None:
    source = folder / "secret.img"
    source.write_bytes(image("romfs").read_bytes())
    source.chmod(0)
    refused(user, ExitCode.DEPENDENCY, "permission denied", "mount", source, folder / "m")


@pytest.mark.parametrize("name", ["garbage", "empty", "text", "pdf"])
def test_sources_without_a_file_system(user: Person, folder: Path, image: Image, name: str) -> None:
    made = {"text": b"Dear reader,\n" * 5000, "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"1 0 obj\n" * 5000}
    source = folder / f"{name}.img"
    source.write_bytes(made[name] if name in made else image(name).read_bytes())
    refused(user, ExitCode.SOURCE, "no file system was found", "mount", user.give(source), folder / "m")
    assert not (folder / "m").exists()
    if name == "pdf":
        note = user.run("inspect", source, "--json").ok().json()["note"]
        assert note.startswith("no file system was found on pdf.img: it is a PDF document. ")
        assert user.run("inspect", source).ok().out.splitlines()[-1] == note


def test_a_truncated_image(person: Person, folder: Path, image: Image) -> None:
    done = person.run("mount", image("truncated"), folder / "m").ok()
    assert "the image ends before its file system" in done.err
    person.run("unmount", folder / "m").ok()


def test_an_encrypted_image(user: Person, folder: Path, image: Image) -> None:
    refused(user, ExitCode.LOCKED, "encrypted", "mount", image("encrypted-luks"), folder / "m")


def test_partitions_that_are_not_there(user: Person, folder: Path, image: Image) -> None:
    done = refused(user, ExitCode.SOURCE, "partition 77", "mount", image("disk-gpt"), folder / "m", "-p", "77")
    assert "partition 1: vfat" in done.json()["error"]["hint"]
    swap: list[str | Path] = ["mount", image("disk-gpt"), folder / "m", "-p", "4"]
    refused(user, ExitCode.SOURCE, "no file system on partition 4", *swap)
    refused(user, ExitCode.SOURCE, "no file system was recognised", "mount", image("disk-gpt"), folder / "m", "-p", "0")


@pytest.mark.parametrize("fstype", ["../x", "", "ext4 --all", "a" * 33, "EXT4", "ext4\n", "noext4", "auto"])
def test_types_that_are_none(user: Person, folder: Path, image: Image, fstype: str) -> None:
    refused(user, ExitCode.USAGE, "is not a file system type", "mount", image("ext4"), folder / "m", "--type", fstype)


def test_a_type_that_nobody_knows(user: Person, folder: Path, image: Image) -> None:
    refused(user, ExitCode.SOURCE, "xsuchfs", "mount", image("ext4"), folder / "m", "--type", "xsuchfs")


# --- the mount point ------------------------------------------------------------------------------------------------
def test_mount_points_that_cannot_be(person: Person, folder: Path, image: Image) -> None:
    (folder / "file").touch()
    (folder / "full").mkdir()
    (folder / "full/file").touch()
    (folder / "dangling").symlink_to("absent/absent")
    places = {
        "file": "is not a folder",
        "full": "is not empty",
        "absent/below": "cannot reach",
        "file/below": "cannot reach",
        "dangling": "cannot reach",
        "/proc/new": "cannot make",
        "y" * 300: "cannot reach",
    }
    for name, words in places.items():
        refused(person, ExitCode.TARGET, words, "mount", image("ext4"), folder / name)


def test_a_file_that_is_no_disk_is_named(user: Person, folder: Path) -> None:
    source = folder / "a disk.img.xz"
    source.write_bytes(lzma.compress(bytes(1 << 20)).ljust(1 << 16, b"\0"))
    done = refused(user, ExitCode.SOURCE, "it is compressed by xz", "mount", user.give(source), folder / "m")
    assert done.json()["error"]["hint"].startswith("Unpack it first: xz -dk '")


def test_a_parent_that_is_not_the_users(user: Person, root: Person, image: Image) -> None:
    folder = root.folder()
    try:
        refused(user, ExitCode.DEPENDENCY, "cannot reach", "mount", image("ext4"), folder / "m")
        folder.chmod(0o755)
        refused(user, ExitCode.DEPENDENCY, "is not yours", "mount", image("ext4"), folder)
    finally:
        folder.rmdir()


def test_a_mount_point_that_is_taken(person: Person, root: Person, folder: Path, image: Image) -> None:
    with bound(image("ext4").parent, folder):
        refused(person, ExitCode.TARGET, "already mounted", "mount", image("ext4"), folder)


def test_nothing_to_unmount(person: Person, folder: Path) -> None:
    refused(person, ExitCode.NOT_MOUNTED, "is not mounted", "unmount", folder)
    refused(person, ExitCode.NOT_MOUNTED, "is not mounted", "unmount", "/proc")
    refused(person, ExitCode.NOT_MOUNTED, "is not mounted", "unmount", folder / "absent")
    refused(person, ExitCode.USAGE, "name a mount point", "unmount")
    refused(person, ExitCode.USAGE, "name a mount point", "unmount", "--all", folder)


def test_wrong_words(user: Person) -> None:
    for arguments in (["mount"], ["nonsense"], ["mount", "x", "--owner", "nobody"], ["mount", "x", "-p", "-1"]):
        done = user.run(*arguments)
        assert done.code == ExitCode.USAGE
        assert "Traceback" not in done.err


# --- the host -------------------------------------------------------------------------------------------------------
@pytest.fixture
def path_without(folder: Path) -> Callable[[str], str]:
    """A function that returns a PATH which has everything but one program."""

    def without(name: str) -> str:
        place = folder / f"without-{name}"
        place.mkdir()
        for each in PATH.split(":"):
            for program in Path(each).iterdir():
                link = place / program.name
                if program.name != name and not link.is_symlink():
                    link.symlink_to(program)
        return str(place)

    return without


@pytest.mark.parametrize("name", ["bwrap", "prlimit", "fusermount3"])
def test_a_program_that_is_missing(
    user: Person, folder: Path, image: Image, path_without: Callable[[str], str], name: str
) -> None:
    environment = {"PATH": path_without(name)}
    done = refused(
        user, ExitCode.DEPENDENCY, f"{name} is missing", "mount", image("ext4"), folder / "m", env=environment
    )
    assert "sudo apt install" in done.json()["error"]["hint"]


def test_no_appliance_and_no_supermin(
    person: Person, folder: Path, image: Image, path_without: Callable[[str], str]
) -> None:
    environment = {"PATH": path_without("supermin"), "MOUNTSAFE_APPLIANCE": str(folder / "appliance")}
    (folder / "appliance").mkdir()
    person.give(folder / "appliance")
    refused(person, ExitCode.DEPENDENCY, "supermin is missing", "mount", image("ext4"), folder / "m", env=environment)


def test_no_kernel(person: Person, root: Person, folder: Path, image: Image) -> None:
    nothing = folder / "nothing"
    nothing.mkdir()
    environment = {"MOUNTSAFE_APPLIANCE": str(folder / "appliance")}
    (folder / "appliance").mkdir()
    person.give(folder / "appliance")
    with bound(nothing, Path("/boot")), bound(nothing, Path("/usr/lib/modules")):
        refused(person, ExitCode.DEPENDENCY, "no kernel", "mount", image("ext4"), folder / "m", env=environment)
        findings = {each["what"]: each for each in person.run("doctor", "--json", env=environment).json()}
        assert findings["kernel image"]["state"] == "missing"


def test_fuse_that_cannot_be_opened(person: Person, root: Person, folder: Path, image: Image) -> None:
    """For a user a node that only root may open; for root one that no driver is behind."""
    node = folder / "node"
    os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(10, 251) if person.is_root else os.makedev(10, 229))
    with bound(node, Path("/dev/fuse")):
        refused(person, ExitCode.DEPENDENCY, "/dev/fuse", "mount", image("ext4"), folder / "m")
        done = person.run("doctor", "--json")
        assert done.code == ExitCode.DEPENDENCY
        assert {each["what"]: each for each in done.json()}["FUSE"]["state"] == "missing"


def test_a_full_disk_for_records(user: Person, root: Person, folder: Path, image: Image) -> None:
    with small_disk(user, "64k") as disk:
        (disk / "mountsafe").mkdir(mode=0o700)
        user.give(disk / "mountsafe")
        with open(disk / "ballast", "wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096 and os.statvfs(disk).f_bavail:
                pass
        environment = {"XDG_RUNTIME_DIR": str(disk)}
        refused(user, ExitCode.FAILURE, "No space left", "mount", image("ext4"), folder / "m", env=environment)
        assert list((disk / "mountsafe").iterdir()) == []
    assert not (folder / "m").exists()


def test_a_full_disk_for_the_appliance(person: Person, root: Person, folder: Path, image: Image) -> None:
    with small_disk(person, "8M") as disk:
        environment = {"MOUNTSAFE_APPLIANCE": str(disk / "appliance")}
        refused(person, ExitCode.FAILURE, "not enough space", "mount", image("ext4"), folder / "m", env=environment)
    assert not (folder / "m").exists()


def test_output_that_nobody_reads(user: Person) -> None:
    done = user.run(str(user.program), program=["sh", "-c", '"$0" list --json | true; "$0" --help | head -n 1'])
    assert "Traceback" not in done.err
    done = user.run(str(user.program), program=["sh", "-c", '"$0" list --json >/dev/full'])
    assert done.code == ExitCode.FAILURE
    assert done.err == "mountsafe: there is no space left\nMake room there.\n"


def test_several_are_unmounted_and_one_that_is_not_there_keeps_none(user: Person, folder: Path, image: Image) -> None:
    places = [folder / name for name in ("one", "two")]
    for place, name in zip(places, ("ext4", "romfs"), strict=True):
        user.run("mount", image(name), place).ok()
    done = user.run("unmount", places[0], folder / "absent", places[1])
    assert done.code == ExitCode.NOT_MOUNTED
    assert done.out == f"unmounted {image('ext4')}\nunmounted {image('romfs')}\n"
    assert user.run("list", "--json").ok().json() == []
