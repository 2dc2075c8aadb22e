"""What is measured. A group of steps runs on one fresh mount; a step records one or more figures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import content
import measure
from content import BIG, DEEP, FLAT, MIB, TREE
from measure import BenchError, Reader
from media import Recipe
from mounters import Mounted, MountsafeMounted

RANDOM_READS, RANDOM_BYTES = 2000, 4096
READERS = 8
IDLE_SECONDS = 15.0


@dataclass(frozen=True)
class Work:
    """A line of the table. `filesystems`: where it is measured unless the user says otherwise."""

    key: str
    title: str
    unit: str
    filesystems: tuple[str, ...] = ("ext4",)


LOOPED = ("ext4", "xfs")
DIRECT = ("vfat", "exfat", "ntfs", "hfsplus", "iso9660")
PACKED = ("squashfs", "btrfs")
WRITTEN = ("ext4", "vfat", "exfat")
SPEED = "MiB/s"
WORKS = {
    work.key: work
    for work in (
        Work("mount-cold", "from command to first ls, nothing in memory", "s"),
        Work("mount-warm", "from command to first ls, programs and image in page cache", "s"),
        Work("seq-cold", "read a big file, cold", SPEED, (*LOOPED, *DIRECT, *PACKED)),
        Work("seq-cached", "read a big file, image in page cache", SPEED, (*LOOPED, *DIRECT, *PACKED)),
        Work("random", f"{RANDOM_READS} random 4 KiB reads, cold", "s"),
        Work("eight", "eight readers of one file, image in page cache", SPEED),
        Work("find-first", "find -ls of 3,055 entries, first", "s"),
        Work("find-again", "find -ls of 3,055 entries, again", "s"),
        Work("stat-first", "lstat of 3,055 paths, first", "s"),
        Work("stat-again", "lstat of 3,055 paths, again", "s"),
        Work("tar", "tar of 3,000 small files, cold", "s"),
        Work("ls", "ls -la of 50,000 files in one folder, cold", "s", LOOPED),
        Work("find-deep-first", "find -ls of 100,000 entries, first", "s"),
        Work("find-deep-again", "find -ls of 100,000 entries, again", "s"),
        Work("write-first", "touch, when nobody has written for a while", "s", WRITTEN),
        Work("write-big", "cp of 256 MiB", "s", WRITTEN),
        Work("write-big-durable", "cp of 256 MiB, on the medium", "s", WRITTEN),
        Work("write-random", "2,000 random 4 KiB in place, then fsync", "s", WRITTEN),
        Work("write-tree", "cp -r of 1,200 small files", "s", WRITTEN),
        Work("write-tree-durable", "cp -r of 1,200 small files, on the medium", "s", WRITTEN),
        Work("write-tar", "untar of 3,000 small files", "s", WRITTEN),
        Work("write-tar-durable", "untar of 3,000 small files, on the medium", "s", WRITTEN),
        Work("write-rm", "rm -rf of 1,200 small files", "s", WRITTEN),
        Work("write-rm-durable", "rm -rf of 1,200 small files, on the medium", "s", WRITTEN),
        Work("memory-written", "memory after writing", "MiB", WRITTEN),
        Work("memory-active", "memory after reading", "MiB"),
        Work("memory-idle", f"memory {IDLE_SECONDS:.0f} s later", "MiB"),
        Work("memory-ended", "memory with the VM ended", "MiB"),
        Work("memory-eight", "memory of each of eight mounts, idle", "MiB"),
    )
}


class Mismatch(BenchError):
    """A mount that shows other bytes than were put on the image."""


@dataclass
class Turn:
    """One mounter's turn at a group: the mount, and where figures go. `mount_seconds`: from command to first ls."""

    recipe: Recipe
    image: Path
    mounted: Mounted
    mount_seconds: float
    scratch: Path
    record: Callable[[str, float], None]
    idle_seconds: float
    is_first_round: bool
    quick: bool = False

    @property
    def folder(self) -> Path:
        return self.mounted.folder

    @property
    def big(self) -> Path:
        return self.folder / BIG

    @property
    def big_bytes(self) -> int:
        return self.recipe.content.big * MIB


