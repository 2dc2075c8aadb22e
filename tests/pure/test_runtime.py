"""The folders of running mounts: whose they are, whether their supervisor lives, what is a leftover."""

import fcntl
import json
import os
import pwd
import socket
import stat
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mountsafe.errors import UserError
from mountsafe.limits import CONTROL_WHOLE
from mountsafe.session import runtime
from mountsafe.session.record import Record
from mountsafe.session.running import running
from mountsafe.session.runtime import RECORD, RecordFault, Runtime, base, runtimes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of records, in a place of one test alone."""
    path = tmp_path / "mounts"
    path.mkdir(mode=0o700)
    monkeypatch.setattr(runtime, "base", lambda: path)
    return path


def record(source: str) -> Record:
    return Record(source, "/m", 1)


# --- the record ----------------------------------------------------------------------------------------------------
def test_a_supervisor_that_lives_holds_its_record(place: Path) -> None:
    made = Runtime.create()
    made.write(record("a"))
    (found,) = runtimes()
    assert found.path == made.path
    assert found.alive()
    assert found.read() == record("a")
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
    take = runtime._take

    def looking(fd: int, how: int) -> bool:
        if how == fcntl.LOCK_SH:  # it is being made
            had = take(fd, how)
            seen.extend(found.path.exists() for found in runtimes())
            return had
        return take(fd, how)

    monkeypatch.setattr(runtime, "_take", looking)
    made = Runtime.create()
    assert seen == []
    monkeypatch.undo()
    assert made.alive()
    made.remove()


def test_who_looks_while_one_is_made_removes_nothing(place: Path) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for found in runtimes():
                assert found.alive() or not (found.path / RECORD).exists()

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(200):
        made = Runtime.create()
        assert made.path.exists()
        made.write(record("a"))
        assert made.alive()
        assert made.read() == record("a")
        made.remove()
    stop.set()
    looking.join()


def test_a_reader_sees_the_old_record_or_the_new_one(place: Path) -> None:
    made = Runtime.create()
    records = [record("x" * 30000), record("y")]
    made.write(records[0])
    stop, seen = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            seen.append(made.read())

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(3000):
        made.write(records[number % 2])
    stop.set()
    looking.join()
    assert [found for found in seen if found not in records] == []
    made.remove()


def test_a_full_disk_leaves_the_old_record(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Runtime.create()
    made.write(record("a"))
    (made.path / f"{RECORD}.new").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot keep a record .* No space left"):
        made.write(record("b"))
    assert made.read() == record("a")
    made.write(record("c"))
    assert made.read() == record("c")
    made.remove()


def test_what_was_left_before_there_was_a_record_goes(place: Path) -> None:
    """A supervisor was killed between its first steps."""
    (place / ("0" * 12)).mkdir()
    (place / ("1" * 12)).mkdir()
    (place / ("1" * 12) / runtime.LOCK).touch()
    (place / ("1" * 12) / f"{RECORD}.new").write_text("{")
    (place / "of somebody").mkdir()
    living = Runtime.create()
    (living.path / RECORD).unlink()
    assert list(runtimes()) == []
    assert sorted(place.iterdir()) == sorted([living.path, place / "of somebody"])


def test_a_supervisor_of_an_older_version_is_known(place: Path) -> None:
    """It outlived an upgrade, and locks the record itself."""
    folder = place / ("0" * 12)
    folder.mkdir()
    fd = os.open(folder / "mount.json", os.O_RDWR | os.O_CREAT)
    os.write(fd, json.dumps({"source": "a", "target": "/m", "mounts": [], "created": [], "supervisor": 1}).encode())
    fcntl.flock(fd, fcntl.LOCK_EX)
    (found,) = runtimes()
    assert found.alive()
    assert found.read() == record("a")
    os.close(fd)
    assert not found.alive()
    (again,) = runtimes()
    again.remove()
    assert not list(place.iterdir())


def test_an_older_version_that_still_runs_takes_no_record_for_a_leftover(place: Path) -> None:
    """It removes what is called mount.json and is not locked."""
    made = Runtime.create()
    made.write(record("a"))
    assert not (made.path / "mount.json").exists()


def test_a_long_path_has_a_control_socket_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(runtime, "base", lambda: deep)
    made = Runtime.create()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as asking:
        with made.control() as address:
            listening.bind(address)
        listening.listen()
        with Runtime(made.path).control() as address:
            asking.connect(address)
    assert (made.path / runtime.CONTROL).is_socket()
    made.remove()


def test_a_shorter_record_replaces_a_longer_one(place: Path) -> None:
    made = Runtime.create()
    made.write(record("a" * 1000))
    made.write(record("b"))
    assert made.read() == record("b")
    made.remove()


TORN = json.dumps(Record("a", "/m", 1).saved())[:-9]
FOREIGN = [
    TORN,
    "[]",
    "{",
    "1",
    "\udcff",
    "{}",
    '{"source": 1}',
    '{"version": "2"}',
    "[" * 100_000,
    " " * (CONTROL_WHOLE + 1),
]
OTHER = '{"version": 99, "source": "a"}'


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_damaged_record_is_told_of(place: Path, content: str) -> None:
    made = Runtime.create()
    (made.path / RECORD).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordFault, match="cannot be read") as fault:
        made.read()
    assert str(made.path) in fault.value.message
    assert not fault.value.of_another_version
    heard: list[str] = []
    assert running(heard.append) == []
    assert "cannot be read" in heard[0]
    assert made.path.exists()  # its supervisor lives
    os.close(made._lock or -1)
    running(heard.append)
    assert not list(place.iterdir())


def test_a_record_of_another_version_is_told_of_and_kept(place: Path) -> None:
    """What is mounted is in it, for who can read it."""
    made = Runtime.create()
    (made.path / RECORD).write_text(OTHER)
    os.close(made._lock or -1)
    for _ in range(2):
        heard: list[str] = []
        assert running(heard.append) == []
        (words,) = heard
        assert "another version of mountsafe" in words
        assert "99" in words
    assert (made.path / RECORD).read_text() == OTHER


def test_a_record_that_is_not_written_yet_is_none(place: Path) -> None:
    made = Runtime.create()
    assert made.read() is None
    assert running() == []
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
    assert other.read() is None


# --- the place of all records --------------------------------------------------------------------------------------
NOBODY = 61000  # an ordinary user, without an account if we are root and can be one


def as_user(look: Callable[[], object], home: Path | None = None) -> str:
    """What a function returns, or the error that it raises, in a process of an ordinary user."""
    uid = os.getuid() or NOBODY
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            account = pwd.struct_passwd(("u", "x", uid, uid, "", str(home), "/bin/sh"))
            pwd.getpwuid = lambda uid: account if home else {}[uid]  # type: ignore[assignment, call-overload]
            os.write(writing, str(look()).encode())
        except UserError as error:
            os.write(writing, f"{error.message} / {error.hint}".encode())
        except BaseException:  # noqa: BLE001 - told by the parent
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading, encoding="utf-8") as said:
        return said.read()


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """XDG_RUNTIME_DIR of that user."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/") and parent.owner() == Path("/proc/self").owner() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    path = tmp_path / "runtime"
    give(path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


def give(path: Path, mode: int = 0o700) -> None:
    """Make a folder of the user's."""
    path.mkdir()
    path.chmod(mode)
    if os.getuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def test_the_folder_is_made_for_its_user_alone(theirs: Path) -> None:
    assert as_user(base) == str(theirs / "mountsafe")
    assert (theirs / "mountsafe").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o711, 0o750])
