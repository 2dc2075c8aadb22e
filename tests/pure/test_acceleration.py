"""Whether KVM is tried: what a boot has shown is remembered, for as long as nothing has changed."""

import json
import os
from pathlib import Path

import pytest

from mountsafe.appliance import acceleration
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.limits import KNOWN_SLOW_DEADLINE, KVM_PROBE_DEADLINE, KVM_SLOW_DEADLINE, LAUNCH_DEADLINE


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A /dev/kvm that everybody may open."""
    path = tmp_path / "kvm"
    path.touch()
    path.chmod(0o666)
    return path


@pytest.fixture
def kvm(tmp_path: Path, device: Path) -> Acceleration:
    return Acceleration(tmp_path / "memory/kvm.json", device)


def test_an_untried_device_is_tried_first(kvm: Acceleration) -> None:
    assert kvm.remembered() is None
    assert kvm.candidates() == ["kvm", "tcg"]


def test_a_boot_that_failed_is_not_tried_again(kvm: Acceleration) -> None:
    kvm.remember("tcg")
    assert kvm.candidates() == ["tcg"]


def test_what_has_worked_before_is_given_more_time(kvm: Acceleration, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kvm.patience() == (KVM_PROBE_DEADLINE, KVM_SLOW_DEADLINE)
    kvm.remember("kvm")
    monkeypatch.setattr(acceleration, "circumstances", lambda: ["another boot"])
    assert kvm.remembered() is None
    assert kvm.patience() == (LAUNCH_DEADLINE, KNOWN_SLOW_DEADLINE)
    kvm.remember("tcg")
    assert kvm.patience() == (KVM_PROBE_DEADLINE, KVM_SLOW_DEADLINE)


def test_a_boot_that_worked_still_has_a_way_back(kvm: Acceleration) -> None:
    kvm.remember("kvm")
    assert kvm.candidates() == ["kvm", "tcg"]


def test_without_a_device_nothing_is_tried(kvm: Acceleration, device: Path) -> None:
    kvm.remember("kvm")
    device.unlink()
    assert "does not exist" in kvm.usable()
    assert kvm.candidates() == ["tcg"]


@pytest.mark.parametrize(("uid", "mode", "usable"), [(0, 0o666, True), (0, 0o600, False), (0, 0o640, False)])
def test_root_asks_whether_his_child_could_open_it(
    kvm: Acceleration, device: Path, monkeypatch: pytest.MonkeyPatch, uid: int, mode: int, usable: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    device.chmod(mode)
    assert (kvm.usable() == "") is usable


def test_others_ask_whether_they_may_open_it(kvm: Acceleration, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, how: path != device)
    assert "you may not use" in kvm.usable()


def test_changed_circumstances_are_another_case(kvm: Acceleration, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm.remember("tcg")
    monkeypatch.setattr(acceleration, "circumstances", lambda: ["another kernel"])
    assert kvm.remembered() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"verdict": "kvm"}'])
def test_a_damaged_memory_is_none(kvm: Acceleration, tmp_path: Path, content: str) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/kvm.json").write_text(content)
    assert kvm.remembered() is None


def test_an_unknown_verdict_is_none(kvm: Acceleration, tmp_path: Path) -> None:
    kvm.remember("tcg")
    path = tmp_path / "memory/kvm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": "hvf"}))
    assert kvm.remembered() is None


def test_a_memory_that_cannot_be_written_costs_nothing_but_a_trial(tmp_path: Path, device: Path) -> None:
    (tmp_path / "file").touch()
    kvm = Acceleration(tmp_path / "file/kvm.json", device)
    kvm.remember("tcg")
    assert kvm.candidates() == ["kvm", "tcg"]


def test_what_was_found_is_remembered_across_boots(kvm: Acceleration, tmp_path: Path) -> None:
    kvm.remember("tcg")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    kept = (tmp_path / "memory/kvm.json").read_text()
    assert boot not in kept
    assert os.uname().release in kept


@pytest.mark.parametrize("part", ["_processor", "_modules"])
def test_another_processor_or_kvm_is_another_case(
    kvm: Acceleration, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    kvm.remember("tcg")
    monkeypatch.setattr(acceleration, part, lambda: ["another"])
    assert kvm.remembered() is None