# --- steps ----------------------------------------------------------------------------------------------------------
def mount_cold(turn: Turn) -> None:
    turn.record("mount-cold", turn.mount_seconds)


def mount_warm(turn: Turn) -> None:
    """mountsafe keeps no virtual machine for the next mount, but starts each from a saved one."""
    turn.record("mount-warm", turn.mount_seconds)


def _read_big(turn: Turn, before: Callable[[Path], None] | None) -> float:
    reader = Reader("sequential", turn.big, 0, turn.big_bytes)
    if before is not None:
        before(turn.image)
    reader.go()
    result = reader.result()
    if result["bytes"] != turn.big_bytes:
        raise Mismatch(f"{turn.big} ended after {result['bytes']} bytes")
    return turn.recipe.content.big / float(result["seconds"])


def seq_cold(turn: Turn) -> None:
    turn.record("seq-cold", _read_big(turn, measure.empty_caches))


def seq_cached(turn: Turn) -> None:
    turn.record("seq-cached", _read_big(turn, None))


def random_reads(turn: Turn) -> None:
    reader = Reader("scattered", turn.big, content.SEED, RANDOM_READS, RANDOM_BYTES)
    measure.empty_caches(turn.image)
    reader.go()
    turn.record("random", float(reader.result()["seconds"]))


def eight(turn: Turn) -> None:
    """Total speed of eight processes that read a region each."""
    region = turn.big_bytes // READERS
    readers = [Reader("sequential", turn.big, number * region, region) for number in range(READERS)]
    began = time.perf_counter()
    for reader in readers:
        reader.go()
    for reader in readers:
        reader.result()
    turn.record("eight", turn.recipe.content.big / (time.perf_counter() - began))


def find(turn: Turn) -> None:
    _find_twice(turn, TREE, "find")


def find_deep(turn: Turn) -> None:
    _find_twice(turn, DEEP, "find-deep")


def _find_twice(turn: Turn, folder: str, key: str) -> None:
    for time_of_it in ("first", "again"):
        turn.record(f"{key}-{time_of_it}", measure.timed(["find", folder, "-ls"], turn.folder))


def status(turn: Turn) -> None:
    """Like `git status`: every path is looked at, in no order."""
    names = turn.scratch / "names"
    names.write_text("".join(f"{entry.path}\n" for entry in content.tree(turn.recipe.content)), encoding="utf-8")
    for time_of_it in ("first", "again"):
        result = measure.read("status", turn.folder, names, content.SEED)
        turn.record(f"stat-{time_of_it}", float(result["seconds"]))


def archive(turn: Turn) -> None:
    # GNU tar reads no file when it writes to /dev/null.
    turn.record("tar", measure.timed(["sh", "-c", f"tar cf - {TREE} | cat >/dev/null"], turn.folder))


def list_flat(turn: Turn) -> None:
    turn.record("ls", measure.timed(["ls", "-la", FLAT], turn.folder))


def memory(turn: Turn) -> None:
    """Record memory at once and after a while; of mountsafe also without its virtual machine."""
    if not turn.mounted.processes():
        return
    turn.record("memory-active", measure.pss(turn.mounted.processes()))
    time.sleep(turn.idle_seconds)
    mounted = turn.mounted
    if not isinstance(mounted, MountsafeMounted):
        turn.record("memory-idle", measure.pss(mounted.processes()))
        return
    if mounted.has_machine():
        turn.record("memory-idle", measure.pss(mounted.processes()))
        mounted.end_machine()
        time.sleep(1)
    turn.record("memory-ended", measure.pss(mounted.processes()))


