"""The layers that confine a process, as reported by the kernel (proc(5), cgroups(7)): the process is not asked."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mountsafe.mountinfo import mounted
from mountsafe.text import printable

CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
SECCOMP_MODES = {0: "none", 1: "strict", 2: "filter"}
# Of /proc/PID/limits: what a box sets, and what every process has.
LIMITS = ("Max address space", "Max processes", "Max open files", "Max core file size", "Max locked memory")
# The files of a control group that hold a limit, in both versions, and what they say when they hold none.
GROUP_LIMITS = ("memory.max", "cpu.max", "pids.max", "memory.limit_in_bytes", "cpu.cfs_quota_us")
UNLIMITED = ("max", "-1", "9223372036854771712")  # the last is memory.limit_in_bytes's, in pages of 4 KiB


@dataclass(frozen=True, slots=True)
class Layers:
    """One process. Ids are those that the reader of /proc sees; limits are in bytes or numbers, or "unlimited".

    `namespaces` and `descriptors`: None if the process keeps its memory from others of its user (prctl(2),
    PR_SET_DUMPABLE), and with it what the kernel tells of these; root is told.
    """

    pid: int
    program: str
    uid: int
    namespaces: tuple[str, ...] | None  # other than the reader's own
    uid_map: tuple[str, ...]  # first inside, first outside, how many
    capabilities: dict[str, int]  # sets that are not empty, as masks
    no_new_privileges: bool
    seccomp: str
    seccomp_filters: int
    limits: dict[str, str]
    groups: tuple[str, ...]  # its control groups, "controllers:path"
    group_limits: dict[str, str]  # those of the groups above it too, by file
    descriptors: dict[str, int] | None  # how many of each kind


def read(pid: int) -> Layers:
    """Return a process's layers. Raises OSError if it is gone, or another user's."""
    place = Path("/proc", str(pid))
    status = _status(place)
    closed = is_closed(pid)
    groups = tuple((place / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines())
    return Layers(
        pid=pid,
        program=printable(status["Name"] if closed else os.path.basename(os.fsencode((place / "exe").readlink()))),
        uid=int(status["Uid"].split()[1]),
        namespaces=None if closed else tuple(sorted(_namespaces(place))),
        uid_map=tuple(" ".join(line.split()) for line in (place / "uid_map").read_text(encoding="ascii").splitlines()),
        capabilities={name: mask for name in CAPABILITY_SETS if (mask := int(status[name], 16))},
        no_new_privileges=status["NoNewPrivs"] == "1",
        seccomp=SECCOMP_MODES.get(int(status["Seccomp"]), status["Seccomp"]),
        seccomp_filters=int(status.get("Seccomp_filters", 0)),
        limits=_limits(place),
        groups=tuple(printable(line.partition(":")[2], 500) for line in groups),
        group_limits=dict(group_limits(groups, _hierarchies())),
        descriptors=None if closed else dict(sorted(Counter(_kinds(place)).items())),
    )


def is_closed(pid: int) -> bool:
    """Whether a process keeps its memory from the caller, who is its user. Raises OSError if it is gone, or another's.

    Then its files in /proc are root's (proc(5)), but for its folder.
    """
    place = Path("/proc", str(pid))
    mine = os.geteuid()
    return mine != 0 and (place / "environ").stat().st_uid != mine and int(_status(place)["Uid"].split()[1]) == mine


@dataclass(frozen=True, slots=True)
class Source:
    """A file or block device that a process has open for reading. `sealed`: no opening of it anew can write to it.

    That is so for a file whose mount is read-only, whoever may see that, and for a device that is.
    """

    number: tuple[int, int]
    block_device: bool
    sealed: bool


def sources(pid: int) -> Iterator[Source]:
    """Yield what a process reads. Raises OSError if it is gone, another user's, or closed to the caller."""
    place = Path("/proc", str(pid))
    for link in (place / "fd").iterdir():
        try:
            status = link.stat()
            if _access(place / "fdinfo" / link.name) == "writable":
                continue
            if stat.S_ISBLK(status.st_mode):
                yield Source((0, status.st_rdev), True, _is_read_only(status.st_rdev))
            elif stat.S_ISREG(status.st_mode):
                sealed = bool(os.statvfs(link).f_flag & os.ST_RDONLY)
                yield Source((status.st_dev, status.st_ino), False, sealed)
        except FileNotFoundError:  # closed meanwhile
            continue


