"""What a policy makes of a machine: the generated files by their absolute paths, and what they would hit."""

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.hotplug.devices import Device, devices
from mountsafe.policy import modprobe, polkit, udev
from mountsafe.policy.exempt import Exemption, of_crypttab, of_fstab
from mountsafe.policy.risk import RiskClass
from mountsafe.policy.rules import Policy, Verdict
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


@dataclass(frozen=True, slots=True)
class Hit:
    """A device in use that the rules would hide."""

    device: str
    use: str
    rule: str


def hits(policy: Policy, exempt: Collection[Exemption]) -> list[Hit]:
    """Return what is in use and would be managed, were it plugged in now."""
    in_use = InUse()
    found = []
    for device in devices():
        use = in_use.why(device.name, device.number)
        if not use or device.facts is None or is_exempt(device, exempt):
            continue
        decision = policy.decide(device.facts)
        if decision.verdict != Verdict.KERNEL:
            found.append(Hit(device.name, use, decision.rule or decision.reason))
    return found


def is_exempt(device: Device, exempt: Collection[Exemption]) -> bool:
    """Whether fstab or crypttab names it."""
    return any(fnmatchcase(value, each.pattern) for each in exempt for value in device.values(each.key))


def require_harmless(policy: Policy, exempt: Collection[Exemption]) -> None:
    """Raise UserError (TARGET) if the rules would hit what this machine uses."""
    found = hits(policy, exempt)
    if not found:
        return
    told = "; ".join(f"{hit.device} is {hit.use}" for hit in found)
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
    lines = _text(Path("/proc/self/mounts")).splitlines()
    return {module for line in lines for module in modprobe.modules_of(line.split(" ")[2])}


def _fstab_types() -> set[str]:
    lines = [line.split() for line in _text(Path("/etc/fstab")).splitlines()]
    types = [fields[2] for fields in lines if len(fields) > 2 and not fields[0].startswith("#")]
    return {module for each in types for fstype in each.split(",") for module in modprobe.modules_of(fstype)}
