"""A block device as the source: read through the virtual machine, and nobody else mounts it meanwhile."""

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images import images
from mountsafe import landlock
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium import claim as claiming
from mountsafe.medium.source import open_medium
from tests.readers import change
from tests.vm.command.stage import Person
from tests.vm.command.test_mount import Image, check_tree, mounted
from tests.vm.command.traces import PATIENCE, Traces


@pytest.fixture
def device(program: Callable[[str], str], image: Image) -> Iterator[Path]:
    """A read-only loop device of our own ext4 image, which this host's kernel could mount as well."""
    losetup = program("losetup")
    command = [losetup, "--find", "--show", "--read-only", str(image("ext4"))]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(path)
    subprocess.run([losetup, "--detach", path], check=True)


@pytest.fixture
def writable(program: Callable[[str], str], image: Image, tmp_path: Path) -> Iterator[Path]:
    """A loop device that may be written to, of a copy."""
    copy = tmp_path / "medium"
    copy.write_bytes(image("romfs").read_bytes())
    command = [program("losetup"), "--find", "--show", str(copy)]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(path)
    subprocess.run([program("losetup"), "--detach", path], check=True)


def claim(device: Path) -> int:
    """The errno of an exclusive opening, as mount(2) makes one; 0 if it is free."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_device_is_claimed_while_it_is_mounted(root: Person, folder: Path, device: Path) -> None:
    assert claim(device) == 0
    with mounted(root, device, folder / "m"):
        check_tree(root, folder / "m", images.expected("ext4"))
        assert claim(device) == errno.EBUSY
    assert claim(device) == 0


def test_another_card_in_the_same_reader_is_not_shown_as_the_last_one(
    root: Person, folder: Path, device: Path, tmp_path: Path
) -> None:
    """The device's number stays, and whoever has it open reads the other card from there on."""
    before = Traces.taken(root)
    other = tmp_path / "other"
    with other.open("wb") as file:
        file.truncate(int(Path("/sys/class/block", device.name, "size").read_text()) * 512)
    target = root.run("mount", "--json", device, folder / "m").ok().json()["target"]
    change(device, other)
    again = root.run("mount", device, folder / "n")
    assert again.code in (ExitCode.TARGET, ExitCode.SOURCE)
    assert "already mounted" not in again.out + again.err
    before.assert_same(root, PATIENCE)
    assert not Path(target, "README.txt").exists()
    assert claim(device) == 0


def test_a_claim_that_fails_leaves_the_device_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, writable: Path
) -> None:
    """As of a stick that is pulled out meanwhile."""

    def gone(fd: int) -> int:
        assert read_only(writable) == "1"
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def read_only(device: Path) -> str:
        return Path("/sys/class/block", device.name, "ro").read_text().strip()

    monkeypatch.setattr(claiming, "device_size", gone)
    number = writable.stat().st_rdev
    with pytest.raises(OSError, match="No such device"):
        claiming.Claim(str(writable), (os.major(number), os.minor(number)), 0, tmp_path)
    assert read_only(writable) == "0"
    assert {path.name for path in tmp_path.iterdir()} == {"medium"}
    assert claim(writable) == 0


def test_a_device_that_is_claimed_is_not_mounted(root: Person, folder: Path, device: Path) -> None:
    fd = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        done = root.run("mount", device, folder / "m")
    finally:
        os.close(fd)
    assert done.code == 3
    assert "claimed by another program" in done.err
    assert not (folder / "m").exists()


def test_a_device_that_the_user_may_not_read(user: Person, folder: Path, device: Path) -> None:
    done = user.run("mount", device, folder / "m")
    assert done.code == ExitCode.DEPENDENCY
    assert f"sudo mountsafe mount {device} {folder}/m" in done.err


@pytest.mark.parametrize(
    ("mode", "read_only", "version", "refused"),
    [
        (0o666, False, 0, True),
        (0o660, False, 0, False),  # root's boxes are in no group and own nothing
        (0o666, True, 0, False),
        (0o666, False, 1, False),
    ],
    ids=["anybody", "nobody", "read-only", "landlock"],
)
def test_a_device_that_a_box_may_write_to_needs_landlock(
    root: Person, writable: Path, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch,
    mode: int, read_only: bool, version: int, refused: bool,
) -> None:  # fmt: skip
    """Nothing else would keep code in a box from opening the node anew."""
    monkeypatch.setattr(landlock, "version", lambda: version)
    before = stat.S_IMODE(writable.stat().st_mode)
    subprocess.run([program("blockdev"), "--setro" if read_only else "--setrw", str(writable)], check=True)
    writable.chmod(mode)
    try:
        if refused:
            with pytest.raises(UserError, match="no Landlock") as error:
                open_medium(writable)
            assert error.value.code == ExitCode.DEPENDENCY
        else:
            os.close(open_medium(writable).fd)
        assert claim(writable) == 0
    finally:
        writable.chmod(before)


@pytest.fixture
def large_sectors(program: Callable[[str], str], tmp_path: Path, image: Image) -> Iterator[Path]:
    """A device whose sectors have 4,096 bytes, with a GPT that counts them and our own ext4 image in a partition."""
    content = image("ext4").read_bytes()
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(len(content) + (2 << 20))
    command = [program("losetup"), "--find", "--show", "--sector-size", "4096", str(path)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    script = f"label: gpt\nstart=256, size={len(content) // 4096}\n"
    quiet = [program("sfdisk"), "-q", "--no-reread", "--no-tell-kernel", device]
    subprocess.run(quiet, input=script.encode(), check=True, capture_output=True)
    with open(device, "r+b") as file:
        file.seek(1 << 20)
        file.write(content)
    yield Path(device)
    subprocess.run([program("losetup"), "--detach", device], check=True)


def test_the_sectors_of_a_device_are_its_own(root: Person, folder: Path, large_sectors: Path) -> None:
    told = root.run("inspect", large_sectors, "--json").ok().json()
    (partition,) = [volume for volume in told["volumes"] if volume["kind"] == "partition"]
    assert (partition["start"], partition["sector_size"], partition["condition"]) == (1 << 20, None, "")
    with mounted(root, large_sectors, folder / "m"):
        check_tree(root, folder / "m", images.expected("ext4"))
    assert root.run("mount", "--sector-size", "512", large_sectors, folder / "m").code == ExitCode.SOURCE
