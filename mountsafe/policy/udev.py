"""udev rules made from a policy: pure text.

Two files. The first comes after 60-persistent-storage.rules, which knows the type, and before 64-btrfs, 64-md, 69-lvm
and 69-bcache, which act on it: it decides, and masks the type of what is managed, so that nothing after it takes the
device for a file system, a volume or a member of an array. The second comes after 80-udisks2.rules, which shows some
crafted media again.

udev evaluates what `Policy.decide` would: same rules, same order. It cannot ask for a size, a seat or a screen; a
rule that leaves a medium to the system may not depend on those (`rules.parse_rules` refuses it), and of the other
rules the rest is asked, so that a medium is rather managed than not.
"""

from collections.abc import Iterable, Iterator

from mountsafe.policy.conditions import as_list
from mountsafe.policy.exempt import Exemption
from mountsafe.policy.facts import INSIDE_BUSES, MADE_HERE, PARAVIRTUAL
from mountsafe.policy.risk import ENCRYPTED, RISKS, RiskClass
from mountsafe.policy.rules import Policy, Rule, Verdict
from mountsafe.text import printable

MASK = "mountsafe"  # what a managed device has in place of its type
FIRST, SECOND = "61-mountsafe.rules", "81-mountsafe.rules"

_HEAD = """\
# Made by `mountsafe policy install` from /etc/mountsafe; changes here are lost.
# What is managed loses its file system type in udev's database, so that udisks, desktops, LVM, mdadm and btrfs leave it
# alone, and the host's kernel never mounts it by itself.
"""


def _names(prefixes: Iterable[str]) -> str:
    return "|".join(f"{prefix}*" for prefix in prefixes)


# The same as policy.facts tells, in udev's words.
_FACTS = f"""\
ENV{{MOUNTSAFE_BUS}}="$env{{ID_BUS}}"
KERNEL=="fd*", ENV{{MOUNTSAFE_BUS}}="floppy"
KERNEL=="sr*", ENV{{MOUNTSAFE_BUS}}="optical"
KERNEL=="loop*", ENV{{MOUNTSAFE_BUS}}="loop"
KERNEL=="nvme*", ENV{{MOUNTSAFE_BUS}}="nvme"
KERNEL=="mmcblk*", ENV{{MOUNTSAFE_BUS}}="mmc"
ENV{{ID_PATH}}=="*-usb-*", ENV{{MOUNTSAFE_BUS}}="usb"
ENV{{ID_USB_DRIVER}}=="?*", ENV{{MOUNTSAFE_BUS}}="usb"
SUBSYSTEMS=="usb", ENV{{MOUNTSAFE_BUS}}="usb"

ENV{{MOUNTSAFE_SERIAL}}="$env{{ID_SERIAL_SHORT}}"
ENV{{MOUNTSAFE_SERIAL}}=="", ENV{{MOUNTSAFE_SERIAL}}="$env{{ID_SERIAL}}"

ENV{{MOUNTSAFE_REMOVABLE}}="0"
ATTRS{{removable}}=="1", ENV{{MOUNTSAFE_REMOVABLE}}="1"

# What is not clearly inside the machine is external.
ENV{{MOUNTSAFE_EXTERNAL}}="1"
ENV{{MOUNTSAFE_BUS}}=="{"|".join(INSIDE_BUSES)}", ENV{{MOUNTSAFE_EXTERNAL}}="0"
KERNEL=="{_names(PARAVIRTUAL)}", ENV{{MOUNTSAFE_BUS}}!="usb", ENV{{MOUNTSAFE_EXTERNAL}}="0"
ATTRS{{removable}}=="1", ENV{{MOUNTSAFE_EXTERNAL}}="1"
ATTRS{{removable}}=="removable", ENV{{MOUNTSAFE_EXTERNAL}}="1"
ENV{{MOUNTSAFE_BUS}}=="loop", ENV{{MOUNTSAFE_EXTERNAL}}="0"
ENV{{MOUNTSAFE_BUS}}=="mmc", ATTRS{{type}}=="MMC", ENV{{MOUNTSAFE_EXTERNAL}}="0"
ENV{{ID_INTEGRATION}}=="internal", ENV{{MOUNTSAFE_EXTERNAL}}="0"
ENV{{ID_INTEGRATION}}=="external", ENV{{MOUNTSAFE_EXTERNAL}}="1"
"""

_HIDE = 'ENV{UDISKS_IGNORE}="1", ENV{UDISKS_AUTO}="0", ENV{UDISKS_SYSTEM}="1", ENV{SYSTEMD_READY}="0"'

