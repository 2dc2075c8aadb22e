"""What a box lets through, read from the command that makes it."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from mountsafe import sandbox
from mountsafe.errors import ExitCode, UserError
from mountsafe.sandbox import Box


def command(box: Box | None = None, uid: int | None = None) -> list[str]:
    return (box or Box(scratch=1 << 20, address_space=1 << 30, processes=8)).command(["true", "--flag"], uid)


def values(words: list[str], option: str, count: int) -> list[tuple[str, ...]]:
    """The arguments of each use of an option before the `--` that ends bubblewrap's own."""
    own = words[: words.index("--")]
    return [tuple(own[at + 1 : at + 1 + count]) for at, word in enumerate(own) if word == option]


@pytest.mark.parametrize("option", ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"])
def test_it_is_cut_off(option: str) -> None:
    assert option in command()


def test_it_is_nobody_without_rights_or_terminal() -> None:
    words = command()
    assert values(words, "--uid", 1) == values(words, "--gid", 1) == [("65534",)]
    assert values(words, "--cap-drop", 1) == [("ALL",)]
    assert "--share-net" not in words
    assert "--cap-add" not in words


def test_its_environment_is_made_anew() -> None:
    box = Box(1, 1, 1, environment={"LIBGUESTFS_PATH": "/appliance"})
    names = [name for name, _ in values(command(box), "--setenv", 2)]
    assert "--clearenv" in command(box)
    assert sorted(names) == ["HOME", "LC_ALL", "LIBGUESTFS_PATH", "PATH"]


def test_it_sees_no_folder_of_the_host_but_usr_and_what_is_named() -> None:
    words = command(Box(1, 1, 1, readable=((Path("/srv/appliance"), "/appliance"),)))
    assert values(words, "--bind", 2) == values(words, "--bind-try", 2) == values(words, "--dev-bind", 2) == []
    sources = {source for source, _ in values(words, "--ro-bind", 2)}
    allowed = {"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", str(sandbox.PACKAGE), "/srv/appliance"}
    assert sources <= allowed
    assert ("/srv/appliance", "/appliance") in values(words, "--ro-bind", 2)
    assert values(words, "--ro-bind-try", 2) == [("/etc/ld.so.cache", "/etc/ld.so.cache")]


def test_it_can_write_to_bounded_memory_alone() -> None:
    words = command(Box(scratch=4096, address_space=1, processes=1))
    assert values(words, "--tmpfs", 1) == [("/tmp",), ("/var/tmp",)]
    assert values(words, "--size", 1) == [("4096",), ("4096",)]
    assert set(values(words, "--remount-ro", 1)) == {("/",), ("/dev",)}


def test_its_limits_come_after_the_box_and_before_the_program() -> None:
    words = command(Box(scratch=1, address_space=1 << 30, processes=8))
    inside = words[words.index("--") + 1 :]
    assert inside == [
        "setsid",
        "prlimit",
        f"--as={1 << 30}",
        "--nproc=8",
        "--core=0",
        "--memlock=0",
        "--nofile=512",
        "--sigpending=256",
        "--",
        "true",
        "--flag",
    ]


def test_its_filter_of_system_calls_is_read_from_a_descriptor() -> None:
    words = Box(1, 1, 1).command(["true"], seccomp=7)
    assert values(words, "--seccomp", 1) == [("7",)]
    assert "--seccomp" not in command()


def test_a_named_device_is_the_only_one() -> None:
    box = Box(1, 1, 1, devices=((Path("/dev/null"), "/dev/kvm"),))
    assert values(command(box), "--dev-bind", 2) == [("/dev/null", "/dev/kvm")]


def test_root_takes_on_another_user_first() -> None:
    words = command(uid=61200)
    assert words[:6] == ["setpriv", "--reuid=61200", "--regid=61200", "--clear-groups", "--inh-caps=-all", "bwrap"]


def test_an_ordinary_user_stays_himself() -> None:
    assert command()[0] == "bwrap"


def test_the_outer_user_has_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    uid = sandbox.outer_uid()
    assert uid is not None
    assert uid > 60000
    with pytest.raises(KeyError):
        pwd.getpwuid(uid)


def test_only_root_has_an_outer_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert sandbox.outer_uid() is None


def test_python_starts_without_the_users_own_settings() -> None:
    argv = sandbox.python("mountsafe.session.server", "{}")
    assert argv[:4] == [sandbox.PYTHON, "-I", "-B", "-c"]
    assert argv[-1] == "{}"


def test_nothing_looks_for_garbage_in_what_a_process_is_made_of(tmp_path: Path) -> None:
    """What it makes later is another thing: it may live for weeks."""
    (tmp_path / "asks.py").write_text(
        "import gc\nmine = [[]]\ndef main(): print(gc.isenabled(), gc.is_tracked(mine))\n"
    )
    counts = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000))"
    )
    argv = [sandbox.PYTHON, "-I", "-c", f"{counts}; {sandbox.program(str(tmp_path), 'asks')}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4


def test_a_command_can_be_pasted_into_a_shell() -> None:
    assert sandbox.shown(["echo", "a b", "'"]) == """echo 'a b' ''"'"''"""


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="bwrap is missing") as failure:
        sandbox.require()
    assert failure.value.code == ExitCode.DEPENDENCY
