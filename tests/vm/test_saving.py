"""A VM that is saved and proven with this host's KVM: where that works, and where a /dev/kvm opens and lies.

What the machine has decides which outcome is asserted.
"""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from mountsafe.appliance import build, features, freeze, saving, thaw
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.errors import MountsafeError
from mountsafe.limits import GUEST_MEMORY_MIB

pytestmark = pytest.mark.skipif(bool(Acceleration(Path("/nowhere")).usable()), reason="/dev/kvm cannot be used here")


@pytest.fixture
def appliance(tmp_path: Path) -> Path:
    """The appliance, without any state."""
    built = build.ensure(lambda _: None).path
    place = tmp_path / "appliance"
    without = shutil.ignore_patterns("state-*", "root")
    shutil.copytree(built, place, ignore=without)
    (place / "root").symlink_to(built / "root")  # sparse
    return place


def work_in(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


def test_a_state_that_is_kept_is_one_that_a_machine_starts_from(appliance: Path, tmp_path: Path) -> None:
    """KVM is not asked first whether it works, so where it lies QEMU aborts, or the guest hangs."""
    work = work_in(tmp_path)
    qemu = features.record(appliance, work / "answers", work)
    assert qemu is not None
    with suppress(MountsafeError):
        freeze.freeze(appliance, qemu, GUEST_MEMORY_MIB, "kvm", work, freeze.Patience(30.0, 70.0))
    known = thaw.tried(appliance, GUEST_MEMORY_MIB, "kvm")
    assert known is not None
    why, seconds = known
    assert thaw.state(appliance, "kvm").exists() is thaw.fits(appliance, GUEST_MEMORY_MIB, "kvm") is (why == "")
    assert (seconds > 0.0) is (why == "")


def test_where_kvm_lies_a_build_saves_without_it(appliance: Path, tmp_path: Path) -> None:
    work, said = work_in(tmp_path), list[str]()
    shutil.rmtree(appliance / "qemu-cache")
    known = Acceleration(tmp_path / "kvm.json")
    saving.prepare(appliance, work, known, said.append)
    verdict = known.remembered()
    assert verdict in ("kvm", "tcg"), said
    assert thaw.fits(appliance, GUEST_MEMORY_MIB, verdict), said
    assert verdict == "kvm" or not (appliance / "state-kvm.json").exists()
