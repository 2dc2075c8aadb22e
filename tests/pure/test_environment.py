"""What of the caller's environment reaches root's mountsafe: nothing that somebody else could turn against root."""

import os
from pathlib import Path

import pytest

from mountsafe import environment
from mountsafe.environment import SYSTEM_PATH, harden, is_roots_alone
from mountsafe.errors import ExitCode, UserError
from tests.conftest import missing

NOBODY = 61000
TURNED = [
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONBREAKPOINT", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT"),
    *("GCONV_PATH", "BASH_ENV", "ENV", "IFS", "LIBGUESTFS_HV", "LIBGUESTFS_APPEND", "LIBGUESTFS_CACHEDIR"),
    *("LIBGUESTFS_BACKEND", "SUPERMIN_KERNEL", "SUPERMIN_MODULES", "QEMU_MODULE_DIR", "XDG_CACHE_HOME"),
    *("XDG_CONFIG_HOME", "XDG_STATE_HOME", "MALLOC_PERTURB_", "GLIBC_TUNABLES", "OPENSSL_CONF"),
]


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A folder that is root's alone."""
    if os.geteuid() != 0:
        missing("root")
    assert is_roots_alone(str(tmp_path))
    return tmp_path


@pytest.fixture
def anothers(roots: Path) -> Path:
    """A folder in there that is a user's."""
    path = roots / "another's"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    return path


@pytest.mark.parametrize("name", TURNED)
def test_what_could_be_turned_against_root_is_dropped(roots: Path, name: str) -> None:
    given = {name: str(roots), "LANG": "C.UTF-8", "SUDO_UID": "1000"}
    assert harden(given) == []
    assert given == {"LANG": "C.UTF-8", "SUDO_UID": "1000", "PATH": SYSTEM_PATH, "HOME": "/root"}


@pytest.mark.parametrize(
    "name", ["HOME", "MOUNTSAFE_APPLIANCE", "TMPDIR", "XDG_RUNTIME_DIR", "PATH", "LIBGUESTFS_PATH"]
)
def test_a_place_is_kept_if_it_is_roots_alone(roots: Path, anothers: Path, name: str) -> None:
    (roots / "link").symlink_to(anothers)
    (anothers / "roots").mkdir()
    for place in (anothers, anothers / "roots", anothers / "not there", roots / "link", Path("/tmp/not-there")):
        given = {name: str(place)}
        assert harden(given) == [name] * (name in environment.TOLD)
        assert str(place) not in given.values()
    given = {name: str(roots / "not there")}
    assert harden(given) == []
    assert given[name] == str(roots / "not there")


@pytest.mark.parametrize("name", ["LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES", "TERM", "COLORTERM"])
def test_no_word_leads_to_a_file_of_anothers(anothers: Path, name: str) -> None:
    """A message catalogue has the formats that a program prints by."""
    for value in (str(anothers), f"../../..{anothers}", f"de:../../..{anothers}"):
        given = {name: value}
        assert harden(given) == []
        assert name not in given
    given = {name: "de_DE.UTF-8@euro"}
    harden(given)
    assert given[name] == "de_DE.UTF-8@euro"


def test_a_time_zone_is_the_systems_or_roots(roots: Path, anothers: Path) -> None:
    for value in (str(anothers), f":{anothers}", f"../../..{anothers}", f":Etc/../../../..{anothers}"):
        given = {"TZ": value}
        harden(given)
        assert "TZ" not in given
    for value in ("Europe/Berlin", ":Etc/GMT+5", "CET-1CEST,M3.5.0,M10.5.0/3", "<+0330>-3:30", f":{roots}/zone"):
        given = {"TZ": value}
        harden(given)
        assert given["TZ"] == value


def test_of_a_list_the_places_that_are_roots_are_kept(roots: Path, anothers: Path) -> None:
    given = {"PATH": f"{anothers}::.:/usr/bin:relative:{roots}"}
    harden(given)
    assert given["PATH"] == f"/usr/bin:{roots}"


def test_who_wanted_something_by_it_is_told(anothers: Path) -> None:
    given = {"MOUNTSAFE_APPLIANCE": str(anothers), "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={anothers}/bus"}
    assert harden(given) == ["MOUNTSAFE_APPLIANCE", "DBUS_SYSTEM_BUS_ADDRESS"]


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o707])
def test_what_others_may_write_to_is_not_roots_alone(roots: Path, mode: int) -> None:
    (roots / "open").mkdir()
    (roots / "open").chmod(mode)
    assert not is_roots_alone(str(roots / "open"))
    assert not is_roots_alone(str(roots / "open" / "below"))


def test_a_users_environment_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    given = {"PATH": "/home/me/bin", "PYTHONPATH": "/home/me"}
    assert harden(given) == []
    assert given == {"PATH": "/home/me/bin", "PYTHONPATH": "/home/me"}


@pytest.mark.parametrize(("inherited", "then"), [(0, 0o022), (0o002, 0o022), (0o077, 0o077)], ids=oct)
def test_nobody_else_may_write_to_what_is_made(inherited: int, then: int) -> None:
    before = os.umask(inherited)
    try:
        harden({})
        found = os.umask(before)
    finally:
        os.umask(before)
    assert found == then


def test_root_writes_into_no_folder_that_others_may_change(roots: Path, anothers: Path) -> None:
    """`policy install --root`, `policy render --output` and the daemon's `--media`."""
    (roots / "link").symlink_to(anothers)
    (roots / "open").mkdir()
    (roots / "open").chmod(0o1777)  # not even a sticky one: a link of theirs may be in it
    for place in (anothers, anothers / "new", roots / "link", roots / "open", roots / "open/new"):
        with pytest.raises(UserError) as caught:
            environment.require_folder(place, {0})
        assert caught.value.code == ExitCode.TARGET
    environment.require_folder(roots / "new", {0})
    environment.require_folder(anothers, {0, NOBODY})
