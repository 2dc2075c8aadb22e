"""How a mount begins and ends, by whatever hand: files are readable until it is gone, and nothing is left of it."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe.errors import ExitCode, UserError
from mountsafe.session import runtime as runtime_module
from mountsafe.session.mounter import is_mounted, unmount_at
from mountsafe.session.running import running
from tests.fuse.conftest import PATIENCE, Mount, Mounted, Person, Stage, gone


@pytest.fixture(scope="session")
def tree(stage: Stage) -> Path:
    top = stage.folder()
    for name in ("a", "b", "c"):
        (top / name).mkdir()
        for number in range(10):
            (top / name / str(number)).write_bytes(f"{name}{number}".encode() * 1000)
    (top / "large").write_bytes(os.urandom(4 << 20))
    return top


@pytest.fixture
def mounted(tree: Path, mount: Mount) -> Mounted:
    return mount(tree)


def read(mounted: Mounted, name: str) -> bytes:
    return mounted.person.run(Path.read_bytes, mounted.target / name)


# --- asked for -----------------------------------------------------------------------------------------------------
def test_unmounting(mounted: Mounted, tree: Path) -> None:
    assert read(mounted, "a/1") == (tree / "a/1").read_bytes()
    assert mounted.status().mounts[0].target == str(mounted.target)
    mounted.unmount()
    mounted.assert_nothing_left()
    assert mounted.process.returncode == 0


def test_unmounting_what_is_in_use_is_refused_until_it_is_forced(mounted: Mounted, tree: Path) -> None:
    holder = mounted.hold("large")
    with pytest.raises(UserError) as failure:
        mounted.unmount()
    assert failure.value.code == ExitCode.BUSY
    assert read(mounted, "a/1") == (tree / "a/1").read_bytes()
    mounted.unmount(force=True)
    mounted.assert_nothing_left()
    _, words = holder.communicate(b"go on\n", timeout=PATIENCE)
    assert holder.returncode != 0
    assert words


def test_an_unmount_by_another_hand_ends_everything(mounted: Mounted) -> None:
    def by_hand() -> None:
        unmount_at(mounted.target)

    mounted.person.run(by_hand)
    mounted.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_even_if_it_is_in_use(mounted: Mounted, number: int) -> None:
    holder = mounted.hold("large")
    mounted.process.send_signal(number)
    mounted.assert_nothing_left()
    holder.communicate(b"go on\n", timeout=PATIENCE)


# --- deaths --------------------------------------------------------------------------------------------------------
def test_a_guest_that_dies_comes_back_when_it_is_needed(mounted: Mounted, tree: Path) -> None:
    before = mounted.agent
    inode = mounted.person.run(os.stat, mounted.target / "a/1").st_ino
    for name in ("a/1", "b/2", "c/3"):
        os.kill(mounted.agent, signal.SIGKILL)
        assert gone(mounted.agent)
        assert read(mounted, name) == (tree / name).read_bytes()
    assert mounted.agent != before
    assert mounted.person.run(os.stat, mounted.target / "a/1").st_ino == inode


def test_a_guest_that_dies_again_and_again_under_a_reader(mounted: Mounted, tree: Path) -> None:
    """The reader gets the right bytes or an error, and never other bytes."""
    want = (tree / "large").read_bytes()
    reader = mounted.hold("large")
    for _ in range(5):
        os.kill(mounted.agent, signal.SIGKILL)
        try:
            assert read(mounted, "large") == want
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017  # it died twice during one request
    reader.communicate(b"go on\n", timeout=PATIENCE)
    assert read(mounted, "large") == want


def test_a_session_that_is_killed_takes_its_mount_along(mounted: Mounted) -> None:
    holder = mounted.hold("large")
    os.kill(mounted.session, signal.SIGKILL)
    mounted.assert_nothing_left()
    holder.communicate(b"go on\n", timeout=PATIENCE)
    assert holder.returncode != 0


def test_a_supervisor_that_is_killed_leaves_what_can_be_cleaned_up(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = mounted.runtime.path.parent
    agent, session = mounted.agent, mounted.session
    mounted.process.kill()
    assert gone(agent)
    assert gone(session)
    if is_mounted(mounted.target):
        with pytest.raises(OSError) as failure:  # noqa: PT011  # the errno is looked at
            mounted.person.run(os.listdir, mounted.target)
        assert failure.value.errno == errno.ENOTCONN
    monkeypatch.setattr(runtime_module, "base", lambda: place)
    assert running() == []
    mounted.assert_nothing_left()


def test_a_guest_that_nobody_needs_is_ended_and_comes_back(tree: Path, mount: Mount) -> None:
    mounted = mount(tree, options={"idle": 0.1})
    agent = mounted.record.virtual_machine
    assert agent is None or gone(agent)
    assert read(mounted, "c/9") == (tree / "c/9").read_bytes()


# --- mounts that come to nothing -----------------------------------------------------------------------------------
@pytest.fixture
def refused(stage: Stage, person: Person, tree: Path) -> Callable[..., str]:
    """A function that mounts in vain, sees that nothing is left, and returns the words."""

    def attempt(**told: object) -> str:
        mounted, report = stage.begin(person, tree, **told)
        with report, pytest.raises(UserError) as failure:
            mounted.follow(report)
        mounted.assert_nothing_left()
        return failure.value.message

    return attempt


def test_a_type_that_the_guest_cannot_mount(refused: Callable[..., str]) -> None:
    assert "wrong fs type" in refused(options={"fstype": "minix"})


def test_a_medium_without_a_file_system(refused: Callable[..., str]) -> None:
    assert "no file system" in refused(fstype="")


def test_whoever_waits_may_leave(stage: Stage, person: Person, tree: Path) -> None:
    """The guest says nothing: the one who asked for the mount presses Ctrl-C."""
    mounted, report = stage.begin(person, tree, silent=True)
    with report:
        assert report.recv(1000)  # it has begun
    mounted.assert_nothing_left()


def test_mounting_where_one_may_not_write(stage: Stage, person: Person, tree: Path) -> None:
    if person.is_root:
        return  # root may everywhere
    mounted, report = stage.begin(person, tree, mode=0o555)
    with report, pytest.raises(UserError) as failure:
        mounted.follow(report)
    assert failure.value.code == ExitCode.TARGET
    mounted.assert_nothing_left()


def test_two_mounts_do_not_know_each_other(tree: Path, mount: Mount) -> None:
    one, other = mount(tree), mount(tree)
    one.unmount()
    one.assert_nothing_left()
    assert read(other, "a/1") == (tree / "a/1").read_bytes()
