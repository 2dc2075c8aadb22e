"""The states that VMs start from: made when the appliance is built, and anew when this host is no longer what it was.

There is one for each accelerator. A host whose KVM works needs that one alone, but for users who may not open KVM. None
is needed for a VM to start: without a state it boots.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from mountsafe import distribution
from mountsafe.appliance import features, freeze, thaw
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.limits import GUEST_MEMORY_MIB
from mountsafe.text import printable

# Where it has taken longer to boot and save a VM with KVM, which is 4 s of work, that is emulated itself; and another
# emulation in there would take minutes.
QUICK = 20.0
EMPTY = Path("/usr/share")  # an appliance, for those who need none
Progress = Callable[[str], None]


def prepare(output: Path, work: Path, acceleration: Acceleration, progress: Progress) -> None:
    """Store what makes a launch faster: without it the appliance works as well. Raises UserError if it does not.

    `output` is the appliance, `work` a folder of the caller's alone beside it.
    """
    qemu = features.record(output, output / "qemu-cache", work)
    if qemu is None:
        progress(f"QEMU does not work on this host: {distribution.install('qemu-system-x86')}")
        return
    try:
        _save(output, qemu, work, acceleration, progress)
    except freeze.Crashed as crash:
        what = f"the virtual machine that was built crashes: {printable(str(crash))}"
        hint = "Its kernel and programs are this host's: mountsafe doctor says which. Please report it with both."
        raise UserError(what, hint, ExitCode.APPLIANCE) from crash


def renew(appliance: Path, work: Path, acceleration: Acceleration, progress: Progress) -> None:
    """Save VMs anew in an appliance that is in use. What goes wrong is told: VMs boot then."""
    qemu = features.record(appliance, work / "answers", work)
    if qemu is None:
        return
    try:
        _save(appliance, qemu, work, acceleration, progress)
    except freeze.Crashed as crash:
        progress(f"{printable(str(crash))}: no virtual machine is saved")


def _save(appliance: Path, qemu: str, work: Path, acceleration: Acceleration, progress: Progress) -> None:
    """Save a VM for what is used here. Raises `Crashed` if it is of no use without KVM."""
    if likely(acceleration, progress) == "kvm":
        since = time.monotonic()
        saved = _saved_with_kvm(appliance, qemu, work, acceleration, progress)
        others = os.geteuid() == 0  # use what root builds
        if saved and not (others and time.monotonic() - since < QUICK):
            return
    if not _needed(appliance, "tcg", acceleration):
        return
    try:
        freeze.freeze(appliance, qemu, GUEST_MEMORY_MIB, "tcg", work)
    except freeze.Crashed:
        raise
    except MountsafeError as error:
        progress(f"{printable(str(error))}: it will be booted each time")


def missing(appliance: Path, acceleration: Acceleration) -> tuple[str, bool]:
    """Return why VMs boot here each time, "" if they do not or nobody knows; and whether `renew` may change that."""
    accelerator = "tcg" if acceleration.usable() else acceleration.remembered()
    if accelerator is None:
        return "", False
    known = thaw.tried(appliance, GUEST_MEMORY_MIB, accelerator)
    if known is None:
        return "none is saved that fits this kernel, processor and QEMU", True
    if known[0]:
        return known[0], False
    return ("", False) if acceleration.trusts(thaw.state(appliance, accelerator)) else ("the saved one hung", True)


def outdated(appliance: Path, acceleration: Acceleration, progress: Progress) -> bool:
    """Whether a VM boots here, and nobody has tried yet whether it can be saved; or it hung."""
    return _needed(appliance, likely(acceleration, progress), acceleration)


def _needed(appliance: Path, accelerator: str, acceleration: Acceleration) -> bool:
    known = thaw.tried(appliance, GUEST_MEMORY_MIB, accelerator)
    return known is None or not acceleration.trusts(thaw.state(appliance, accelerator))


def likely(acceleration: Acceleration, progress: Progress) -> str:
    """Return what VMs run with here, "kvm" or "tcg". Where KVM is not known, the tiny guest tells within seconds."""
    if acceleration.candidates() == ["tcg"]:
        return "tcg"
    if acceleration.remembered() is None and (lie := _against_kvm()):
        acceleration.remember("tcg")
        progress(f"KVM does not work here ({printable(lie)}): software emulation from now on")
        return "tcg"
    return "kvm"


def _against_kvm() -> str:
    from mountsafe import trios  # with trio, which takes a tenth of a second, and building is rare
    from mountsafe.appliance import trial
    from mountsafe.appliance.machine import MachineSettings

    try:
        return trios.run(trial.against_kvm, MachineSettings(EMPTY))
    except (MountsafeError, OSError):  # there is no box: a mount will say so
        return ""


def _saved_with_kvm(appliance: Path, qemu: str, work: Path, acceleration: Acceleration, progress: Progress) -> bool:
    """Save a VM that runs on KVM; return whether there is one now. Whatever goes wrong is not the appliance's fault."""
    silent, more = acceleration.patience()
    try:
        freeze.freeze(appliance, qemu, GUEST_MEMORY_MIB, "kvm", work, freeze.Patience(silent, silent + more))
    except MountsafeError as error:
        progress(f"{printable(str(error))}: with KVM it will be booted each time")
        return False
    acceleration.remember("kvm")
    return True
