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
}
MOUNTED = 4  # good answers with which a mount comes to be
SAID = ("impossible", "endless", "loop")  # lies that do not end the stream
QUESTIONS = 4  # of the kernel, for one system call: two names on the way, opening, reading ahead
MEMORY_KIB = 80 << 10  # of the session process: Python takes 25 MiB, 10,000 entries 10, chunks of files 24
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
        out, _ = process.communicate(timeout=SECONDS + PATIENCE)
    except subprocess.TimeoutExpired:
        mounted.close()  # or nobody can end the one who waits
        process.kill()
        raise
    assert process.returncode == 0
    found: dict[str, object] = json.loads(out)
    return found


def converse(stage: Stage, person: Person, **lies: Any) -> None:
    """Mount, use, unmount. `lies`: what `liar.Peer` is told."""
    mounted, report = stage.begin(person, stage.base, lies=lies)
    with report:
        try:
            mounted.follow(report)
        except UserError:  # it was refused
            mounted.assert_nothing_left()
            return
    found = poke(mounted, stage, lies["seed"])
    assert float(str(found["slowest"])) < QUESTIONS * CALL, found
    assert most_memory(mounted) < MEMORY_KIB
    if mounted.process.poll() is None:
        with suppress(UserError):  # it may end by itself in this moment
            mounted.unmount()
    mounted.assert_nothing_left()


@ONLY_USER
@pytest.mark.parametrize("trick", TRICKS)
def test_one_lie_again_and_again(hasty: Stage, person: Person, trick: str) -> None:
    converse(hasty, person, seed=1, trick=trick, rate=0.95 if trick in SAID else 0.2, after=MOUNTED)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_lies_now_and_then(hasty: Stage, person: Person, seed: int) -> None:
    converse(hasty, person, seed=seed, trick="", rate=0.02 + seed % 5 * 0.05, after=seed % 7)
