"""Devices that belong to this machine, whatever they hang on: those of fstab and crypttab. Pure: text in, matches out.

The machine mounts them by itself, and may not start without them; a rule that hides them would keep it from that.
Whoever knows what is written there can make a medium that claims to be one: that is said in SECURITY.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exemption:
    """A udev match key and its pattern, and the line it was made from."""

    key: str
    pattern: str
    origin: str


# How fstab(5) and crypttab(5) name a device -> what udev's database has of it when our rules are asked.
_TAGS = {
    "UUID": "ENV{ID_FS_UUID}",
    "LABEL": "ENV{ID_FS_LABEL}",
    "PARTUUID": "ENV{ID_PART_ENTRY_UUID}",
    "PARTLABEL": "ENV{ID_PART_ENTRY_NAME}",
}
_FOLDERS = {
    "/dev/disk/by-uuid/": "UUID",
    "/dev/disk/by-label/": "LABEL",
    "/dev/disk/by-partuuid/": "PARTUUID",
    "/dev/disk/by-partlabel/": "PARTLABEL",
}
_NAME = re.compile(r"/dev/(?!mapper/|disk/|dm-|md|loop)([a-z0-9]+)")
_LINK = re.compile(r"/dev/(disk/[^/]+/.+)")


def of_fstab(text: str, origin: str = "/etc/fstab") -> list[Exemption]:
    """Return what fstab(5) names: mounts and swap."""
    return list(_of_column(text, 0, origin))


def of_crypttab(text: str, origin: str = "/etc/crypttab") -> list[Exemption]:
    """Return what crypttab(5) names."""
    return list(_of_column(text, 1, origin))


def _of_column(text: str, column: int, origin: str) -> Iterator[Exemption]:
    for line in text.splitlines():
        fields = line.split()
        if len(fields) <= column or fields[0].startswith("#"):
            continue
        match = _match(_unescaped(fields[column]))
        if match is not None:
            yield Exemption(*match, f"{origin}: {fields[column]}")


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)


def _match(device: str) -> tuple[str, str] | None:
    for folder, tag in _FOLDERS.items():
        if device.startswith(folder):
            device = f"{tag}={device.removeprefix(folder)}"
    tag, equals, value = device.partition("=")
    if equals and tag in _TAGS and (pattern := _pattern(value.strip("\"'"))):
        return _TAGS[tag], pattern
    if link := _LINK.fullmatch(device):
        return "SYMLINK", _pattern(link[1])
    if name := _NAME.fullmatch(device):
        return "KERNEL", name[1]
    return None


def _pattern(value: str) -> str:
    """Return a pattern for a value as udev shows it, where what it writes in other ways matches anything.

    "" if nothing plain is left: that would match every device.
    """
    pattern = re.sub(r"[^A-Za-z0-9_.:/-]+", "*", value)
    return pattern if re.search("[A-Za-z0-9]", pattern) else ""
