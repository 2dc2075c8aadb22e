"""Measure mountsafe against the kernel's loop mount and guestmount: sudo ./dev bench [--help].

It makes its own images, once; content.py says what is on them, works.py what is measured, report.py what is demanded.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import measure
import report
from content import BIG, TREE
from measure import BenchError
from media import Kitchen, Recipe, recipes
from mounters import GUESTMOUNT_OPTIONS, Guestmount, Kernel, Mounted, Mounter, Mountsafe, guestfs_environment
from works import GROUPS, IDLE_SECONDS, WORKS, Group, Turn, distinct_copies, merged
from writing import WRITING

WORKDIR = Path("/var/tmp/mountsafe-bench")
RESULTS = Path(__file__).resolve().with_name("RESULTS.md")
QUICK_FILESYSTEMS = ("ext4", "vfat", "squashfs")
EIGHT = "memory-eight"
MINIMUM_FREE_MIB = 1500  # of memory for each virtual machine of the eight


class Bench:
    """One run. `filesystems` empty: each work's own."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.quick: bool = arguments.quick
        self.rounds: int = arguments.rounds or (1 if self.quick else 3)
        self.guestmount_rounds: int = min(arguments.guestmount_rounds, self.rounds)
        self.keys = set(arguments.only) or set(WORKS)
        self.filesystems: tuple[str, ...] = tuple(arguments.fs) or (QUICK_FILESYSTEMS if self.quick else ())
        self.asked_for_filesystems = bool(arguments.fs)
        self.workdir: Path = arguments.workdir
        self.program: Path = arguments.mountsafe
        self.figures: report.Figures = {}
        self.accelerator = "tcg"
        self._began = time.monotonic()
        self._images: dict[str, Path] = {}
        self._recipes = recipes(self.quick)
        self._mounters: list[Mounter] = []
        self._scratch = self.workdir

    def say(self, words: str) -> None:
        """Say how far it is."""
        print(f"{time.monotonic() - self._began:7.1f} s  {words}", file=sys.stderr, flush=True)

    def wants(self, key: str, filesystem: str) -> bool:
        """Whether a work is to be measured on a file system."""
        if key not in self.keys or (self.filesystems and filesystem not in self.filesystems):
            return False
        return filesystem in WORKS[key].filesystems or (self.asked_for_filesystems and bool(self.filesystems))

    # --- what is to be done ------------------------------------------------------------------------------------------
    def plan(self) -> list[tuple[Group, Recipe]]:
        """Return which groups run on which images."""
        planned = []
        for recipe in self._recipes.values():
            keys = {key for key in WORKS if self.wants(key, recipe.filesystem)}
            groups = [group.only(keys) for group in (*GROUPS, WRITING) if group.fits(recipe)]
            groups = [group for group in groups if group.steps]
            planned += [(group, recipe) for group in (merged(groups) if self.quick else groups)]
        return planned

    def run(self) -> None:
        """Make what is missing, then measure."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        planned = self.plan()
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.workdir) as name:
            self._scratch = Path(name)
            measure.touch_memory()
            environment = self._warm_up()
            kitchen = Kitchen(self.workdir / "images", environment, self.say)
            wanted = {recipe.name: recipe for _, recipe in planned}
            if self.wants(EIGHT, "ext4"):
                wanted["ext4"] = self._recipes["ext4"]
            self._images = kitchen.make(list(wanted.values()))
            for number in range(self.rounds):
                for group, recipe in planned:
                    for mounter in self._mounters:
                        left_out = isinstance(mounter, Guestmount) and number >= self.guestmount_rounds
                        if mounter.can(recipe.filesystem) and not left_out:
                            self._turn(group, recipe, mounter, number)
            if self.wants(EIGHT, "ext4"):
                for mounter in self._mounters[1:]:
                    self._eight_mounts(mounter)

    def _warm_up(self) -> dict[str, str]:
        """Mount a small image by every mounter, untimed: appliances are built, and it is known whether KVM works."""
        self.say("the appliance of mountsafe")
        mountsafe = Mountsafe(self.program)
        mountsafe.build()
        image = self._scratch / "first.img"
        with image.open("wb") as file:
            file.truncate(4 << 20)
        measure.run("mke2fs", "-q", "-F", "-t", "ext4", image)
        folder = self._folder("first")
        mounted = mountsafe.mount(image, "ext4", folder)
        self.accelerator = mounted.accelerator
        mounted.unmount()
        self.say(f"the appliance of guestmount (both with {self.accelerator})")
        environment = guestfs_environment(self.workdir / "libguestfs", self.accelerator)
        guestmount = Guestmount(environment)
        guestmount.mount(image, "ext4", folder).unmount()
        self._mounters = [Kernel(), guestmount, mountsafe]
        return environment

    def _folder(self, name: str) -> Path:
        folder: Path = self._scratch / name
        folder.mkdir(exist_ok=True)
        return folder

    # --- measuring ---------------------------------------------------------------------------------------------------
    def _record(self, recipe: Recipe, letter: str, key: str, value: float) -> None:
        if key in self.keys:
            columns = self.figures.setdefault((key, recipe.filesystem), {"K": [], "G": [], "M": []})
            columns[letter].append(value)
            self.say(f"    {letter} {recipe.filesystem:9} {key:16} {value:10.3f} {WORKS[key].unit}")

    def _turn(self, group: Group, recipe: Recipe, mounter: Mounter, number: int) -> None:
        image = self._images[recipe.name]
        if group.writes:
            image = distinct_copies(image, self._scratch, 1)[0]
        self.say(f"{recipe.name}, {group.name}, round {number + 1} of {self.rounds}, {mounter.letter}")
        group.before(image)
        began = time.perf_counter()
        with self._mounted(mounter, recipe, image, self._folder("mnt"), group.writes) as mounted:
            measure.run("ls", mounted.folder)
            mount_seconds = time.perf_counter() - began
            measure.warm_tools()
            turn = Turn(
                recipe,
                image,
                mounted,
                mount_seconds,
                self._scratch,
                lambda key, value: self._record(recipe, mounter.letter, key, value),
                2.0 if self.quick else IDLE_SECONDS,
                number == 0,
                self.quick,
            )
            for step in group.steps:
                step.function(turn)

    @contextmanager
    def _mounted(
        self, mounter: Mounter, recipe: Recipe, image: Path, folder: Path, write: bool = False
    ) -> Iterator[Mounted]:
        mounted = mounter.mount(image, recipe.filesystem, folder, write)
        try:
            yield mounted
        finally:
            measure.Reader.end_all()
            mounted.unmount()

    def _eight_mounts(self, mounter: Mounter) -> None:
        """Memory of many mounts, each of which has listed and read something."""
        count = 2 if self.quick else 8
        recipe = self._recipes["ext4"]
        available = _available_mib()
        if available < count * MINIMUM_FREE_MIB:
            self.say(f"only {available} MiB of memory are free: no measurement with {count} mounts")
            return
        self.say(f"{count} mounts at once, {mounter.letter}")
        with ExitStack() as stack:
            mounts = []
            for number, copy in enumerate(distinct_copies(self._images["ext4"], self._scratch, count)):
                folder = self._folder(f"mnt-{number}")
                mounts.append(stack.enter_context(self._mounted(mounter, recipe, copy, folder)))
                measure.timed(["find", TREE, "-ls"], folder)
                measure.read("sequential", folder / BIG, 0, 64 << 20)
            time.sleep(2.0 if self.quick else IDLE_SECONDS)
            total = sum(measure.pss(mounted.processes()) for mounted in mounts)
            self._record(recipe, mounter.letter, EIGHT, total / count)


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


def _words(known: tuple[str, ...]) -> "argparse._ActionType":
    def convert(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(known)}")
        return words

    return convert


def _arguments(words: list[str]) -> argparse.Namespace:
    filesystems = tuple(dict.fromkeys(recipe.filesystem for recipe in recipes(quick=False).values()))
    parser = argparse.ArgumentParser(prog="./dev bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", type=_words(tuple(WORKS)), default=[], metavar="WORK[,...]", help=f"of {', '.join(WORKS)}"
    )
    parser.add_argument(
        "--fs",
        type=_words(filesystems),
        default=[],
        metavar="TYPE[,...]",
        help=f"every work on these, of {', '.join(filesystems)}",
    )
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="3; with --quick 1")
    parser.add_argument(
        "--guestmount-rounds", type=int, default=1, metavar="N", help="of these, with guestmount, the slowest; 1"
    )
    parser.add_argument("--quick", action="store_true", help="small images, few mounts: does it work, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--save", action="store_true", help="write bench/RESULTS.md")
    parser.add_argument("--workdir", type=Path, default=WORKDIR, metavar="DIR", help=f"for images; {WORKDIR}")
    parser.add_argument(
        "--mountsafe",
        type=Path,
        default=Path(sys.executable).with_name("mountsafe"),
        metavar="PROGRAM",
        help="the command to measure; the one of this environment",
    )
    return parser.parse_args(words)


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run with the command line's words."""
    arguments = _arguments(sys.argv[1:])
    if os.geteuid() != 0:
        print("bench: it empties the page cache and makes loop mounts: sudo ./dev bench", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    bench = Bench(arguments)
    code = 0
    try:
        bench.run()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("bench: interrupted; so far:", file=sys.stderr)
        code = 130
    lines = report.lines(bench.figures)
    around = report.circumstances(
        bench.program, bench.accelerator, (bench.rounds, bench.guestmount_rounds), bench.quick
    )
    print(report.as_text(lines))
    print(report.verdict(lines))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.as_data(around, lines), indent=1) + "\n", encoding="utf-8")
    if arguments.save and code == 0:
        RESULTS.write_text(report.as_page(around, lines, GUESTMOUNT_OPTIONS), encoding="utf-8")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
