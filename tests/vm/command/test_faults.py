"""Parts of a mount that are killed or stop answering while it is in use: nothing hangs, and nothing is left."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode
from mountsafe.limits import DEATHS
from tests.vm.command.stage import Person, Stage
from tests.vm.command.traces import PATIENCE, Traces, children, command, descendants, state

Image = Callable[[str], Path]
BOUND = 120.0  # seconds for what is done in milliseconds, on a busy machine

# Each needs an answer of the agent that no earlier one has brought.
ASK = "import os, sys, time; print(os.listxattr(sys.argv[1]))"


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + BOUND
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state(pid) in ("", "Z", "X"))


def machine(person: Person, source: Path) -> dict[str, int]:
    """The processes of the virtual machine that `list` names: outer and inner box, the appliance process, QEMU."""
    outer: int = person.records_of(source)["virtual_machine"]
    [inner] = children(outer)
    found = {command(pid).split()[0].rpartition("/")[2]: pid for pid in descendants(inner)}
    return {"outer": outer, "inner": inner, "serve": found["python3"], "qemu": found["qemu-system-x86_64"]}


def questions(top: Path) -> list[Path]:
    """Files that were not asked for their extended attributes yet."""
    entries = (entry.path.decode() for entry in images.expected("ext4") if entry.kind == "file")
    return [top / name for name in entries if name.startswith("many/")]


def content(person: Person, path: Path) -> str:
    return person.run(path, program=["sha256sum"]).ok().out.split()[0]


def expected(name: str) -> str:
    [entry] = [entry for entry in images.expected("ext4") if entry.path == name.encode()]
    assert entry.sha256 is not None
    return entry.sha256


def test_a_virtual_machine_that_dies(person: Person, folder: Path, image: Image) -> None:
    """It is replaced when it is needed; after `DEATHS` in a minute it is not, and what is known goes on."""
    source, top = image("ext4"), folder / "m"
    person.run("mount", source, top).ok()
    asking = iter(questions(top))
    person.python(ASK, next(asking)).ok()
    # A reader all the while: its file is longer than the kernel reads ahead, and it starts over and over.
    reading = "import sys\nwhile True:\n    open(sys.argv[1], 'rb').read()\n    print('again', flush=True)"
    with person.start(top / "random.bin", program=["/usr/bin/python3", "-c", reading]) as reader:
        assert reader.stdout is not None
        for victim in ("qemu", "outer", "inner")[:DEATHS]:
            before = machine(person, source)
            kill(before[victim])
            for pid in before.values():
                wait_for(lambda pid=pid: state(pid) in ("", "Z", "X"))  # type: ignore[misc]
            assert content(person, top / "random.bin") == expected("random.bin")
            assert content(person, top / "README.txt") == expected("README.txt")
            assert reader.stdout.readline() == "again\n"
            if victim != "inner":
                person.python(ASK, next(asking)).ok()
                assert person.records_of(source)["virtual_machine"] not in before.values()
        refusal = person.python(ASK, next(asking))
        assert os.strerror(errno.EIO) in refusal.err
        assert person.records_of(source)["virtual_machine"] is None
        assert content(person, top / "random.bin") == expected("random.bin")
        reader.kill()
    person.run("unmount", top).ok()


@pytest.mark.parametrize("victim", ["outer", "inner"])
def test_a_session_process_that_dies(person: Person, folder: Path, image: Image, victim: str) -> None:
    source, top = image("ext4"), folder / "m"
    record = person.run("mount", source, top, "--json").ok().json()
    session = record["mounts"][0]["session"]
    with person.start(top, program=["sh", "-c", 'cd "$0"; while cat many/* >/dev/null 2>&1; do :; done']) as reader:
        kill(session if victim == "outer" else children(session)[0])
        reader.communicate(timeout=BOUND)  # it gets an error, and no hang
    wait_for(lambda: not person.run("list", "--json").ok().json())
    assert person.run("unmount", top).code == ExitCode.NOT_MOUNTED
    wait_for(lambda: not top.exists())


def test_one_session_of_two_dies(person: Person, folder: Path, image: Image) -> None:
    """The others of the medium stay."""
    source = image("disk-mbr")
    record = person.run("mount", source, folder / "m", "--json").ok().json()
    assert len(record["mounts"]) == 3
    kill(record["mounts"][0]["session"])
    left = [mount["target"] for mount in record["mounts"][1:]]
    wait_for(lambda: [mount["target"] for mount in person.records_of(source)["mounts"]] == left)
    for target in left:
        assert person.run(target, program=["ls"]).ok().out
    person.run("unmount", source).ok()
    assert not (folder / "m").exists()


@pytest.mark.parametrize("clean_up", [["list"], ["unmount", "--all"], ["unmount", "m"]])
def test_a_supervisor_that_dies(person: Person, folder: Path, image: Image, clean_up: list[str]) -> None:
    """Everything below it dies with it; a user's mount goes at once, root's with the next command."""
    before = Traces.taken(person)
    record = person.run("mount", image("ext4"), folder / "m", "--json").ok().json()
    with person.start(folder / "m", program=["sh", "-c", "while cat $0/many/* >/dev/null 2>&1; do :; done"]) as reader:
        kill(record["supervisor"])
        reader.communicate(timeout=BOUND)
    wait_for(lambda: not before.news(person).get("processes"))
    if not person.is_root:
        wait_for(lambda: not before.news(person).get("mounts"))
    done = person.run(*clean_up, cwd=folder)
    assert done.code in (ExitCode.OK, ExitCode.NOT_MOUNTED)
    before.assert_same(person)
    assert not (folder / "m").exists()


def test_a_supervisor_that_dies_while_it_mounts(person: Person, folder: Path, image: Image) -> None:
    before = Traces.taken(person)
    with person.start("mount", image("disk-mbr"), folder / "m") as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("mounting"):
            pass
        [supervisor] = [
            pid for pid in children(process.pid) if "supervisor" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        kill(supervisor)
        _, err = process.communicate(timeout=BOUND)
    assert process.returncode == ExitCode.FAILURE
    assert "mountsafe: mounting ended" in err
    wait_for(lambda: not before.news(person).get("processes"))
    assert person.run("list", "--json").ok().json() == []
    before.assert_same(person)
    assert not (folder / "m").exists()


def test_a_mount_that_is_unmounted_by_other_means(person: Person, folder: Path, image: Image) -> None:
    before = Traces.taken(person)
    person.run("mount", image("romfs"), folder / "m").ok()
    person.run(folder / "m", program=["umount"] if person.is_root else ["fusermount3", "-u"]).ok()
    before.assert_same(person, PATIENCE)
    assert not (folder / "m").exists()


@pytest.fixture(scope="module")
def impatient(stage: Stage) -> Path:
    """The command line with a short deadline for the agent's answers."""
    return stage.variant("impatient", {"limits.py": {"REQUEST_DEADLINE = 30.0": "REQUEST_DEADLINE = 3.0"}})