def check_bytes(turn: Turn) -> None:
    """Compare what the mount shows with what was put on the image."""
    if not turn.is_first_round:
        return
    of = turn.recipe.content
    if of.big:
        offsets = content.sample_offsets(of)
        found = measure.read("samples", turn.big, str(offsets), content.SAMPLE_BYTES)["digest"]
        _same(turn, BIG, found, content.sample_digest(of))
    if of.tree_files:
        found = measure.read("digest", turn.folder, TREE, "data")["digest"]
        _same(turn, TREE, found, content.tree_digest(content.tree(of), with_data=True))
    if of.flat:
        found = measure.read("digest", turn.folder, FLAT, "")["digest"]
        _same(turn, FLAT, found, content.tree_digest(content.flat(of), with_data=False))
    if of.deep:
        found = measure.read("digest", turn.folder, DEEP, "")["digest"]
        _same(turn, DEEP, found, content.tree_digest(content.deep(of), with_data=False))


def _same(turn: Turn, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise Mismatch(f"{turn.recipe.name}: {what} in {turn.folder} is not what was put on the image")


# --- groups ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """A function and the figures that it records. A step without figures runs whenever its group does."""

    function: Callable[[Turn], None]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Steps on one mount. `many`: on the image of many entries; `writes`: on a copy of an empty one, to be changed.
    `before`: what is done to the caches before mounting;
    the programs that are timed are in the page cache in any case.
    """

    name: str
    steps: tuple[Step, ...]
    many: bool = False
    before: Callable[[Path], None] = field(default=measure.empty_caches)
    writes: bool = False

    def fits(self, recipe: Recipe) -> bool:
        """Whether it runs on this image."""
        return (self.many, self.writes) == (bool(recipe.content.flat), recipe.empty)

    def only(self, keys: set[str]) -> "Group":
        """Return the group with only the steps that record one of `keys`."""
        steps = [step for step in self.steps if set(step.keys) & keys]
        free = [step for step in self.steps if not step.keys] if steps else []
        kept = tuple(step for step in self.steps if step in steps or step in free)
        return Group(self.name, kept if self.writes else (*steps, *free), self.many, self.before, self.writes)


GROUPS = (
    Group(
        "cached",
        (
            Step(mount_warm, ("mount-warm",)),
            Step(seq_cached, ("seq-cached",)),
            Step(check_bytes),
        ),
        before=measure.fill_cache,
    ),
    Group("eight", (Step(eight, ("eight",)),), before=measure.fill_cache),
    Group("find", (Step(mount_cold, ("mount-cold",)), Step(find, ("find-first", "find-again")))),
    Group("stat", (Step(status, ("stat-first", "stat-again")),)),
    Group("tar", (Step(archive, ("tar",)),)),
    Group(
        "many",
        (
            Step(list_flat, ("ls",)),
            Step(find_deep, ("find-deep-first", "find-deep-again")),
            Step(check_bytes),
        ),
        many=True,
    ),
    Group(
        "cold",
        (
            Step(random_reads, ("random",)),
            Step(seq_cold, ("seq-cold",)),
            Step(memory, ("memory-active", "memory-idle", "memory-ended")),
        ),
    ),
)


def merged(groups: list[Group]) -> list[Group]:
    """Return the groups of each image as one, which saves mounts: for a quick look, not for figures."""
    found = [group for group in groups if group.writes]
    for many in (False, True):
        steps = [step for group in groups if group.many == many and not group.writes for step in group.steps]
        if steps:
            found.append(Group("all", tuple(dict.fromkeys(steps)), many, measure.fill_cache))
    return found


def distinct_copies(image: Path, folder: Path, count: int) -> list[Path]:
    """Return copies of an image: a source is mounted once only, under whatever name."""
    copies = [folder / f"copy-{number}.img" for number in range(count)]
    for copy in copies:
        measure.run("cp", "--sparse=always", image, copy)
    return copies
