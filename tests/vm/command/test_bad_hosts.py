"""What a host does to its mounts: disks with bad sectors, folders without room, too little memory for the machine."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode
from mountsafe.sandbox import PYTHON
from tests.vm.command import badisk
from tests.vm.command.stage import Person, Stage, sh
from tests.vm.command.test_faults import ASK, BOUND, content, expected, questions
from tests.vm.command.traces import PATIENCE, Traces

Image = Callable[[str], Path]
BLOCK = 4096


# --- bad sectors ---------------------------------------------------------------------------------------------------
@contextmanager
def bad_disk(image: Path, folder: Path, start: int, end: int) -> Iterator[Path]:
    """Show an image as a disk of which a part cannot be read."""
    folder.mkdir()
    command = [PYTHON, badisk.__file__, str(image), str(folder), str(start), str(end)]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + BOUND
            while not folder.is_mount() and time.monotonic() < deadline:
                time.sleep(0.05)
            yield folder / "medium.img"
        finally:
            sh("umount", "--lazy", folder)  # a test that fails leaves it in use
            process.kill()


PREAD = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
try:
    os.pread(fd, 4096, int(sys.argv[2]))
except OSError as error:
    print(error.errno)
else:
    print(0)
"""


@pytest.mark.parametrize(("name", "block"), [("iso9660", 0), ("ext4", 8), ("ext4", 16)])
def test_a_bad_sector_where_other_types_have_their_signature(
    root: Person, folder: Path, image: Image, tmp_path: Path, name: str, block: int
) -> None:
    """The type is found. Nothing of this ISO 9660 is there, and of this ext4 a part of lost+found or of the journal."""
    with bad_disk(image(name), tmp_path / "disk", block * BLOCK, (block + 1) * BLOCK) as disk:
        root.run("mount", disk, folder / "m").ok()
        [readme] = [entry for entry in images.expected(name) if entry.path == b"README.txt"]
        assert content(root, folder / "m/README.txt") == readme.sha256
        root.run("unmount", folder / "m").ok()


@pytest.mark.parametrize("kind", ["direct", "agent"])
def test_a_bad_sector_is_an_error_of_one_file(
    root: Person, folder: Path, image: Image, tmp_path: Path, kind: str
) -> None:
    """The host that reads directly and the guest both meet it, and the rest of the mount works."""
    data = os.urandom(100 * BLOCK)
    if kind == "direct":
        source = tmp_path / "medium.img"
        source.write_bytes(image("ext4").read_bytes())
        (tmp_path / "bad").write_bytes(data)
        sh("debugfs", "-w", "-R", f"write {tmp_path / 'bad'} bad", source)
    else:
        source = tmp_path / "medium.img"
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "bad").write_bytes(data)
        (tree / "README.txt").write_text("good\n")
        sh("mksquashfs", tree, source, "-noappend", "-quiet", "-noD", "-noF", "-no-tailends", "-b", str(BLOCK))
    bad = source.read_bytes().index(data[40 * BLOCK : 41 * BLOCK])
    before = Traces.taken(root)
    with bad_disk(source, tmp_path / "disk", bad, bad + BLOCK) as disk:
        root.run("mount", disk, folder / "m").ok()
        record = root.records_of(disk)
        assert record["mounts"][0]["direct_reads"] == (kind == "direct")
        if kind == "direct":
            assert content(root, folder / "m/random.bin") == expected("random.bin")
        assert root.run(folder / "m/bad", program=["cat"]).code == 1
        assert root.python(PREAD, folder / "m/bad", str(40 * BLOCK)).ok().out == "5\n"
        assert root.python(PREAD, folder / "m/bad", "0").ok().out == "0\n"
        assert root.python(PREAD, folder / "m/bad", str(99 * BLOCK)).ok().out == "0\n"
        assert root.run(folder / "m/README.txt", program=["cat"]).ok().out
        root.run("unmount", folder / "m").ok()
    before.assert_same(root, PATIENCE)


# --- no room -------------------------------------------------------------------------------------------------------
@contextmanager
def small(place: Path, kib: int, person: Person) -> Iterator[None]:
    sh("mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=0700,uid={person.uid}", "mountsafe-test", place)
    try:
        yield
    finally:
        sh("umount", "--lazy", place)


def test_no_room_for_a_record(root: Person, user: Person, folder: Path, image: Image) -> None:
    """It is said, and nothing is mounted."""
    with small(user.runtime, 8, user):
        (user.runtime / "full").write_bytes(bytes(8 << 10))
        done = user.run("mount", image("romfs"), folder / "m")
        assert done.code == ExitCode.FAILURE
        assert "cannot keep a record" in done.err
        assert "Make room" in done.err
        assert not (folder / "m").exists()


def test_no_room_for_the_log(root: Person, user: Person, folder: Path, image: Image) -> None:
    """The mount works without."""
    with small(user.runtime, 64, user):
        user.run("mount", image("ext4"), folder / "m").ok()
        with open(user.runtime / "full", "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(BLOCK))
        record = user.records_of(image("ext4"))
        os.kill(record["virtual_machine"], 9)  # something to log
        assert user.run(folder / "m/README.txt", program=["cat"]).ok().out
        user.python(ASK, questions(folder / "m")[0]).ok()
        user.run("unmount", folder / "m").ok()
        assert list((user.runtime / "mountsafe").iterdir()) == []


# --- too little memory ---------------------------------------------------------------------------------------------
def test_a_machine_with_too_little_memory(user: Person, folder: Path, image: Image, stage: Stage) -> None:
    """Its kernel has no room for itself: it panics, and that is said."""
    less = {"memory_mib: int = GUEST_MEMORY_MIB": "memory_mib: int = 48"}
    poor = stage.variant("poor", {"appliance/machine.py": less})
    done = user.run("mount", image("ext4"), folder / "m", program=[str(poor)])
    assert done.code == ExitCode.APPLIANCE
    assert "the virtual machine did not start" in done.err
    assert not (folder / "m").exists()