def test_a_virtual_machine_that_stops_answering(person: Person, folder: Path, image: Image, impatient: Path) -> None:
    source, top = image("ext4"), folder / "m"
    person.run("mount", source, top, program=[str(impatient)]).ok()
    asking = iter(questions(top))
    person.python(ASK, next(asking)).ok()
    qemu = machine(person, source)["qemu"]
    os.kill(qemu, signal.SIGSTOP)
    with person.start(next(asking), program=["/usr/bin/python3", "-c", ASK]) as waiting:
        assert content(person, top / "random.bin") == expected("random.bin")  # others go on meanwhile
        _, err = waiting.communicate(timeout=BOUND)
    assert os.strerror(errno.ETIMEDOUT) in err
    wait_for(lambda: state(qemu) in ("", "Z", "X"))  # it had its chance
    person.python(ASK, next(asking)).ok()
    os.kill(machine(person, source)["qemu"], signal.SIGSTOP)
    person.run("unmount", top).ok()
    assert not top.exists()


def test_a_supervisor_that_stops_answering(user: Person, folder: Path, image: Image, stage: Stage) -> None:
    hasty = stage.variant("hasty", {"limits.py": {"STATUS_DEADLINE = 10.0": "STATUS_DEADLINE = 1.0"}})
    record = user.run("mount", image("romfs"), folder / "m", "--json").ok().json()
    os.kill(record["supervisor"], signal.SIGSTOP)
    try:
        done = user.run("list", "--json", program=[str(hasty)])
        assert done.code == ExitCode.FAILURE
        assert str(record["supervisor"]) in done.json()["error"]["hint"]
    finally:
        os.kill(record["supervisor"], signal.SIGCONT)
    user.run("unmount", "--all").ok()


def test_a_medium_that_shrinks(user: Person, folder: Path, image: Image) -> None:
    """The image is cut short under the mount: errors, not a hang, and it can be unmounted."""
    source = folder / "shrinking.img"
    source.write_bytes(image("ext4").read_bytes())
    user.run("mount", user.give(source), folder / "m").ok()
    os.truncate(source, 4096)
    done = user.run(folder / "m/random.bin", program=["cat"])
    assert done.code == 1
    assert os.strerror(errno.EIO) in done.err
    user.run("unmount", folder / "m").ok()
