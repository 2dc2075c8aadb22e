"""Media that are not raw, from the command line: what is told of them, what is refused, and what when a part dies."""

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from images import images
from mountsafe.errors import ExitCode
from tests import containers
from tests.vm import qemu_img
from tests.vm.command.stage import DEADLINE, Person, Stage
from tests.vm.command.test_errors import refused
from tests.vm.command.test_faults import ASK, content, expected, kill, questions, wait_for
from tests.vm.command.test_mount import Image, check_tree, mounted
from tests.vm.command.traces import Traces, command, descendants, state


@pytest.fixture
def contained(image: Image, folder: Path, program: Callable[[str], str]) -> Callable[[str, str], Path]:
    """A function that returns an image of images/ in a format; root's tests get files that root alone may read."""
    program("qemu-img")

    def convert(name: str, format_: str) -> Path:
        made = folder / f"{name}.{format_}"
        qemu_img.convert(image(name), format_, made)
        made.chmod(0o600)
        os.chown(made, folder.stat().st_uid, -1)
        return made

    return convert


def storage(person: Person, source: Path) -> dict[str, int]:
    """The processes of the container process's box."""
    outer: int = person.records_of(source)["container"]
    found = {command(pid).split()[0].rpartition("/")[2]: pid for pid in descendants(outer)}
    return {"outer": outer, "serve": found["python3"], "qemu": found["qemu-system-x86_64"]}


# --- what is told ---------------------------------------------------------------------------------------------------
def test_a_container_is_mounted_and_told(person: Person, folder: Path, contained: Callable[[str, str], Path]) -> None:
    source = contained("ext4", "qcow2")
    with mounted(person, source, folder / "m") as record:
        assert record["format"] == "qcow2"
        assert record["mounts"][0]["direct_reads"]
        assert person.records_of(source)["container"] == record["container"] > 0
        check_tree(person, folder / "m", images.expected("ext4"))
        again = person.run("mount", "--json", source, folder / "again").ok().json()
        assert (again["target"], again["container"]) == (record["target"], record["container"])


def test_inspect_tells_of_the_disk_inside(user: Person, contained: Callable[[str, str], Path], image: Image) -> None:
    source = contained("disk-mbr", "vmdk")
    told = user.run("inspect", source, "--json").ok().json()
    assert told["format"] == "vmdk"
    assert told["size"] == image("disk-mbr").stat().st_size
    plain = user.run("inspect", image("disk-mbr"), "--json").ok().json()
    for volume in told["volumes"] + plain["volumes"]:  # a container is only read
        volume.pop("writable", None), volume.pop("read_only", None)
    assert told["volumes"] == plain["volumes"]
    assert plain["format"] == "raw"
    assert "vmdk, a disk of 11.0 MiB" in user.run("inspect", source).ok().out


def test_what_it_is_taken_for_can_be_said(user: Person, folder: Path, contained: Callable[[str, str], Path]) -> None:
    source = contained("ext4", "vdi")
    refused(user, ExitCode.SOURCE, "no file system was found", "mount", source, folder / "m", "--format", "raw")
    refused(user, ExitCode.SOURCE, "not an image of that format", "mount", source, folder / "m", "--format", "qcow2")
    with mounted(user, source, folder / "m", "--format", "vdi"):
        check_tree(user, folder / "m", images.expected("ext4"))


