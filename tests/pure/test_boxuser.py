"""Each medium of root's has a user id of its own, whoever starts when, and whoever was killed."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mountsafe import boxuser
from tests.conftest import missing

# Takes an id as the process of the number argv[2] would, says it, and keeps it until its input ends.
HOLDER = """
import os, sys
from pathlib import Path
from mountsafe import boxuser
boxuser.LOCKS = Path(sys.argv[1])
os.getpid = lambda: int(sys.argv[2])
print(boxuser.reserved(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        missing("root")


@contextmanager
def holders(locks: Path, count: int) -> Iterator[list[tuple[subprocess.Popen[str], int]]]:
    """Processes that start at the same time, and would all take the same number first."""
    command = [sys.executable, "-c", HOLDER, str(locks), "4711"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    try:
        yield [(each, int(each.stdout.readline())) for each in started]
    finally:
        for each in started:
            each.kill()
            each.communicate()


def test_nobody_has_the_same_at_a_time(tmp_path: Path) -> None:
    with holders(tmp_path / "uids", 8) as held:
        uids = {uid for _, uid in held}
    assert len(uids) == 8
    assert uids <= set(boxuser.UIDS)


def test_one_whose_holder_was_killed_is_free_when_its_processes_are_gone(tmp_path: Path) -> None:
    with holders(tmp_path, 1) as [(holder, uid)]:
        with subprocess.Popen(["sleep", "60"], user=uid, group=uid, extra_groups=[]) as left:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with holders(tmp_path, 1) as [(_, other)]:
                assert other != uid
            left.kill()
        with holders(tmp_path, 1) as [(_, again)]:
            assert again == uid


def test_an_account_keeps_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    assert boxuser._has_account(pwd.getpwnam("daemon").pw_uid)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert boxuser._has_account(0)  # the group
    assert not boxuser._has_account(boxuser.UIDS[-1])
