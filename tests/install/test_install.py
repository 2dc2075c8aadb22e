"""`./dev install` and `uninstall`, staged in a folder: what they put there, and that they take all of it away again.

Each install makes an environment and fills it from the package index, so one install serves all tests but the last.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import missing

UNITS = Path("usr/local/lib/systemd")
PROGRAM = "opt/tools/bin/mountsafe"

Tree = dict[str, tuple[int, bytes | str | None]]


def tree(root: Path) -> Tree:
    """Everything below a folder: mode, and bytes, target or None for a folder."""
    found: Tree = {}
    for path in root.rglob("*"):
        content = str(path.readlink()) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


class Staged:
    """A root that something is in already; `occupied` is a file of somebody else's."""

    def __init__(self, repository: Path, root: Path, occupied: Path) -> None:
        self._repository = repository
        self.root = root
        for path in (occupied, Path("etc/mountsafe/policy.toml")):
            (root / path).parent.mkdir(parents=True)
            (root / path).write_text("# not ours\n")
        self.before = tree(root)

    def dev(self, verb: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DESTDIR": str(self.root), "BINDIR": "/opt/tools/bin"}
        command = [self._repository / "dev", verb]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=500
        )

    def installed(self) -> "Staged":
        done = self.dev("install")
        assert done.returncode == 0, done.stdout + done.stderr
        return self


@pytest.fixture(scope="module")
def staged(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    if os.geteuid() != 0:
        missing("root")
    root = tmp_path_factory.mktemp("root")
    yield Staged(repository, root, UNITS / "system/other.service").installed()
    shutil.rmtree(root)


def test_the_command_is_there_and_knows_its_place(staged: Staged) -> None:
    assert (staged.root / PROGRAM).readlink() == Path("/opt/mountsafe/venv/bin/mountsafe")
    program = (staged.root / "opt/mountsafe/venv/bin/mountsafe").read_text()
    assert program.startswith("#!/opt/mountsafe/venv/bin/python")


def test_the_units_start_what_was_installed(staged: Staged, repository: Path) -> None:
    """All units of the checkout are there, and all that they start is the program, by its path."""
    sources = [path for path in (repository / "systemd").rglob("mountsafe*") if path.is_file()]
    names = {path.name for path in sources}
    installed = {
        path.name: path
        for path in (staged.root / UNITS).rglob("mountsafe*")
        if not path.is_symlink() and path.is_file()
    }
    assert set(installed) == names
    for path in installed.values():
        started = re.findall(r"^Exec(?:Start|StopPost)=-?(\S+)", path.read_text(), re.MULTILINE)
        assert set(started) <= {f"/{PROGRAM}"}
        assert bool(started) == (path.suffix == ".service")


def test_each_session_starts_the_agent(staged: Staged) -> None:
    link = staged.root / UNITS / "user/graphical-session.target.wants/mountsafe-agent.service"
    assert link.resolve(strict=True) == staged.root / UNITS / "user/mountsafe-agent.service"


def test_systemd_takes_the_service_as_enabled_when_told(staged: Staged, program: Callable[[str], str]) -> None:
    """As a packager's script does it, and takes it back."""
    systemctl = [program("systemctl"), f"--root={staged.root}"]
    wants = staged.root / "etc/systemd/system/multi-user.target.wants/mountsafe.service"
    subprocess.run([*systemctl, "enable", "mountsafe.service"], check=True, capture_output=True)
    assert wants.readlink() == Path("/") / UNITS / "system/mountsafe.service"
    subprocess.run([*systemctl, "disable", "mountsafe.service"], check=True, capture_output=True)
    shutil.rmtree(staged.root / "etc/systemd")


def test_what_is_not_ours_is_not_replaced(repository: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("root")
    other = Staged(repository, tmp_path, UNITS / "system/mountsafe.service")
    done = other.dev("install")
    assert done.returncode != 0
    assert "exists and is not mountsafe's" in done.stderr
    assert tree(tmp_path) == other.before


def test_a_second_install_is_the_same_and_uninstall_leaves_what_was_before(staged: Staged) -> None:
    """The last test: afterwards nothing is installed."""
    first = set(tree(staged.root))
    assert set(tree(staged.installed().root)) == first
    done = staged.dev("uninstall")
    assert done.returncode == 0, done.stderr
    assert tree(staged.root) == staged.before
