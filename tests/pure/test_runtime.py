"""The folders of running mounts: whose they are, whether their supervisor lives, what is a leftover."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mountsafe.errors import UserError
from mountsafe.session import runtime
from mountsafe.session.runtime import RECORD, Runtime, base, runtimes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of records, in a place of one test alone."""
    path = tmp_path / "mounts"
    path.mkdir(mode=0o700)
    monkeypatch.setattr(runtime, "base", lambda: path)
    return path


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Be somebody else than root, as far as `base` can tell."""
    uid = os.getuid()

    def become(owner: int) -> None:
        lstat = Path.lstat

        def owned(path: Path) -> os.stat_result:
            status = list(lstat(path))
            status[4] = owner
            return os.stat_result(status)

        monkeypatch.setattr(os, "geteuid", lambda: uid or 1000)
        monkeypatch.setattr(Path, "lstat", owned)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    return become


# --- the record ----------------------------------------------------------------------------------------------------
def test_a_supervisor_that_lives_holds_its_record(place: Path) -> None:
    made = Runtime.create()
    made.write({"source": "a"})
    (found,) = runtimes()
    assert found.path == made.path
    assert found.alive()
    assert found.read() == {"source": "a"}
    assert made.path.stat().st_mode & 0o077 == 0
    made.remove()
    assert not list(place.iterdir())


def test_a_record_without_its_lock_is_a_leftover(place: Path) -> None:
    made = Runtime.create()
    os.close(made._lock or -1)
    (found,) = runtimes()
    assert not found.alive()
    found.remove()
    assert not list(runtimes())


def test_a_record_is_seen_only_when_it_is_locked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever looks at that moment would take it for a leftover, and remove it."""
    seen: list[bool] = []
    flock = fcntl.flock

    def looking(fd: int, how: int) -> None:
        seen.extend(found.path.exists() for found in runtimes())
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", looking)
    made = Runtime.create()
    assert seen == []
    monkeypatch.undo()
    assert made.alive()
    made.remove()


def test_a_shorter_record_replaces_a_longer_one(place: Path) -> None:
    made = Runtime.create()
    made.write({"source": "a" * 1000})
    made.write({"source": "b"})
    assert made.read() == {"source": "b"}
    made.remove()


@pytest.mark.parametrize("content", ["", "[]", "{", "1", "\udcff"])
def test_a_damaged_record_is_empty(place: Path, content: str) -> None:
    made = Runtime.create()
    (made.path / RECORD).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert made.read() == {}
    made.remove()


def test_each_mount_has_a_folder_of_its_own(place: Path) -> None:
    made = [Runtime.create() for _ in range(3)]
    assert len({runtime.path for runtime in made}) == len(list(runtimes())) == 3
    made[0].remove()
    made[0].remove()
    assert len(list(runtimes())) == 2
    for rest in made[1:]:
        rest.remove()


def test_a_removed_runtime_is_not_alive(place: Path) -> None:
    made = Runtime.create()
    other = Runtime(made.path)
    made.remove()
    assert not other.alive()
    assert other.read() == {}


# --- the place of all records --------------------------------------------------------------------------------------
def test_the_folder_is_made_for_its_user_alone(tmp_path: Path, user: Callable[..., None]) -> None:
    user(os.getuid() or 1000)
    assert base() == tmp_path / "mountsafe"
    assert base().stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, user: Callable[..., None]) -> None:
    (tmp_path / "mountsafe").mkdir(mode=0o700)
    user(4242)
    with pytest.raises(UserError, match="not a folder of yours alone"):
        base()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o711, 0o750])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, user: Callable[..., None], mode: int) -> None:
    user(os.getuid() or 1000)
    (tmp_path / "mountsafe").mkdir()
    (tmp_path / "mountsafe").chmod(mode)
    with pytest.raises(UserError):
        base()


@pytest.mark.parametrize("plant", [lambda path: path.symlink_to("/tmp"), lambda path: path.write_text("")])
def test_what_is_no_folder_is_refused(tmp_path: Path, user: Callable[..., None], plant: Callable[[Path], Any]) -> None:
    user(os.getuid() or 1000)
    plant(tmp_path / "mountsafe")
    with pytest.raises(UserError):
        base()