_MANAGE = f"""\
LABEL="mountsafe_decided"
ENV{{MOUNTSAFE_VERDICT}}=="|{Verdict.KERNEL}", GOTO="mountsafe_end"
ENV{{MOUNTSAFE_MANAGED}}="1"
ENV{{MOUNTSAFE_FS_TYPE}}="$env{{ID_FS_TYPE}}", ENV{{MOUNTSAFE_FS_USAGE}}="$env{{ID_FS_USAGE}}"
ENV{{ID_FS_TYPE}}="{MASK}", ENV{{ID_FS_USAGE}}="other"
{_HIDE}

LABEL="mountsafe_end"
"""

_SECOND = f"""\
# Made by `mountsafe policy install` from /etc/mountsafe; changes here are lost.
# 80-udisks2.rules shows some media again that 61-mountsafe.rules has hidden.
ACTION=="remove", GOTO="mountsafe_again_end"
SUBSYSTEM!="block", GOTO="mountsafe_again_end"
ENV{{MOUNTSAFE_MANAGED}}!="1", GOTO="mountsafe_again_end"
ENV{{ID_FS_TYPE}}="{MASK}", ENV{{ID_FS_USAGE}}="other"
{_HIDE}

LABEL="mountsafe_again_end"
"""

# Conditions of a rule -> the property that udev has of it, by the lines above or by rules before ours.
_PROPERTIES = {
    "fstype": "ID_FS_TYPE",
    "label": "ID_FS_LABEL",
    "uuid": "ID_FS_UUID",
    "bus": "MOUNTSAFE_BUS",
    "vendor": "ID_VENDOR",
    "model": "ID_MODEL",
    "serial": "MOUNTSAFE_SERIAL",
}
_KNOWN_AND_PLAIN = f'ENV{{ID_FS_TYPE}}=="?*", ENV{{ID_FS_TYPE}}!="{"|".join(sorted(ENCRYPTED))}"'
_SWITCHES = {"external": "MOUNTSAFE_EXTERNAL", "removable": "MOUNTSAFE_REMOVABLE"}


def render(policy: Policy, exemptions: Iterable[Exemption] = ()) -> dict[str, str]:
    """Return the two files by name. A broken policy manages everything external: `decide` refuses it."""
    return {FIRST: "\n".join(_first(policy, exemptions)), SECOND: _SECOND}


def _first(policy: Policy, exemptions: Iterable[Exemption]) -> Iterator[str]:
    yield _HEAD
    yield 'ACTION=="remove", GOTO="mountsafe_end"'
    yield 'SUBSYSTEM!="block", GOTO="mountsafe_end"'
    yield f'KERNEL=="{_names(MADE_HERE)}", GOTO="mountsafe_end"'
    yield 'ENV{MOUNTSAFE_VERDICT}="", ENV{MOUNTSAFE_MANAGED}=""'
    yield ""
    for exemption in exemptions:
        yield f"# {printable(exemption.origin, 200)}"
        yield f'{exemption.key}=="{exemption.pattern}", GOTO="mountsafe_end"'
    yield _FACTS
    for rule in policy.rules:
        yield f"# {printable(rule.name, 200)} ({printable(rule.origin, 200)})"
        yield ", ".join([*_matches(rule), f'ENV{{MOUNTSAFE_VERDICT}}="{rule.verdict}"', 'GOTO="mountsafe_decided"'])
    yield "# What no rule decides"
    yield f'ENV{{MOUNTSAFE_EXTERNAL}}=="1", ENV{{MOUNTSAFE_VERDICT}}="{Verdict.SANDBOX}"'
    yield ""
    yield _MANAGE


def _matches(rule: Rule) -> Iterator[str]:
    """Yield what must hold; what udev cannot ask is left out (see above)."""
    for key, wanted in rule.conditions.items():
        if key in _PROPERTIES:
            yield f'ENV{{{_PROPERTIES[key]}}}=="{"|".join(as_list(wanted))}"'
        elif key in _SWITCHES:
            yield f'ENV{{{_SWITCHES[key]}}}=="{int(wanted)}"'
        elif key == "encrypted":
            yield f'ENV{{ID_FS_TYPE}}=="{"|".join(sorted(ENCRYPTED))}"' if wanted else _KNOWN_AND_PLAIN
        elif key == "risk":
            yield _risk_match({RiskClass(each) for each in as_list(wanted)})


def _risk_match(levels: set[RiskClass]) -> str:
    """A type of one of these classes. Types that nobody knows are in the class UNKNOWN: what is in no other class."""
    if RiskClass.UNKNOWN in levels:
        others = [fstype for fstype, risk in RISKS.items() if risk.level not in levels]
        return f'ENV{{ID_FS_TYPE}}!="{"|".join(others)}"'
    return f'ENV{{ID_FS_TYPE}}=="{"|".join(fstype for fstype, risk in RISKS.items() if risk.level in levels)}"'
