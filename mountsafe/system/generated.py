"""What a policy makes of a machine: the generated files by their absolute paths, and what they would hit."""

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.hotplug.devices import Device, devices
from mountsafe.mountinfo import mounted
from mountsafe.policy import modprobe, polkit, udev
from mountsafe.policy.exempt import Exemption, of_crypttab, of_fstab
from mountsafe.policy.risk import RiskClass
from mountsafe.policy.rules import Decision, Policy, Verdict
from mountsafe.system.inuse import InUse

UDEV = "/etc/udev/rules.d"
POLKIT = "/etc/polkit-1/rules.d"
MODPROBE = "/etc/modprobe.d"


def exemptions(root: Path = Path("/")) -> list[Exemption]:
    """Return what fstab and crypttab of this machine name."""
    return [*of_fstab(_text(root / "etc/fstab")), *of_crypttab(_text(root / "etc/crypttab"))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def files(policy: Policy, exempt: Collection[Exemption], strict: Collection[RiskClass]) -> dict[str, str]:
    """Return text by path."""
    return {
        **{f"{UDEV}/{name}": text for name, text in udev.render(policy, exempt).items()},
        **{f"{POLKIT}/{name}": text for name, text in polkit.render(policy).items()},
        **{f"{MODPROBE}/{name}": text for name, text in modprobe.render(strict).items()},
    }


def decision_on(device: Device, policy: Policy, exempt: Collection[Exemption]) -> Decision | None:
    """Return what is to be done with a device; None if it is left to the system, or is no medium."""
    if device.facts is None or not device.facts.size:
        return None
    if any(fnmatchcase(value, each.pattern) for each in exempt for value in device.values(each.key)):
        return None  # fstab or crypttab names it
    decision = policy.decide(device.facts)
    return None if decision.verdict == Verdict.KERNEL else decision


def require_harmless(policy: Policy, exempt: Collection[Exemption]) -> None:
    """Raise UserError (TARGET) if the rules would hit what this machine uses."""
    in_use = InUse()
    found = [
        f"{device.name} is {use}"
        for device in devices()
        if (use := in_use.why(device.name, device.number)) and decision_on(device, policy, exempt)
    ]
    if not found:
        return
    told = "; ".join(found)
    hint = "Unmount it, name it in fstab, or write a rule for it whose verdict is kernel (by uuid or serial)."
    raise UserError(f"the rules would hide what this machine uses: {told}", hint, ExitCode.TARGET)


def require_unused(strict: Collection[RiskClass]) -> None:
    """Raise UserError (TARGET) if strict mode would block the parser of a mounted file system, or of one in fstab."""
    blocked = modprobe.blocked(strict)
    used = _mounted_types() | _fstab_types()
    if hit := sorted(used & set(blocked)):
        hint = "Choose fewer classes: --strict critical."
        raise UserError(f"strict mode would block {', '.join(hit)}, which this machine uses", hint, ExitCode.TARGET)


def _mounted_types() -> set[str]:
    return {module for each in mounted() for module in modprobe.modules_of(each.fstype)}


def _fstab_types() -> set[str]:
    lines = [line.split() for line in _text(Path("/etc/fstab")).splitlines()]
    types = [fields[2] for fields in lines if len(fields) > 2 and not fields[0].startswith("#")]
    return {module for each in types for fstype in each.split(",") for module in modprobe.modules_of(fstype)}
