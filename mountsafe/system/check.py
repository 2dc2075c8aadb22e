"""Who could still make the host's kernel read a medium that the policy gives to the virtual machine.

Every answer comes from the machine as it is now: udev's database, the files that udev reads, udisks, the kernel's
modules and mounts. If nothing is found, the policy is in force.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mountsafe.hotplug.devices import Device, devices
from mountsafe.policy import modprobe, udev
from mountsafe.policy.exempt import Exemption
from mountsafe.policy.risk import RiskClass
from mountsafe.policy.rules import Policy
from mountsafe.system import generated, udisks
from mountsafe.system.inuse import InUse

# Where udev looks for rules, and what a file there must not do after ours: they are read in the order of their names.
_FOLDERS = ("etc/udev/rules.d", "run/udev/rules.d", "usr/local/lib/udev/rules.d", "usr/lib/udev/rules.d")
_UNMASKS = re.compile(r'ENV\{ID_FS_(TYPE|USAGE)\}\s*[:+]?=\s*"')
_SHOWS = re.compile(r'ENV\{(UDISKS_IGNORE\}\s*[:+]?=\s*"0|UDISKS_AUTO\}\s*[:+]?=\s*"1)"')


@dataclass(frozen=True, slots=True)
class Finding:
    """Who can do what, with which device ("" for all), and what helps. `unknown`: it could not be looked at."""

    device: str
    who: str
    what: str
    hint: str
    unknown: bool = False


def findings(
    policy: Policy, exempt: Collection[Exemption], strict: Collection[RiskClass], root: Path = Path("/")
) -> list[Finding]:
    """Return everything that is found, the most general first."""
    managed = [device for device in devices() if generated.decision_on(device, policy, exempt)]
    in_use = InUse()
    return [
        *_files(generated.files(policy, exempt, strict), root),
        *_later_rules(root),
        *_loaded(strict),
        *(finding for device in managed for finding in _unmasked(device, in_use)),
        *_offered(managed),
    ]


def _files(wanted: dict[str, str], root: Path) -> Iterator[Finding]:
    hint = "sudo mountsafe policy install"
    for path, text in wanted.items():
        place = root / path.lstrip("/")
        try:
            now = place.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            yield Finding("", "udev, udisks, modprobe", f"{place} is missing", hint)
            continue
        except OSError as error:
            # polkit's folder is closed to ordinary users.
            hint = "sudo mountsafe policy check"
            yield Finding("", "", f"{place} cannot be read: {error.strerror}", hint, unknown=True)
            continue
        if now != text:
            yield Finding("", "udev, udisks, modprobe", f"{place} is not what the policy makes", hint)


def _later_rules(root: Path) -> Iterator[Finding]:
    seen: set[str] = set()
    for folder in _FOLDERS:
        for path in sorted((root / folder).glob("*.rules")):
            if path.name in seen or path.name in (udev.FIRST, udev.SECOND):
                continue
            seen.add(path.name)
            text = path.read_text(encoding="utf-8", errors="replace")
            rules = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
            if path.name > udev.FIRST and any(map(_UNMASKS.search, rules)):
                yield Finding("", "udev", f"{path} sets a type again", "Give it a name that sorts before 61.")
            elif path.name > udev.SECOND and any(map(_SHOWS.search, rules)):
                yield Finding("", "udev", f"{path} may show devices again", "Give it a name that sorts before 81.")


def _loaded(strict: Collection[RiskClass]) -> Iterator[Finding]:
    lines = Path("/proc/modules").read_text(encoding="ascii").splitlines() if Path("/proc/modules").exists() else []
    for module in sorted({line.split(" ")[0] for line in lines} & set(modprobe.blocked(strict))):
        yield Finding("", "whoever may mount", f"the kernel has loaded {module} already", f"sudo modprobe -r {module}")


def _unmasked(device: Device, in_use: InUse) -> Iterator[Finding]:
    again = "Unplug it and plug it in again."
    use = in_use.why(device.name, device.number)
    if use:
        yield Finding(device.name, "the kernel", f"it is {use}", "Unmount it; then unplug it and plug it in again.")
    elif not device.managed:
        yield Finding(device.name, "udisks, desktops", "it was there before the rules", again)
    elif device.properties.get("ID_FS_TYPE") != udev.MASK:
        yield Finding(device.name, "udisks, desktops", "a later rule has shown its type again", again)
    elif os.geteuid() == 0 and _can_be_claimed(device):
        yield Finding(device.name, "root, with mount(8)", "nobody claims it", "sudo systemctl enable --now mountsafe")


def _can_be_claimed(device: Device) -> bool:
    with suppress(OSError):
        os.close(os.open(device.node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
        return True
    return False


def _offered(managed: list[Device]) -> Iterator[Finding]:
    offers = udisks.offers() or {}
    for device in managed:
        for what in offers.get(device.node, []):
            yield Finding(device.name, "udisks", f"it offers to {what} it", "Unplug it and plug it in again.")
