"""Strict mode: the host's kernel does not load the parsers of the riskiest types at all. Pure text.

`blacklist` only stops a module from being loaded by an alias; `install` stops modprobe(8) altogether, and with it the
kernel's own autoloading, whoever asks for it. insmod(8) and modprobe --ignore-install still load it: they are root's.
"""

from collections.abc import Collection

from mountsafe.policy.risk import ENCRYPTED, RISKS, RiskClass

NAME = "mountsafe-strict.conf"

# blkid's name of a type -> the kernel's modules that parse it, where they differ.
_MODULES = {
    "iso9660": ("isofs",),
    "vxfs": ("freevxfs",),
    "xenix": ("sysv",),
    "ntfs": ("ntfs", "ntfs3"),
    "LVM2_member": (),
    "linux_raid_member": (),
    "ddf_raid_member": (),
    "isw_raid_member": (),
    "apfs": (),
    "ecryptfs": (),  # not on a device
    "reiser4": (),  # never in the kernel's tree
    **dict.fromkeys(ENCRYPTED, ()),  # parsed by programs
}

_HEAD = """\
# Made by `mountsafe policy install --strict` ({classes}); changes here are lost.
# The kernel's parsers of these types are not loaded on this host. mountsafe opens such media all the same: its virtual
# machine has modules of its own.
"""


def modules_of(fstype: str) -> tuple[str, ...]:
    """Return the kernel's modules that parse a type."""
    return _MODULES.get(fstype, (fstype,))


def blocked(classes: Collection[RiskClass]) -> dict[str, str]:
    """Return the modules that strict mode blocks, and why each."""
    return {
        module: f"{fstype}: {risk.reason}"
        for fstype, risk in sorted(RISKS.items())
        if risk.level in classes
        for module in modules_of(fstype)
    }


def render(classes: Collection[RiskClass]) -> dict[str, str]:
    """Return the file by name; none where no class is chosen."""
    if not classes:
        return {}
    lines = [_HEAD.format(classes=", ".join(sorted(classes)))]
    for module, why in sorted(blocked(classes).items()):
        lines += [f"# {why}", f"install {module} /bin/false"]
    return {NAME: "\n".join(lines) + "\n"}


def classes_of(text: str) -> list[RiskClass]:
    """Return the classes that an installed file was made for."""
    head = text.partition("--strict` (")[2].partition(")")[0]
    return [RiskClass(each) for each in head.split(", ") if each in set(RiskClass)]
