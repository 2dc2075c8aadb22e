"""Where a mount is made and unmounted, while others rename, link, move and mount on what is in its path."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountsafe.errors import ExitCode, UserError
from mountsafe.mountinfo import mounted
from mountsafe.session import mounter, places, runtime
from mountsafe.session.mounter import FuseMount, MountRequest, is_mounted, mount, unmount
from mountsafe.session.places import Place
from mountsafe.session.record import Held, Record
from mountsafe.session.running import clean_up
from mountsafe.session.runtime import Runtime
from tests.fuse.conftest import Person

In = Callable[[Callable[[Path], None]], None]


@pytest.fixture
def top(person: Person) -> Iterator[Path]:
    """A folder of the person's own, with a folder `g` in it, and in that `m`. Nothing may be mounted there after."""
    top = Path(os.path.realpath(tempfile.mkdtemp(prefix="mountsafe-places-")))
    for path in (top, top / "g", top / "g/m", top / "victim"):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
        os.chown(path, person.uid, person.gid)
    (top / "victim/shadow").write_text("real")
    try:
        yield top
        assert ours(top) == []
    finally:
        while left := [each.point for each in mounted() if Path(each.point).is_relative_to(top)]:
            subprocess.run(["umount", "-l", left[-1]], check=True)
        shutil.rmtree(top)


def ours(top: Path) -> list[str]:
    return [each.point for each in mounted() if Path(each.point).is_relative_to(top) and each.fstype == mounter.FSTYPE]


def made(place: Place, source: str = "mountsafe:x") -> FuseMount:
    """Mount with nobody who serves: as after a session process was killed."""
    return mount(MountRequest(source, place, os.geteuid(), os.getegid(), 0o755))


def closed(place: Place, source: str = "mountsafe:x") -> FuseMount:
    found = made(place, source)
    found.close_descriptor()
    return found


def refused(function: Callable[[], object]) -> UserError:
    try:
        function()
    except UserError as error:
        return error
    raise AssertionError("it was not refused")


def test_a_folder_that_becomes_a_link_is_not_followed(person: Person, top: Path) -> None:
    def scene() -> None:
        place = Place.hold(top / "g/m")
        (top / "g/m").rename(top / "g/was")
        (top / "g/m").symlink_to("../victim")
        assert refused(lambda: made(place)).code == ExitCode.TARGET

    person.run(scene)
    assert (top / "victim/shadow").read_text() == "real"
    assert ours(top) == []


def test_a_parent_that_becomes_a_link_is_not_followed(person: Person, top: Path) -> None:
    def scene() -> None:
        (top / "victim/m").mkdir()
        place = Place.hold(top / "g/m")
        (top / "g").rename(top / "was")
        (top / "g").symlink_to("victim")
        assert refused(lambda: made(place)).code == ExitCode.TARGET
        with pytest.raises(NotADirectoryError):
            Place.hold(top / "g/m")

    person.run(scene)
    assert ours(top) == []


def test_what_is_renamed_is_unmounted_where_it_is(person: Person, top: Path) -> None:
    """And nothing else is: the path that it had is another mount's by now."""

    def scene() -> None:
        first = closed(Place.hold(top / "g/m"))
        (top / "g").rename(top / "h")
        (top / "g/m").mkdir(parents=True)
        second = closed(Place.hold(top / "g/m"), "mountsafe:y")
        assert first.target == top / "h/m"
        first.unmount()
        assert (ours(top), first.target) == ([str(top / "g/m")], None)
        second.unmount()

    person.run(scene)


def test_another_mount_in_its_place_is_left_alone(person: Person, top: Path) -> None:
    """One of the same medium, with the same numbers, as far as the kernel gives them anew."""

    def scene() -> None:
        first = closed(Place.hold(top / "g/m"))
        unmount(first.which)
        second = closed(Place.hold(top / "g/m"))
        if second.which == first.which:
            return  # before Linux 6.8 nothing tells the two from each other
        first.unmount(lazy=True)
        assert is_mounted(top / "g/m")
        second.unmount()

    person.run(scene)


