"""A medium's descriptor is read-only for good, and each layer that keeps it so does that alone."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountsafe import landlock
from mountsafe.cli import diagnose
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium import sealed, source
from mountsafe.medium.source import open_medium
from mountsafe.syscalls import APPLIANCE, SESSION
from tests import changes
from tests.conftest import missing
from tests.pure.test_syscalls import FREE, under

ELSEWHERE = Path("/nowhere")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """An image that its owner may write to, with an attribute."""
    path = tmp_path / "image"
    path.write_bytes(b"medium" * 100)
    os.setxattr(path, changes.KEPT, b"x")
    before = facts(path)
    yield path
    assert facts(path) == before


def facts(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return path.read_bytes(), status.st_mode, status.st_mtime_ns, status.st_ctime_ns, os.listxattr(path)


def test_each_change_is_possible_without(tmp_path: Path) -> None:
    """The control: the owner of a file that is open for reading may do all of it."""
    path = tmp_path / "image"
    path.write_bytes(b"x")
    os.setxattr(path, changes.KEPT, b"x")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert set(changes.attempted(fd).values()) == {""}
    finally:
        os.close(fd)


def test_a_medium_is_read_only_for_good(file: Path) -> None:
    medium = open_medium(file)
    try:
        assert os.pread(medium.fd, 6, 0) == b"medium"
        assert set(changes.attempted(medium.fd).values()) == {"EROFS"}
        assert not os.get_inheritable(medium.fd)
    finally:
        os.close(medium.fd)


@pytest.mark.parametrize(
    "way",
    [lambda fd, path: sealed._through_mount(fd, b""), lambda _, p: sealed._from_own_namespace(p)],
    ids=["mount", "own-namespace"],
)
def test_each_way_to_it(file: Path, way: Callable[[int, Path], int | None]) -> None:
    fd = os.open(file, os.O_RDONLY)
    before = set(os.listdir("/proc/self/fd"))
    made = way(fd, file)
    if made is None and os.geteuid() != 0:
        missing("the right to make a mount, or a user namespace")
    assert made is not None
    assert set(changes.attempted(made).values()) == {"EROFS"}
    os.close(made)
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_a_name_that_leads_elsewhere_is_not_taken(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").write_bytes(b"other")
    monkeypatch.setattr(sealed, "_through_mount", _only_in_a_child(os.getpid()))
    fd = os.open(file, os.O_RDONLY)
    try:
        assert sealed.sealed(fd, tmp_path / "other") is None
        assert sealed.sealed(fd, ELSEWHERE) is None
        made = sealed.sealed(fd, file)
        assert made is not None
        os.close(made)
    finally:
        os.close(fd)


def _only_in_a_child(parent: int) -> Callable[[int, bytes], int | None]:
    real = sealed._through_mount
    return lambda fd, path: None if os.getpid() == parent else real(fd, path)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n 'x"))
    path.write_bytes(b"x")
    medium = open_medium(path)
    try:
        assert changes.attempted(medium.fd)["fchmod"] == "EROFS"
    finally:
        os.close(medium.fd)


def test_without_such_mounts_landlock_must_be_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "sealed", lambda fd, path: None)
    monkeypatch.setattr(landlock, "version", lambda: 0)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="neither") as refused:
        open_medium(file)
    assert refused.value.code == ExitCode.DEPENDENCY
    assert set(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(landlock, "version", lambda: 2)
    os.close(open_medium(file).fd)


@pytest.mark.parametrize("version", [0, 5])
def test_doctor_tells_what_there_is(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """By trying it, and the kernel's own word."""
    monkeypatch.setattr(landlock, "version", lambda: version)
    found = diagnose._seal()
    assert (found.state, "single files" in found.detail) == (diagnose.OK if version else diagnose.DEGRADED, True)
    monkeypatch.setattr(sealed, "OPEN_TREE", 1 << 20)  # as in a kernel that has no such call
    found = diagnose._seal()
    assert found.state == (diagnose.DEGRADED if version else diagnose.BROKEN)
    assert found.detail.startswith("n")


def test_the_filters_refuse_what_needs_no_opening(file: Path) -> None:
    """Alone, without the mount: modes, owners, times, attributes, flags."""
    fd = os.open(file, os.O_RDONLY)
    opening = {"open it for writing", "open it to append"}
    for filter_, refusal in ((APPLIANCE, "EPERM"), (SESSION, "ENOSYS")):
        for what in set(changes.ATTEMPTS) - opening:
            assert under(filter_, lambda what=what: changes.ATTEMPTS[what](fd)) == refusal, what  # type: ignore[misc]
    os.close(fd)


@pytest.mark.skipif(not landlock.version(), reason="Landlock is missing in this kernel")
def test_landlock_refuses_the_opening(file: Path, tmp_path: Path) -> None:
    """Alone, without the mount: even where the file lies in what may be written to when it is called by its name."""
    fd = os.open(file, os.O_RDONLY)
    (tmp_path / "own").mkdir()

    def confined(attempt: Callable[[], object]) -> Callable[[], None]:
        def both() -> None:
            assert landlock.write_only_in([str(tmp_path / "own")], ["/dev"]) == landlock.version()
            attempt()

        return both

    for what in ("open it for writing", "open it to append"):
        assert under(FREE, confined(lambda what=what: changes.ATTEMPTS[what](fd))) == "EACCES"  # type: ignore[misc]
    if landlock.version() >= 3:
        assert under(FREE, confined(lambda: changes.ATTEMPTS["truncate"](fd))) == "EACCES"
    for refused in (lambda: (tmp_path / "new").mkdir(), file.unlink, lambda: file.rename(tmp_path / "own/there")):
        assert under(FREE, confined(refused)) in ("EACCES", "EXDEV")
    for allowed in (file.read_bytes, lambda: (tmp_path / "own/new").write_bytes(b"x"), lambda: _write("/dev/null")):
        assert under(FREE, confined(allowed)) == ""
    os.close(fd)


def _write(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def test_a_file_that_grows_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"medium")
    medium = open_medium(path)
    try:
        with path.open("ab") as more:
            more.write(b"more")
        assert os.pread(medium.fd, 10, medium.size) == b"more"
    finally:
        os.close(medium.fd)
