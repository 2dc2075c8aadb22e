"""Where a path leads that another user may change while it is walked: never where they want it to."""

import ctypes
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountsafe.errors import ExitCode, UserError
from mountsafe.mountinfo import Mounted
from mountsafe.session import running
from mountsafe.session.chase import LedAside, chase, is_believed
from mountsafe.session.targets import prepare_target
from tests.conftest import missing
from tests.fuse.conftest import PATIENCE, Mount, Person

EVE = 61000
ROUNDS = 500
RENAME_EXCHANGE, AT_FDCWD = 2, -100


@pytest.fixture
def top(person: Person) -> Iterator[Path]:
    """The person's folder with `victim` in it, and Eve's, `eve`, with a folder `x/dir` in it."""
    if os.geteuid() != 0:
        missing("root")
    top = Path(os.path.realpath(tempfile.mkdtemp(prefix="mountsafe-chase-")))
    for path in (top, top / "victim", top / "victim/dir"):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
        os.chown(path, person.uid, person.gid)
    (top / "eve/x/dir").mkdir(parents=True)
    (top / "eve/link").symlink_to("../victim")
    for path in (top / "eve", top / "eve/x", top / "eve/x/dir", top / "eve/link"):
        os.chown(path, EVE, EVE, follow_symlinks=False)
    os.chmod(top / "eve/x/dir", 0o777)
    try:
        yield top
    finally:
        shutil.rmtree(top)


def exchange(one: Path, other: Path) -> None:
    """Put each in the other's place, at once."""
    done = ctypes.CDLL(None, use_errno=True).renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )
    assert done == 0, os.strerror(ctypes.get_errno())


def led(path: Path) -> Path:
    found, parent = chase(path)
    try:
        assert os.path.samestat(os.fstat(parent), found.parent.stat())
    finally:
        os.close(parent)
    return found


def test_links_of_ones_own_lead_where_they_lead(person: Person, top: Path) -> None:
    def scene() -> None:
        (top / "one").symlink_to("victim")
        (top / "two").symlink_to(top / "one/../one/")
        (top / "new").symlink_to("two/not there")
        for path in (top / "two/dir", top / "new", top / "two", top / "victim/./dir/../../one", Path("/")):
            assert led(path) == Path(os.path.realpath(path))
        (top / "round").symlink_to("round")
        for path, kind in ((top / "round", OSError), (top / "no/x", FileNotFoundError)):
            with pytest.raises(kind):
                chase(path)

    person.run(scene)


@pytest.mark.parametrize("name", ["eve/link/dir", "eve/link", "own/dir", "eve/theirs/dir", "open/link/dir"])
def test_anothers_link_is_not_followed(person: Person, top: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of the caller's either, where others could put it in the place of something else."""

    def scene() -> None:
        (top / "own").symlink_to("eve/link")
        (top / "open").mkdir()
        (top / "open/link").symlink_to("../victim")
        (top / "open").chmod(0o777)

    person.run(scene)
    (top / "eve/theirs").symlink_to("../victim")
    os.chown(top / "eve/theirs", person.uid, person.gid, follow_symlinks=False)

    monkeypatch.setattr(running, "running", list)

    def refused() -> None:
        with pytest.raises(LedAside) as caught:
            prepare_target(top / name)
        assert caught.value.code == ExitCode.TARGET
        with pytest.raises(LedAside):
            running.unmount_one(top / name)

    person.run(refused)


def test_a_sticky_folder_holds_links_of_ones_own(person: Person, top: Path) -> None:
    (top / "tmp").mkdir()
    (top / "tmp").chmod(0o1777)
    (top / "tmp/eves").symlink_to("../victim")
    os.chown(top / "tmp/eves", EVE, EVE, follow_symlinks=False)

    def scene() -> None:
        (top / "tmp/own").symlink_to("../victim")
        assert led(top / "tmp/own/dir") == top / "victim/dir"
        with pytest.raises(LedAside):
            chase(top / "tmp/eves/dir")

    person.run(scene)


def test_a_link_of_a_medium_is_followed_where_the_kernel_follows_it(mount: Mount, person: Person, top: Path) -> None:
    """A medium may have a link of root's; in root's mounts the kernel follows none."""
    (top / "tree/inside").mkdir(parents=True)
    (top / "tree/link").symlink_to("inside")
    shown = Path(os.path.realpath(mount(top / "tree").target))

    def scene() -> None:
        if not person.is_root:
            assert led(shown / "link/new") == shown / "inside/new"
            return
        with pytest.raises(OSError, match="symbolic"):
            os.stat(shown / "link/")
        with pytest.raises(LedAside):
            chase(shown / "link/new")

    person.run(scene)


@pytest.mark.parametrize(
    ("fstype", "shared", "believed"),
    [
        ("fuse.x", ("rw", f"user_id={EVE}", "group_id=0", "allow_other"), False),
        ("fuse", (f"user_id={EVE}",), False),
        ("fuseblk", ("user_id=0",), True),
        ("ext4", ("rw",), True),
    ],
)
def test_a_server_of_another_user_does_not_say_whose_a_link_is(
    fstype: str, shared: tuple[str, ...], believed: bool
) -> None:
    assert is_believed(Mounted((0, 1), "/mnt", fstype, "x", shared=shared), {0, 1000}) is believed


def landed(top: Path, path: Path) -> bool:
    """Prepare to mount at a path; whether that was done, and then it must not be in the victim's folder."""
    try:
        place = prepare_target(path)
    except UserError:
        return False
    victims = {os.stat(top / "victim").st_ino, os.stat(top / "victim/dir").st_ino}
    assert place.number[1] not in victims
    assert os.fstat(place.parent).st_ino not in victims
    place.close()
    return True


def test_a_link_that_is_put_in_at_any_step_leads_nowhere(
    person: Person, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deterministic: before each call that opens a part of the path, Eve exchanges her folder for a link."""
    real = os.open
    steps = 0

    def scene(turn: int) -> int:
        nonlocal steps
        steps = 0
        monkeypatch.setattr(os, "open", opening(turn))
        landed(top, top / "eve/x/dir")
        return steps

    def opening(turn: int) -> Callable[..., int]:
        def opened(*arguments: object, **named: object) -> int:
            nonlocal steps
            if steps == turn:
                exchange(top / "eve/x", top / "eve/link")
            steps += 1
            return real(*arguments, **named)  # type: ignore[arg-type]

        return opened

    os.chmod(top / "eve", 0o777)  # it is not Eve who exchanges them here
    turn = 0
    while turn < person.run(scene, turn):
        if (top / "eve/x").is_symlink():
            exchange(top / "eve/x", top / "eve/link")
        turn += 1
    assert turn > len(top.parts)


def test_a_race_is_never_won(person: Person, top: Path) -> None:
    def race() -> Counter[bool]:
        """At least so many rounds, and until both sides have had their turn: where all is busy one may wait long."""
        end = time.monotonic() + PATIENCE
        came = Counter[bool]()
        while (came.total() < ROUNDS or len(came) < 2) and time.monotonic() < end:
            came[landed(top, top / "eve/x/dir")] += 1
        return came

    if not (racer := os.fork()):
        try:
            os.setresuid(EVE, EVE, EVE)
            while True:
                exchange(top / "eve/x", top / "eve/link")
        except BaseException:  # noqa: BLE001  # the output tells why it raced no more
            traceback.print_exc()
        finally:
            os._exit(1)
    try:
        came = person.run(race)
    finally:
        os.kill(racer, signal.SIGKILL)
        os.waitpid(racer, 0)
    assert len(came) == 2, f"nobody raced: landed or not, {came}"
