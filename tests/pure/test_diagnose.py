"""What `doctor` advises: nothing that cannot help."""

from pathlib import Path

import pytest

from mountsafe.appliance import hardware
from mountsafe.cli import diagnose


@pytest.mark.parametrize("can", [True, False])
def test_a_group_is_advised_only_where_the_processor_runs_virtual_machines(
    can: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0o600)
    monkeypatch.setattr(diagnose, "KVM", device)
    monkeypatch.setattr(hardware, "virtualises", lambda: can)
    assert bool(diagnose._kvm_mend()) == can
    device.unlink()
    assert diagnose._kvm_mend() == ""
