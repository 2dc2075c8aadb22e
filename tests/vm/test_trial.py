"""The tiny guest that finds out whether KVM works: in its box and QEMU, as it is started on any host.

Whether this host's KVM works is this host's: so QEMU's own emulation stands in for one that does, and one whose
processor never moves for one that hangs.
"""

import os
from pathlib import Path

import pytest

from mountsafe import trios
from mountsafe.appliance import trial
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import MachineSettings


@pytest.fixture
def settings() -> MachineSettings:
    """With a device that is no KVM, so that no test depends on what this host's is."""
    return MachineSettings(Path("/usr/share"), kvm_device=Path(os.devnull))


def _with_kvm(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Have what stands in for KVM run without it, with more options."""
    emulated = trial.qemu("tcg")
    monkeypatch.setattr(trial, "qemu", lambda accelerator: [*emulated, *(more if accelerator == "kvm" else ())])


def test_where_a_guest_does_its_work_nothing_is_said_against_it(
    settings: MachineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_kvm(monkeypatch)
    assert trios.run(trial.against_kvm, settings) == ""


def test_one_that_hangs_is_found_out(settings: MachineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TRIAL_PATIENCE", 0.5)
    _with_kvm(monkeypatch, "-S")
    assert "was not done" in trios.run(trial.against_kvm, settings)


def test_qemus_words_are_passed_on(settings: MachineSettings) -> None:
    assert "kvm" in trios.run(trial.against_kvm, settings).lower()


def test_where_nothing_runs_nothing_is_said_of_kvm(settings: MachineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "qemu", lambda accelerator: ["/usr/bin/false"])
    assert trios.run(trial.against_kvm, settings) == ""


@pytest.mark.skipif(bool(Acceleration(Path("/nowhere")).usable()), reason="/dev/kvm cannot be used here")
def test_what_it_says_of_this_hosts_kvm_it_says_again() -> None:
    told = [trios.run(trial.against_kvm, MachineSettings(Path("/usr/share"))) for _ in range(3)]
    assert len({bool(each) for each in told}) == 1, told
