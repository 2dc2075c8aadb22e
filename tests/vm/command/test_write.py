"""`mount --write`: what programs do there is on the medium when it is unmounted, and no other byte of it changes."""

import hashlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mountsafe.errors import ExitCode
from tests.luks import PASSPHRASE, decrypted, luks, volume_key
from tests.vm.command.stage import DEADLINE, Person, sh
from tests.vm.command.test_device import device as device  # a fixture
from tests.vm.command.test_errors import bound, refused
from tests.vm.command.test_mount import Image, mounted
from tests.vm.command.traces import PATIENCE, Traces, descendants, running

MIB = 1 << 20
TOOLS = {"ext4": ("mkfs.ext4", "-q", "-F", "-E", "root_owner={uid}:{uid}"), "vfat": ("mkfs.vfat",)}
WORK = """
set -e
cd "$1"
mkdir -p tree/deep/deeper
for number in 1 2 3 4 5 6 7 8 9; do echo "$number" >tree/deep/file$number; done
head -c 3000000 /dev/zero | tr '\\0' x >tree/large
cp -r tree copy
echo edited >>copy/deep/file1
mv copy/deep/file2 copy/deep/moved
rm -r tree/deep/deeper copy/deep/file3
mv copy "a longer name"
sync -f .
"""
CHECKED = {
    "a longer name/deep/file1": b"1\nedited\n",
    "a longer name/deep/moved": b"2\n",
    "a longer name/large": b"x" * 3_000_000,
    "tree/deep/file3": b"3\n",
}
GONE = ["tree/deep/deeper", "a longer name/deep/file2", "a longer name/deep/file3", "copy"]


def made(person: Person, folder: Path, fstype: str, size: int = 64 * MIB) -> Path:
    """A new image of the person's."""
    path = folder / f"{fstype}.img"
    with path.open("wb") as file:
        file.truncate(size)
    command, *options = TOOLS[fstype]
    sh(command, *(option.format(uid=person.uid) for option in options), path)
    return person.give(path)


def work(person: Person, target: Path) -> None:
    """Do what programs do."""
    person.run(target, program=["sh", "-c", WORK, "sh"]).ok()