def test_a_folder_that_others_may_enter_is_refused(theirs: Path, mode: int) -> None:
    give(theirs / "mountsafe", mode)
    said = as_user(base)
    assert "not a folder of yours alone" in said
    assert f"mv {theirs}/mountsafe" in said


@pytest.mark.parametrize("plant", [lambda path: path.symlink_to("/tmp"), lambda path: path.write_text("")])
def test_what_is_no_folder_is_refused(theirs: Path, plant: Callable[[Path], Any]) -> None:
    plant(theirs / "mountsafe")
    assert "not a folder of yours alone" in as_user(base)


@pytest.mark.parametrize("runtime_dir", [None, "", "relative", "/nowhere", "/tmp", "/root", "another's"])
def test_nobody_else_can_take_the_place(theirs: Path, monkeypatch: pytest.MonkeyPatch, runtime_dir: str | None) -> None:
    """XDG_RUNTIME_DIR is missing, open to all, or another's, as `sudo -E` and su leave it: the home folder it is."""
    monkeypatch.setenv("HOME", "/somebody")
    if runtime_dir is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    elif runtime_dir == "another's":
        theirs.chmod(0o777)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
    home = theirs.parent / "home"
    give(home)
    ours = Path(f"/run/user/{os.getuid() or NOBODY}")
    expected = ours if ours.exists() else home / ".local/state"
    assert as_user(base, home) == str(expected / "mountsafe")
    made = Path(expected / "mountsafe").lstat()
    assert stat.S_IMODE(made.st_mode) == 0o700
    assert made.st_uid == (os.getuid() or NOBODY)


def test_without_any_place_it_says_what_to_do(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path(f"/run/user/{os.getuid() or NOBODY}").exists():
        monkeypatch.setattr(runtime, "_is_private", lambda path, uid: False)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert "Set XDG_RUNTIME_DIR" in as_user(base)
    assert "Set XDG_RUNTIME_DIR" in as_user(base, Path("/nonexistent"))