def _is_read_only(device: int) -> bool:
    place = Path("/sys/dev/block", f"{os.major(device)}:{os.minor(device)}", "ro")
    return place.read_text(encoding="ascii").strip() == "1"


def _status(place: Path) -> dict[str, str]:
    lines = (place / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _namespaces(place: Path) -> Iterator[str]:
    for kind in os.listdir("/proc/self/ns"):
        if not kind.endswith("_for_children") and os.readlink(place / "ns" / kind) != os.readlink(
            f"/proc/self/ns/{kind}"
        ):
            yield kind


def _limits(place: Path) -> dict[str, str]:
    """Return the soft limits; the table's names have blanks, its columns stand apart by two."""
    rows = (line.split("  ") for line in (place / "limits").read_text(encoding="ascii").splitlines())
    soft = {row[0].strip(): next(word.strip() for word in row[1:] if word.strip()) for row in rows if row[1:]}
    return {name.removeprefix("Max "): soft[name] for name in LIMITS}


def _hierarchies() -> dict[str, Path]:
    """Return where the hierarchies of control groups are mounted: "" for version 2, else by controllers."""
    found = {}
    for mount in mounted():
        if mount.fstype == "cgroup2":
            found[""] = Path(mount.point)
        elif mount.fstype == "cgroup":
            found[os.path.basename(mount.point)] = Path(mount.point)
    return found


def group_limits(groups: tuple[str, ...], hierarchies: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield the limits of a process's control groups (lines of /proc/PID/cgroup) and of those above, by file."""
    for line in groups:
        _, controllers, path = line.split(":", 2)
        top = hierarchies.get(controllers)
        if top is None:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _limits_in(folder)
            if folder == top:
                break


def _limits_in(folder: Path) -> Iterator[tuple[str, str]]:
    for name in GROUP_LIMITS:
        file = folder / name
        if file.exists() and (value := file.read_text(encoding="ascii").strip()).split()[0] not in UNLIMITED:
            yield str(file), value


def _kinds(place: Path) -> Iterator[str]:
    """Yield what each descriptor is. A file on no file system of the reader's is the process's own, in memory."""
    ours = {os.makedev(*mount.number) for mount in mounted()}
    for link in (place / "fd").iterdir():
        try:
            yield _kind(link, ours)
        except FileNotFoundError:  # closed meanwhile
            continue


def _kind(link: Path, ours: set[int]) -> str:
    """Say what a descriptor is; `ours`: the numbers of the reader's file systems."""
    target, status = os.readlink(link), link.stat()
    if target.startswith("anon_inode:"):
        return target.removeprefix("anon_inode:").strip("[]")
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISFIFO(status.st_mode):
        return "socket" if stat.S_ISSOCK(status.st_mode) else "pipe"
    if stat.S_ISCHR(status.st_mode):
        return printable(target)
    kind = "block device" if stat.S_ISBLK(status.st_mode) else "folder" if link.is_dir() else "file"
    own = "" if stat.S_ISBLK(status.st_mode) or status.st_dev in ours else "own "
    return f"{own}{kind}, {_access(link.parent.parent / 'fdinfo' / link.name)}"


def _access(fdinfo: Path) -> str:
    words = fdinfo.read_text(encoding="ascii").split()
    flags = int(words[words.index("flags:") + 1], 8)
    return "read-only" if flags & os.O_ACCMODE == os.O_RDONLY else "writable"
