"""What is mounted in this mount namespace, as reported by the kernel (proc(5), /proc/PID/mountinfo)."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount. `number`: (major, minor) of its device. Undecodable bytes of names are surrogates.

    `options` are the mount's own, such as nosuid, and `shared` those of its file system. `id` is the mount's number
    while it is there, `parent` that of the one it is mounted in.
    """

    number: tuple[int, int]
    point: str
    fstype: str
    source: str
    options: tuple[str, ...] = ()
    id: int = 0
    parent: int = 0
    shared: tuple[str, ...] = ()


def mounted(path: Path = Path("/proc/self/mountinfo")) -> list[Mounted]:
    """Return all mounts, those below others first."""
    return [_parsed(line) for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n") if line]


def _parsed(line: str) -> Mounted:
    before, _, after = line.partition(" - ")
    id_, parent, number, _, point, options, *_ = before.split(" ")
    fstype, source, *shared = after.split(" ")
    major, minor = number.split(":")
    device = int(major), int(minor)
    own, common = tuple(options.split(",")), tuple(",".join(shared).split(","))
    return Mounted(device, unescaped(point), fstype, unescaped(source), own, int(id_), int(parent), common)


def unescaped(field: str) -> str:
    r"""Return a name as it is, from the octal escapes (\040 for a space) of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)