def content(image: Path, fstype: str, name: str) -> bytes | None:
    """A file of an image, by other programs than ours; None if it is not there."""
    if fstype == "ext4":
        done = subprocess.run(["debugfs", "-R", f'cat "/{name}"', image], capture_output=True, check=True)
        return None if b"File not found" in done.stderr else done.stdout
    done = subprocess.run(["mtype", "-i", image, f"::{name}"], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def check(image: Path, fstype: str) -> None:
    """What was done is there, and the type's own checker has nothing to say."""
    checker = {"ext4": ["e2fsck", "-fn"], "vfat": ["fsck.vfat", "-n"]}[fstype]
    done = subprocess.run([*checker, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, wanted in CHECKED.items():
        assert content(image, fstype, name) == wanted, name
    for name in GONE:
        assert content(image, fstype, name) is None, name


def digest(path: Path, start: int = 0, size: int = -1) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(size)).hexdigest()


# --- what is written ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fstype", TOOLS)
def test_what_was_done_is_on_the_medium(
    person: Person, folder: Path, fstype: str, program: Callable[[str], str]
) -> None:
    for name in ("debugfs", "e2fsck", "mtype", "fsck.vfat", TOOLS[fstype][0]):
        program(name)
    image = made(person, folder, fstype)
    before = Traces.taken(person)
    done = person.run("mount", "--write", image, folder / "m").ok()
    assert done.out.endswith(f"on {folder / 'm'} (read-write)\n")
    work(person, folder / "m")
    record = person.records_of(image)
    [mount] = record["mounts"]
    assert (mount["access"], mount["written"], mount["unsaved"]) == ("read-write", True, "")
    assert "read-write, changed" in person.run("list").ok().out
    person.run("unmount", folder / "m").ok()
    before.assert_same(person)
    check(image, fstype)


def test_by_umount_alone_it_is_saved_as_well(root: Person, folder: Path) -> None:
    image = made(root, folder, "ext4")
    before = Traces.taken(root)
    root.run("mount", "--write", image, folder / "m").ok()
    work(root, folder / "m")
    supervisor = root.records_of(image)["supervisor"]
    sh("umount", folder / "m")
    ended(supervisor)
    before.assert_same(root, PATIENCE)  # what watches over the supervisor ends after it
    check(image, "ext4")


def ended(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([fd], [], [], DEADLINE)[0]
    os.close(fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_that_is_asked_to_end_saves_first(root: Person, folder: Path, number: int) -> None:
    image = made(root, folder, "ext4")
    before = Traces.taken(root)
    root.run("mount", "--write", image, folder / "m").ok()
    work(root, folder / "m")
    root.run(folder / "m/last", program=["touch"]).ok()
    supervisor = root.records_of(image)["supervisor"]
    os.kill(supervisor, number)
    ended(supervisor)
    before.assert_same(root, PATIENCE)  # what watches over the supervisor ends after it
    check(image, "ext4")
    assert content(image, "ext4", "last") == b""


def test_of_one_that_is_killed_nothing_is_left_and_what_was_synced_is_there(root: Person, folder: Path) -> None:
    """As after a power cut: the journal is replayed by whoever mounts it next."""
    image = made(root, folder, "ext4")
    before = Traces.taken(root)
    root.run("mount", "--write", image, folder / "m").ok()
    work(root, folder / "m")
    record = root.records_of(image)
    assert record["writing"]
    assert record["writing_machines"]
    os.kill(record["supervisor"], signal.SIGKILL)
    ended(record["supervisor"])
    root.run("list").ok()
    before.assert_same(root, PATIENCE)  # what watches over the supervisor ends after it
    subprocess.run(["e2fsck", "-fp", image], capture_output=True, check=False)
    check(image, "ext4")


def test_what_is_in_luks_is_written_encrypted(person: Person, folder: Path, program: Callable[[str], str]) -> None:
    """And the headers keep every byte."""
    program("cryptsetup")
    plain = made(person, folder, "ext4")
    image = person.give(luks(plain.read_bytes(), folder / "luks.img", sector=4096))
    (folder / "key").write_bytes(PASSPHRASE)
    key, payload = volume_key(image)
    header = digest(image, 0, payload)
    target = folder / "m"
    before = Traces.taken(person)
    person.run("mount", "--write", image, target, "--key-file", person.give(folder / "key")).ok()
    work(person, target)
    person.run("unmount", target).ok()
    before.assert_same(person)
    assert digest(image, 0, payload) == header
    plain.write_bytes(decrypted(image.read_bytes()[payload:], key, 4096))
    check(plain, "ext4")


# --- what is not ----------------------------------------------------------------------------------------------------
def test_whoever_only_looks_changes_no_byte(person: Person, folder: Path, image: Image) -> None:
    copy = person.give(Path(shutil.copy(image("ext4"), folder / "copy.img")))
    before = digest(copy)
    with mounted(person, "--write", copy, folder / "m") as record:
        assert [mount["access"] for mount in record["mounts"]] == ["read-write"]
        person.run(folder / "m", "-ls", "-type", "f", "-exec", "cat", "{}", "+", program=["find"])
        [mount] = person.records_of(copy)["mounts"]
        assert mount["written"] is False
    assert digest(copy) == before


@pytest.mark.parametrize("name", ["ext4", "dirty-ext4", "dirty-xfs"])
def test_what_was_written_to_is_read_on_when_nobody_writes(root: Person, folder: Path, image: Image, name: str) -> None:
    """Also where its journal was replayed in memory before, and on the medium by the first write."""
    copy = Path(shutil.copy(image(name), folder / "copy.img"))
    with mounted(root, "--write", copy, folder / "m"):
        for turn in ("one", "two"):
            root.run(folder / "m/new", turn, program=["sh", "-c", 'echo "$1" >"$0"']).ok()
            end = time.monotonic() + PATIENCE
            while root.records_of(copy)["writing_machines"]:
                assert time.monotonic() < end
                time.sleep(0.2)
            assert root.run(folder / "m/new", program=["cat"]).ok().out == f"{turn}\n"
            root.run(folder / "m", "-type", "f", "-exec", "cat", "{}", "+", program=["find"]).ok()


def partitioned(person: Person, folder: Path) -> tuple[Path, list[tuple[int, int]]]:
    """A disk with two file systems, ext4 and vfat, and where they are, in bytes."""
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.truncate(96 * MIB)
    table = "label: gpt\nstart=2048, size=81920\nstart=83968, size=81920\n"
    subprocess.run(["sfdisk", "-q", path], input=table.encode(), check=True)
    places = [(2048 * 512, 81920 * 512), (83968 * 512, 81920 * 512)]
    for (start, size), fstype in zip(places, ("ext4", "vfat"), strict=True):
        part = made(person, folder, fstype, size)
        with path.open("r+b") as file:
            file.seek(start)
            file.write(part.read_bytes())
        part.unlink()
    return person.give(path), places


@pytest.mark.parametrize("number", [1, 2])
def test_a_neighbour_and_the_table_keep_every_byte(
    person: Person, folder: Path, number: int, program: Callable[[str], str]
) -> None:
    program("sfdisk")
    disk, places = partitioned(person, folder)
    start, size = places[number - 1]
    others = [(0, start), (start + size, -1)]
    before = [digest(disk, *place) for place in others]
    person.run("mount", "--write", disk, folder / "m", "--partition", str(number)).ok()
    work(person, folder / "m")
    person.run("unmount", folder / "m").ok()
    assert [digest(disk, *place) for place in others] == before
    own = folder / "own.img"
    own.write_bytes(disk.read_bytes()[start : start + size])
    check(own, ("ext4", "vfat")[number - 1])


def test_of_several_those_that_can_be_written_to_are(root: Person, folder: Path, image: Image) -> None:
    copy = Path(shutil.copy(image("disk-gpt"), folder / "copy.img"))
    done = root.run("mount", "--write", "--json", copy, folder / "m").ok()
    try:
        access = {mount["fstype"]: mount["access"] for mount in done.json()["mounts"]}
        why = {mount["fstype"]: mount["read_only"] for mount in done.json()["mounts"]}
        assert "read-write" in access.values()
        for fstype, how in access.items():
            assert ("cannot be written to" in why[fstype]) == (how == "read-only")
            assert done.err.count(why[fstype]) == 1 or not why[fstype]
    finally:
        root.run("unmount", folder / "m").ok()


# --- errors ---------------------------------------------------------------------------------------------------------
def test_formats_and_types_that_are_only_read(
    person: Person, folder: Path, image: Image, program: Callable[[str], str]
) -> None:
    source, target = folder / "a.qcow2", folder / "m"
    sh(program("qemu-img"), "convert", "-O", "qcow2", image("ext4"), source)
    refused(person, ExitCode.SOURCE, "a qcow2 image is only read", "mount", "--write", person.give(source), target)
    copy = person.give(Path(shutil.copy(image("romfs"), folder / "romfs.img")))
    refused(person, ExitCode.SOURCE, "romfs is only read", "mount", "--write", copy, target)
    assert not target.exists()


def test_who_may_not_write(user: Person, folder: Path, image: Image) -> None:
    copy = Path(shutil.copy(image("ext4"), folder / "copy.img"))
    copy.chmod(0o444)
    refused(user, ExitCode.DEPENDENCY, "and not write to it", "mount", "--write", copy, folder / "m")


def test_a_medium_that_is_write_protected(root: Person, folder: Path, image: Image, device: Path) -> None:
    copy = Path(shutil.copy(image("ext4"), folder / "copy.img"))
    with bound(copy, copy):
        sh("mount", "-o", "remount,bind,ro", copy)
        refused(root, ExitCode.SOURCE, "is write-protected", "mount", "--write", copy, folder / "m")
    refused(root, ExitCode.SOURCE, "is write-protected", "mount", "--write", device, folder / "m")


def test_an_image_that_the_kernel_has(root: Person, folder: Path, image: Image, program: Callable[[str], str]) -> None:
    losetup, copy = program("losetup"), Path(shutil.copy(image("ext4"), folder / "copy.img"))
    made = subprocess.run([losetup, "--find", "--show", copy], check=True, capture_output=True, text=True)
    loop = made.stdout.strip()
    try:
        refused(root, ExitCode.SOURCE, f"as {loop}", "mount", "--write", copy, folder / "m")
    finally:
        sh(losetup, "--detach", loop)


def test_an_image_that_somebody_writes_to(person: Person, folder: Path, program: Callable[[str], str]) -> None:
    image = made(person, folder, "ext4")
    qemu_io = program("qemu-io")
    command = [qemu_io, "-f", "raw", str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("read 0 512\n")
        process.stdin.flush()
        while "read 512/512" not in process.stdout.readline():
            assert process.poll() is None
        refused(person, ExitCode.SOURCE, "another program writes to it", "mount", "--write", image, folder / "m")
        process.communicate("quit\n", timeout=DEADLINE)


def test_what_is_mounted_already_in_another_way(person: Person, folder: Path) -> None:
    image, target = made(person, folder, "ext4"), folder / "m"
    with mounted(person, image, target):
        refused(person, ExitCode.TARGET, f"already mounted on {target}, read-only", "mount", "--write", image)
    with mounted(person, "--write", image, target):
        refused(person, ExitCode.TARGET, f"already mounted on {target}, read-write", "mount", image)
        done = person.run("mount", "--write", image).ok()
        assert "is already mounted on" in done.out
        refused(person, ExitCode.TARGET, "read-write", "mount", image, "--partition", "0")


def test_somebody_elses_mount(root: Person, user: Person, folder: Path) -> None:
    image = made(user, folder, "ext4")
    with mounted(user, "--write", image, folder / "m"):
        refused(root, ExitCode.SOURCE, "mounted for writing already", "mount", "--write", image)


# --- what holds it ----------------------------------------------------------------------------------------------------
def open_for_writing(pid: int, image: Path) -> bool:
    """Whether a process, as this machine's kernel tells it, has the image open for writing."""
    links: list[Path] = []
    with suppress(OSError):  # it has ended
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    for link in links:
        try:
            if os.path.samestat(link.stat(), image.stat()):
                words = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()
                if int(words[words.index("flags:") + 1], 8) & os.O_ACCMODE != os.O_RDONLY:
                    return True
        except OSError:
            continue
    return False


def test_only_one_box_can_write(root: Person, folder: Path) -> None:
    image = made(root, folder, "ext4")
    with mounted(root, "--write", image, folder / "m"):
        quiet = root.records_of(image)
        assert [pid for pid in running() if open_for_writing(pid, image)] == [quiet["supervisor"]]
        work(root, folder / "m")
        record = root.records_of(image)
        [server] = record["writing"]
        writers = {pid for pid in running() if open_for_writing(pid, image)}
        assert writers <= {quiet["supervisor"], server, *descendants(server)}
        assert len(writers) > 1
        told: list[dict[str, Any]] = root.run("doctor", "--sandbox", "--json").ok().json()
        roles = {each["role"] for medium in told for each in medium["processes"]}
        assert {"writing", "appliance", "session", "supervisor"} <= roles
        assert "one process in a box of its own" in root.run("doctor", "--sandbox").ok().out
