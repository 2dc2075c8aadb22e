"""The limits of a medium's processes: what systemd is asked for, and nothing where it is not there."""

from pathlib import Path

import pytest

from mountsafe.system import scope


def test_without_systemd_there_is_no_scope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scope, "SYSTEMD", tmp_path / "none")
    assert scope.limited(512, 100, 64) == []
    assert scope.apart() == []


def test_systemd_is_asked_for_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scope, "SYSTEMD", tmp_path)
    words = scope.limited(512, 150, 64)
    assert words[-1] == "--"
    assert {"--scope", "--slice=mountsafe.slice"} <= set(words)
    assert {"--property=MemoryMax=536870912", "--property=CPUQuota=150%", "--property=TasksMax=64"} <= set(words)
    assert words != scope.limited(512, 150, 64), "each has a name of its own"


def test_what_is_started_apart_is_a_unit_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scope, "SYSTEMD", tmp_path)
    assert "--user" in scope.apart()
    assert "--scope" not in scope.apart(), "a scope would inherit what we may not do"
