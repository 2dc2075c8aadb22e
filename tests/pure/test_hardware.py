"""The virtual machine's parts, where they must fit to each other."""

import pytest

from mountsafe.appliance import hardware
from mountsafe.limits import APPLIANCE_PROCESSES


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_qemu_never_wants_more_threads_than_its_box_allows(accelerator: str) -> None:
    """QEMU aborts when it cannot have a thread, and 64 that read the medium are its default."""
    objects = [value for option, value in hardware.options(accelerator) if option == "-object"]
    (readers,) = (int(value.partition("thread-pool-max=")[2]) for value in objects if "main-loop" in value)
    assert readers + hardware.PROCESSORS <= APPLIANCE_PROCESSES // 2
