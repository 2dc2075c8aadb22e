"""A guest that lies for a whole conversation, under a real session and a real mount that programs use.

It stays up or comes to a clean end: every call returns within its deadline, memory is bounded, unmounting works. For
longer than the few seconds of a usual run: MOUNTSAFE_LYING_SECONDS=60 MOUNTSAFE_LYING_SEEDS=50 ./dev test tests/fuse.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mountsafe.errors import UserError
from mountsafe.process import descendants
from mountsafe.sandbox import PYTHON
from tests.fuse.conftest import PATIENCE, Mounted, Person, Stage
from tests.fuse.liar import TRICKS

SECONDS = float(os.environ.get("MOUNTSAFE_LYING_SECONDS", "1"))
SEEDS = int(os.environ.get("MOUNTSAFE_LYING_SEEDS", "3"))
CALL = 4.0  # seconds in which the kernel is answered, below
# As mountsafe's limits, for a test that has no hours: what is waited for, and what is remembered.
LIMITS = {
    "REQUEST_DEADLINE": 1.0,
    "PROBE_DEADLINE": 2.0,
    "MOUNT_DEADLINE": 2.0,
    "CALL_DEADLINE": CALL,
    "EXTENT_PATIENCE": 1.0,
    "MAX_DIRECTORY_ENTRIES": 4_000,
    "INDEX_ENTRIES": 2_000,
    "PREFETCH_ENTRIES": 1_000,
    "MAX_INDEX_ENTRIES": 10_000,
    "MAX_EXTENTS_PER_FILE": 20_000,
    "MAX_EXTENTS": 50_000,
}
MOUNTED = 4  # good answers with which a mount comes to be
COME_TO_BE = range(3)  # seeds with which no lie is told before that
TRIES = 20  # a good answer may come too late for these deadlines, where all is busy
SAID = ("impossible", "endless", "loop")  # lies that do not end the stream
QUESTIONS = 4  # of the kernel, for one system call: two names on the way, opening, reading ahead
BUSY = 10  # times longer may all of it take where others have the processors
# Of the session process: Python takes 25 MiB, 10,000 entries 10, chunks of files 24, extents 5, four questions for such
# 4 each. Beside that a KiB for each folder that the kernel was told of: it may hold it, and then it is kept.
MEMORY_KIB = 80 << 10
ONLY_USER = pytest.mark.parametrize("person", ["user"], indirect=True)


@pytest.fixture(scope="session")
def hasty(repository: Path) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="mountsafe-lying-") as folder:
        Path(folder).chmod(0o755)
        stage = Stage(Path(folder), repository, LIMITS)
        try:
            yield stage
        finally:
            stage.close()


def most_memory(mounted: Mounted) -> int:
    """The most that the session process ever had, in KiB; 0 if it has ended."""
    most = 0
    for pid in descendants(mounted.session):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            most = max(most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return most


def poke(mounted: Mounted, stage: Stage, seed: int) -> dict[str, object]:
    """Use the mount for a while; a call that never returns fails here."""
    script = stage.base / "program/tests/fuse/poke.py"
    command = [PYTHON, str(script), str(mounted.target), str(seed), str(SECONDS)]
    process = mounted.person.start(command, stdout=subprocess.PIPE)
    try:
        out, _ = process.communicate(timeout=SECONDS + 5 * PATIENCE)
    except subprocess.TimeoutExpired:
        mounted.close()  # or nobody can end the one who waits
        process.kill()
        raise
    assert process.returncode == 0
    found: dict[str, object] = json.loads(out)
    return found


def mounted_with(stage: Stage, person: Person, lies: dict[str, Any], tries: int = 1) -> Mounted | None:
    """Mount; None if it is refused each time, of which nothing is left. `lies`: what `liar.Peer` is told."""
    for _ in range(tries):
        mounted, report = stage.begin(person, stage.base, lies=lies)
        with report:
            try:
                mounted.follow(report)
            except UserError:
                mounted.assert_nothing_left()
            else:
                return mounted
    return None


def converse(stage: Stage, mounted: Mounted, seed: int) -> None:
    """Use it, unmount."""
    found = poke(mounted, stage, seed)
    assert float(str(found["slowest"])) < BUSY * QUESTIONS * CALL, found
    assert most_memory(mounted) < MEMORY_KIB + int(str(found["told"])), found
    if mounted.process.poll() is None:
        with suppress(UserError):  # it may end by itself in this moment
            mounted.unmount()
    mounted.assert_nothing_left()


@ONLY_USER
@pytest.mark.parametrize("trick", TRICKS)
def test_one_lie_again_and_again(hasty: Stage, person: Person, trick: str) -> None:
    lies = {"seed": 1, "trick": trick, "rate": 0.95 if trick in SAID else 0.2, "after": MOUNTED}
    mounted = mounted_with(hasty, person, lies, TRIES)
    assert mounted is not None, f"{TRIES} times no answer in {LIMITS['REQUEST_DEADLINE']} s"
    converse(hasty, mounted, 1)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_lies_now_and_then(hasty: Stage, person: Person, seed: int) -> None:
    lies = {"seed": seed, "trick": "", "rate": 0.02 + seed % 5 * 0.05, "after": seed % 7}
    mounted = mounted_with(hasty, person, lies, TRIES if seed in COME_TO_BE else 1)
    assert mounted is not None or seed not in COME_TO_BE, "it was refused each time"
    if mounted is not None:
        converse(hasty, mounted, seed)