def test_a_device_is_raw_unless_it_is_said(
    root: Person, folder: Path, contained: Callable[[str, str], Path], program: Callable[[str], str]
) -> None:
    losetup = program("losetup")
    source = contained("ext4", "qcow2")
    done = subprocess.run([losetup, "-f", "--show", "-r", source], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        refused(root, ExitCode.SOURCE, "no file system was found", "mount", device, folder / "m")
        with mounted(root, Path(device), folder / "m", "--format", "qcow2"):
            check_tree(root, folder / "m", images.expected("ext4"))
    finally:
        subprocess.run([losetup, "-d", device], check=True)


# --- hostile ones ---------------------------------------------------------------------------------------------------
CANARY = "canary-of-the-host"
FLAT = 'RW 2048 FLAT "{}" 0'
OPTION = '{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}'
NAMING: dict[str, Callable[[str], bytes]] = {
    "qcow2-backing": lambda name: containers.qcow2(backing=name.encode()),
    "qcow2-2-backing": lambda name: containers.qcow2(backing=name.encode(), version=2),
    "qcow2-backing-json": lambda name: containers.qcow2(backing=f"json:{OPTION.format(name)}".encode()),
    "qcow2-backing-nbd": lambda name: containers.qcow2(backing=b"nbd:127.0.0.1:10809"),
    "qcow2-data-file": lambda name: containers.qcow2(features=4, data_file=name.encode()),
    "vmdk-text": lambda name: containers.vmdk_text(FLAT.format(name), kind="monolithicFlat").encode(),
    "vmdk-text-inside": lambda name: containers.vmdk(0, FLAT.format(name), kind="monolithicFlat"),
    "vmdk-extent": lambda name: containers.vmdk(extents=f'RW 2048 SPARSE "{name}"'),
    "vmdk-parent": lambda name: containers.vmdk(
        extents=f'RW 2048 SPARSE "a"\nparentFileNameHint="{name}"', parent="1234"
    ),
    "vhd-differencing": lambda name: containers.vhd(4) + bytes(1 << 20) + containers.vhd(4),
    "vhdx-parent": lambda name: containers.vhdx(parent=True),
}


@pytest.mark.parametrize("name", NAMING)
def test_a_container_that_names_another_file_is_refused(user: Person, folder: Path, name: str) -> None:
    canary = folder / "canary"
    canary.write_text(CANARY * 10000)
    source = folder / "image"
    source.write_bytes(NAMING[name](str(user.give(canary))))
    before = canary.stat().st_atime_ns
    os.utime(canary, ns=(0, 0))  # so that even relatime would tell of a reader
    done = refused(user, ExitCode.SOURCE, "cannot be opened", "mount", user.give(source), folder / "m")
    assert "qemu-img convert" in done.json()["error"]["hint"]
    assert CANARY not in done.out + done.err
    assert canary.stat().st_atime_ns == 0 < before
    assert not (folder / "m").exists()


def test_a_header_that_is_not_looked_at_opens_nothing_either(user: Person, folder: Path, stage: Stage) -> None:
    """The look at headers is taken out: QEMU alone refuses, or sees no backing file. /usr is what the box does show."""
    blind = {"    if why is not None:\n": "    if False:\n"}
    program = [str(stage.variant("blind", {"container/serve.py": blind}))]
    name = "/usr/lib/os-release"
    for each in ("qcow2-data-file", "vmdk-text", "vmdk-text-inside"):
        source = folder / each
        source.write_bytes(NAMING[each](name))
        words = "Too many open files"
        refused(user, ExitCode.SOURCE, words, "mount", user.give(source), folder / "m", program=program)
    source = folder / "backing"
    source.write_bytes(containers.qcow2(backing=name.encode()))
    refused(user, ExitCode.SOURCE, "no file system", "mount", user.give(source), folder / "m", program=program)


def damaged(data: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


QCOW2 = containers.qcow2()
DAMAGED = {
    "cut": QCOW2[:100],
    "cut-vmdk": containers.vmdk()[:600],
    "huge-l1": containers.qcow2(l1_entries=0x7FFFFFFF),
    "l1-beyond-the-end": containers.qcow2(size=1 << 50, l1_entries=1 << 21),
    "tiny-clusters": damaged(QCOW2, 20, ">I", 1),
    "giant-clusters": damaged(QCOW2, 20, ">I", 63),
    "refcounts-far-away": damaged(QCOW2, 48, ">Q", (1 << 62) + 512),
    "header-of-4-gib": damaged(QCOW2, 100, ">I", 0xFFFFFFF8),
    "snapshots": damaged(QCOW2, 60, ">I", 0xFFFFFFFF),
    "unknown-features": damaged(QCOW2, 72, ">Q", 1 << 60),
    "no-disk": containers.qcow2(size=0),
    "vdi": containers.vdi(),
    "vhd": containers.vhd() + bytes(1 << 20) + containers.vhd(),
    "vhdx": containers.vhdx(),
    "vmdk-grains": damaged(containers.vmdk(), 20, "<Q", 1 << 62),
    "vmdk-tables": damaged(containers.vmdk(), 44, "<I", 0xFFFFFFFF),
}


def test_damaged_containers_are_refused(user: Person, folder: Path) -> None:
    for name, data in DAMAGED.items():
        source = folder / name
        source.write_bytes(data)
        refused(user, ExitCode.SOURCE, "", "mount", user.give(source), folder / "m")  # and not by a deadline


def test_a_huge_disk_that_holds_nothing(user: Person, folder: Path, program: Callable[[str], str]) -> None:
    source = folder / "huge.qcow2"
    subprocess.run([program("qemu-img"), "create", "-q", "-f", "qcow2", source, "60T"], check=True)
    refused(user, ExitCode.SOURCE, "no file system was found", "mount", user.give(source), folder / "m")
    assert user.run("inspect", source, "--json").ok().json()["size"] == 60 << 40


def unreadable(path: Path, cluster: int) -> None:
    """Have a cluster of a qcow2 image (of 64 KiB; of the first 512 MiB) say that it is compressed, where nothing is."""
    with path.open("r+b") as file:
        file.seek(40)
        file.seek(*struct.unpack(">Q", file.read(8)))
        (second,) = struct.unpack(">Q", file.read(8))
        file.seek((second & 0x00FFFFFFFFFFFE00) + 8 * cluster)
        file.write(struct.pack(">Q", 1 << 62))


def test_a_cluster_that_cannot_be_read(user: Person, folder: Path, contained: Callable[[str, str], Path]) -> None:
    """Its bytes are an error, and the rest goes on, through the virtual machine as well: QEMU's server hangs up."""
    source, top = contained("squashfs", "qcow2"), folder / "m"
    unreadable(source, 3)  # no place where the guest looks for what is on it
    with mounted(user, source, top) as record:
        assert not record["mounts"][0]["direct_reads"]
        machine = user.records_of(source)["virtual_machine"]
        bad = []
        for entry in [each for each in images.expected("squashfs") if each.kind == "file"]:
            done = user.run(top / os.fsdecode(entry.path), program=["sha256sum"])
            if done.code:
                assert "Input/output error" in done.err
                bad.append(entry.path)
            else:
                assert done.out.split()[0] == entry.sha256
        assert bad == [b"random.bin"]
        assert user.records_of(source)["virtual_machine"] == machine


# --- a part dies ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("victim", ["qemu", "serve", "outer"])
def test_a_container_process_that_dies(
    person: Person, folder: Path, contained: Callable[[str, str], Path], victim: str
) -> None:
    """It is started again, for reads and for the virtual machine, and a reader notices nothing."""
    before = Traces.taken(person)
    source, top = contained("ext4", "qcow2"), folder / "m"
    person.run("mount", source, top).ok()
    reading = "import sys\nwhile True:\n    open(sys.argv[1], 'rb').read()\n    print('again', flush=True)"
    with person.start(top / "random.bin", program=["/usr/bin/python3", "-c", reading]) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "again\n"
        found = storage(person, source)
        machine: int = person.records_of(source)["virtual_machine"]
        kill(found[victim])
        for pid in found.values():
            wait_for(lambda pid=pid: state(pid) in ("", "Z", "X"))  # type: ignore[misc]
        assert content(person, top / "random.bin") == expected("random.bin")
        person.run(top / "documents", program=["ls", "-lR"]).ok()
        assert content(person, top / "README.txt") == expected("README.txt")
        wait_for(lambda: state(machine) in ("", "Z", "X"))  # it would see errors alone
        person.python(ASK, next(iter(questions(top)))).ok()
        wait_for(lambda: reader.stdout.readline() == "again\n")  # type: ignore[union-attr]
        reader.kill()
    check_tree(person, top, images.expected("ext4"))
    person.run("unmount", top).ok()
    before.assert_same(person)


def test_a_container_process_that_keeps_dying_is_given_up(
    user: Person, folder: Path, contained: Callable[[str, str], Path]
) -> None:
    source, top = contained("ext4", "qcow2"), folder / "m"
    user.run("mount", source, top).ok()
    read = ["dd", "iflag=direct", "bs=4096", "of=/dev/null", f"if={top / 'random.bin'}"]
    end = time.monotonic() + DEADLINE
    while user.run(program=read).code == 0:
        if (pid := user.records_of(source)["container"]) is not None:
            kill(pid)
        assert time.monotonic() < end
    assert user.run(top, program=["ls"]).code == 0  # what is known goes on
    user.run("unmount", top).ok()
    assert not top.exists()


def test_a_container_process_that_stops_answering(
    user: Person, folder: Path, contained: Callable[[str, str], Path], stage: Stage
) -> None:
    hasty = stage.variant("hasty-disk", {"limits.py": {"REQUEST_DEADLINE = 30.0": "REQUEST_DEADLINE = 3.0"}})
    source, top = contained("ext4", "vhdx"), folder / "m"
    user.run("mount", source, top, program=[str(hasty)]).ok()
    check_tree(user, top, images.expected("ext4"))
    found = storage(user, source)
    os.kill(found["qemu"], signal.SIGSTOP)
    read: dict[str, Any] = {"program": ["dd", "iflag=direct", "bs=4096", "of=/dev/null", f"if={top / 'random.bin'}"]}
    assert user.run(**read).code == 1  # an error, and no hang
    user.run(**read).ok()  # it had its chance
    assert state(found["qemu"]) in ("", "Z", "X")
    assert storage(user, source)["qemu"] != found["qemu"]
    user.run("unmount", top).ok()


@pytest.mark.parametrize("doing", ["opening the qcow2 image", "starting the virtual machine", "mounting"])
def test_ctrl_c(person: Person, folder: Path, contained: Callable[[str, str], Path], doing: str) -> None:
    source = contained("ext4", "qcow2")
    before = Traces.taken(person)
    with person.start("mount", source, folder / "m") as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith(doing):
            assert line
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    assert "Traceback" not in out + err
    assert process.returncode == ExitCode.INTERRUPTED
    before.assert_same(person)
    assert not (folder / "m").exists()


def test_a_supervisor_that_dies(user: Person, folder: Path, contained: Callable[[str, str], Path]) -> None:
    """The container process dies with it."""
    before = Traces.taken(user)
    record = user.run("mount", contained("ext4", "vdi"), folder / "m", "--json").ok().json()
    kill(record["supervisor"])
    wait_for(lambda: not before.news(user).get("processes"))
    user.run("list").ok()
    wait_for(lambda: not (folder / "m").exists())
