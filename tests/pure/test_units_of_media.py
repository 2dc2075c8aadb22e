"""The unit of a medium's processes: what systemd is asked for, and nothing where it is not there."""

from pathlib import Path

import pytest

from mountsafe.system import units


def test_without_systemd_there_is_no_unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "SYSTEMD", tmp_path / "none")
    assert units.for_medium(512, 100, 64) == units.Unit()
    assert units.apart() == []


def test_systemd_is_asked_for_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "SYSTEMD", tmp_path)
    monkeypatch.setenv("MOUNTSAFE_APPLIANCE", "/srv/appliance")
    unit = units.for_medium(512, 150, 64)
    words = unit.start
    assert words[-1] == "--"
    assert {"--pipe", "--slice=mountsafe.slice", "--setenv=MOUNTSAFE_APPLIANCE"} <= set(words)
    assert "--scope" not in words, "a scope would inherit what we may not do, and we would need what it may"
    assert f"--unit={unit.stop[-1]}" in words
    assert {"--property=MemoryMax=536870912", "--property=CPUQuota=150%", "--property=TasksMax=64"} <= set(words)
    assert words != units.for_medium(512, 150, 64).start, "each has a name of its own"


def test_what_is_started_apart_is_a_unit_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "SYSTEMD", tmp_path)
    assert "--user" in units.apart()
    assert "--scope" not in units.apart(), "a scope would inherit what we may not do"