def test_only_the_folder_that_was_made_is_removed(person: Person, top: Path) -> None:
    def scene() -> None:
        for number, place in enumerate((Place.hold(top / "g/new", made=True), Place.hold(top / "g/m").below("new"))):
            moved = top / f"moved{number}"
            place.path.rename(moved)
            place.path.mkdir()
            place.remove()
            places.removed(place.path, place.number)
            assert place.path.is_dir()
            assert moved.is_dir()
            place.path.rmdir()
            moved.rename(place.path)
            place.remove()
            assert not place.path.exists()

    person.run(scene)


def dead(top: Path, found: FuseMount, place: Place, known: bool) -> tuple[Runtime, Record]:
    """The record of a supervisor that was killed; `known`: it had written down what it mounted."""
    (top / "record").mkdir()
    mounts = (found.which.told(),) if known else ()
    held = Held(mounts, (str(place.path),), (place.told(),), "mountsafe:x")
    return Runtime(top / "record"), Record("x", str(place.path), 1, held=held)


@pytest.mark.parametrize("known", [True, False])
def test_cleaning_up_takes_what_is_ours(person: Person, top: Path, known: bool) -> None:
    def scene() -> None:
        place = Place.hold(top / "g/new", made=True)
        clean_up(*dead(top, closed(place), place, known))
        assert not place.path.exists()

    person.run(scene)
    assert not (top / "record").exists()


def test_cleaning_up_leaves_what_is_not_ours(person: Person, top: Path) -> None:
    def scene() -> None:
        place = Place.hold(top / "g/new", made=True)
        record = dead(top, closed(place), place, known=True)
        (top / "g").rename(top / "h")
        (top / "g/new").mkdir(parents=True)
        other = closed(Place.hold(top / "g/new"), "mountsafe:y")
        clean_up(*record)
        assert ours(top) == [str(top / "g/new")]
        other.unmount()
        assert (top / "g/new").is_dir()

    person.run(scene)


@pytest.fixture
def root(person: Person) -> None:
    if not person.is_root:
        pytest.skip("only root mounts on mounts and moves them")


@pytest.mark.usefixtures("root")
def test_what_is_mounted_over_it_goes_only_by_force(top: Path) -> None:
    found = closed(Place.hold(top / "g/m"))
    subprocess.run(["mount", "-t", "tmpfs", "over", top / "g/m"], check=True)
    assert "mounted over it" in refused(found.unmount).message
    found.unmount(lazy=True)
    assert not os.path.ismount(top / "g/m")
    assert stat.S_ISDIR((top / "g/m").stat().st_mode)


@pytest.mark.usefixtures("root")
def test_what_is_mounted_over_its_path_stays(top: Path) -> None:
    found = closed(Place.hold(top / "g/m"))
    subprocess.run(["mount", "-t", "tmpfs", "over", top / "g"], check=True)
    assert "cannot be reached" in refused(found.unmount).message
    (top / "g/m").mkdir()
    assert "mounted over it" in refused(lambda: found.unmount(lazy=True)).message
    subprocess.run(["umount", top / "g"], check=True)
    found.unmount()


@pytest.mark.usefixtures("root")
def test_a_mount_that_was_moved_is_found(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["mount", "--bind", top, top], check=True)
    subprocess.run(["mount", "--make-private", top], check=True)
    place = Place.hold(top / "g/m")
    found = closed(place)
    (top / "other").mkdir()
    subprocess.run(["mount", "--move", top / "g/m", top / "other"], check=True)
    assert found.target == top / "other"
    (top / "records/1").mkdir(parents=True)
    (top / "records/1" / runtime.RECORD).write_text("{}")
    monkeypatch.setattr(runtime, "base", lambda: top / "records")
    clean_up(*dead(top, found, place, known=True))
    assert not is_mounted(top / "other")
    place.close()  # it is in the bind mount, which can then be unmounted
    subprocess.run(["umount", "-l", top], check=True)
