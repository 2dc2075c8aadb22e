"""What becomes of changes when something that they go through dies, is full or fails: the rest of `test_write.py`."""

import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.vm import kills
from tests.vm.command.stage import Person, Stage, sh
from tests.vm.command.test_write import MIB, content, ended, made, open_for_writing
from tests.vm.command.traces import PATIENCE, Traces, running

WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, b"kept" * 20_000)
os.fsync(fd)
folder = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
os.fsync(folder)
print("synced")
"""
KEPT = b"kept" * 20_000


def written(person: Person, path: Path) -> None:
    """Write a file, and have it and its name on the medium."""
    assert person.python(WRITE, path).ok().out == "synced\n"


# --- what it goes through is killed -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def patient(stage: Stage) -> Path:
    """A copy that starts a virtual machine again however often it died."""
    return stage.variant("patient", kills.PATIENT)


MOMENTS = {"cp": 40, "tar": 70, "mv": 20, "rm": 30}  # after which line of what a step tells


@pytest.mark.parametrize("fstype", kills.MAKE)
def test_a_virtual_machine_that_dies_loses_nothing(
    root: Person, folder: Path, patient: Path, fstype: str, program: Callable[[str], str]
) -> None:
    for name in (kills.MAKE[fstype][0], kills.CHECK[fstype][0]):
        program(name)
    mounted = kills.Mounted(root, folder, fstype, [str(patient)])
    mounted.prepare(seed=1, operations=30)
    before = Traces.taken(root)
    with mounted.mounted():
        for name, wanted in mounted.wanted.items():
            moment = MOMENTS.get(name, 0)
            done = kills.step(root, name, mounted.target, mounted.given, partial(at, moment, mounted.kill))
            assert (done.code, done.words, done.killed) == (0, wanted.words, 1 if moment else 0), "\n".join(
                [name, *mounted.log()]
            )
            assert name != "mixed" or done.said == wanted.said
        assert mounted.compare() == []
    before.assert_same(root)
    assert mounted.check() == []


@pytest.mark.parametrize("fstype", ["ext4", "vfat"])
def test_a_writing_server_that_dies_loses_nothing(root: Person, folder: Path, patient: Path, fstype: str) -> None:
    mounted = kills.Mounted(root, folder, fstype, [str(patient)])
    mounted.prepare(seed=1, operations=1)
    with mounted.mounted():
        for name, wanted in mounted.wanted.items():
            moment = MOMENTS.get(name, 0)
            kill = partial(killed, mounted)
            done = kills.step(root, name, mounted.target, mounted.given, partial(at, moment, kill))
            assert (done.code, done.words, done.killed) == (0, wanted.words, 1 if moment else 0), "\n".join(
                [name, *mounted.log()]
            )
        assert mounted.compare() == []
    assert mounted.check() == []


def at(moment: int, kill: Callable[[], bool], line: int) -> bool:
    """Kill after a line; return whether that was done."""
    return line == moment and kill()


def killed(mounted: kills.Mounted) -> bool:
    """Kill what has the image open for writing, but for the supervisor; return whether there was something."""
    supervisor = mounted.record["supervisor"]
    found = [pid for pid in running() if pid != supervisor and open_for_writing(pid, mounted.image)]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


@pytest.mark.parametrize("fstype", ["ext4", "vfat"])
@pytest.mark.parametrize("who", ["supervisor", "session"])
def test_what_was_synced_is_on_the_medium_whoever_is_killed(root: Person, folder: Path, fstype: str, who: str) -> None:
    image, target = made(root, folder, fstype), folder / "m"
    before = Traces.taken(root)
    root.run("mount", "--write", image, target).ok()
    written(root, target / "first")
    written(root, target / "second")
    root.run(target / "third", program=["touch"]).ok()  # which may be lost
    record = root.records_of(image)
    os.kill(record["supervisor"] if who == "supervisor" else record["mounts"][0]["session"], signal.SIGKILL)
    ended(record["supervisor"])
    root.run("list").ok()
    before.assert_same(root, PATIENCE)
    if fstype == "ext4":  # a power cut: whoever mounts it next replays its journal
        subprocess.run(["e2fsck", "-fp", image], capture_output=True, check=False)
    for name in ("first", "second"):
        assert content(image, fstype, name) == KEPT
    root.run("mount", "--write", image, target).ok()  # and it can be written to again
    written(root, target / "fourth")
    root.run("unmount", target).ok()
    assert content(image, fstype, "fourth") == KEPT
    sh(*kills.CHECK[fstype], image)


# --- the medium ---------------------------------------------------------------------------------------------------
FILL = """
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
try:
    while True:
        os.write(fd, bytes(1 << 20))
except OSError as error:
    print(errno.errorcode[error.errno])
os.ftruncate(fd, 0)
os.pwrite(fd, b"there is room again", 0)
os.fsync(fd)
"""


@pytest.mark.parametrize("fstype", ["ext4", "vfat"])
def test_a_full_medium_says_so_where_it_happens(root: Person, folder: Path, fstype: str) -> None:
    image, target = made(root, folder, fstype, 24 * MIB), folder / "m"
    root.run("mount", "--write", image, target).ok()
    written(root, target / "before")
    assert root.python(FILL, target / "full").ok().out == "ENOSPC\n"
    root.run("unmount", target).ok()
    assert content(image, fstype, "before") == KEPT
    assert content(image, fstype, "full") == b"there is room again"
    sh(*kills.CHECK[fstype], image)


def test_a_virtual_machine_that_does_not_answer_hangs_no_unmount(root: Person, folder: Path) -> None:
    """By force it ends within its deadline, and says nothing is left."""
    image, target = made(root, folder, "ext4"), folder / "m"
    before = Traces.taken(root)
    record = root.run("mount", "--write", "--json", image, target).ok().json()
    written(root, target / "file")
    for pid in kills.writing_machines(record["supervisor"], [record["virtual_machine"]]):
        os.kill(pid, signal.SIGSTOP)
    with root.start(target / "hangs", program=["touch"]) as process:
        root.run("unmount", "--force", target)
        process.wait(60)
    before.assert_same(root, PATIENCE)
    assert content(image, "ext4", "file") == KEPT
