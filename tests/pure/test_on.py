"""`./dev on`: what it refuses before it makes or enters anything, and what of this machine is seen in the root."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def on(repository: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MOUNTSAFE_DEV_ROOTS": str(place)}
    command = [sys.executable, repository / "tools/on.py", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("release", ["../etc", "/", "", "Trixie", "trixie.part"])
def test_what_is_no_release_leads_to_no_folder(repository: Path, tmp_path: Path, release: str) -> None:
    done = on(repository, tmp_path / "roots", release, "demo")
    assert done.returncode == 2
    assert "is no name of a release" in done.stderr
    assert not (tmp_path / "roots").exists()


def test_a_release_wants_a_verb(repository: Path, tmp_path: Path) -> None:
    done = on(repository, tmp_path / "roots", "trixie")
    assert done.returncode == 2
    assert "which verb?" in done.stderr


def test_its_help_says_where_roots_are(repository: Path, tmp_path: Path) -> None:
    done = on(repository, tmp_path, "--help")
    assert done.returncode == 0
    assert str(tmp_path) in "".join(done.stdout.split())


def test_the_corpus_is_seen_in_the_root(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("on", repository / "tools/on.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setenv("MOUNTSAFE_CORPUS", str(tmp_path / "corpus"))
    spec.loader.exec_module(module)
    assert str(tmp_path / "corpus") not in module.folders()  # there is none
    (tmp_path / "corpus").mkdir()
    assert str(tmp_path / "corpus") in module.folders()
    assert module.environment()["MOUNTSAFE_CORPUS"] == str(tmp_path / "corpus")
