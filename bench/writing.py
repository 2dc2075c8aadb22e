"""Works that write, on one mount of an empty image: how long the command takes, and until the medium has it all.

What the commands copy is made once in the bench's own folder, and is in the page cache.
"""

import time
from collections.abc import Callable
from pathlib import Path

import content
import measure
from content import BIG, TREE, Content
from works import Group, Mismatch, Step, Turn

RANDOM_WRITES, RANDOM_BYTES = 2000, 4096


class Sources:
    """What is copied, for a full or a quick run: a file, a tree, and an archive of another tree."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder = folder
        self._tree = Content(tree_files=100, tree_folders=8) if quick else Content(tree_files=1200, tree_folders=40)
        self._packed = Content(tree_files=200, tree_folders=8) if quick else Content(tree_files=3000, tree_folders=50)
        self.big_mib = 16 if quick else 256

    @property
    def archive(self) -> Path:
        return self.folder / "packed.tar"

    def make(self) -> None:
        """Make it, and have it in memory."""
        if not self.folder.exists():
            self.folder.mkdir()
            whole = self.folder / "tree.tar"
            content.write_archive(self._tree, whole)
            measure.run("tar", "-C", self.folder, "-xf", whole)
            content.write_archive(self._packed, self.archive)
            with (self.folder / BIG).open("wb") as file:
                for number in range(self.big_mib):
                    file.write(content.chunk(Content(big=self.big_mib), number))
        for path in (self.folder / BIG, self.archive):
            measure.fill_cache(path)
        measure.run("grep", "-rqs", "no file has this line", self.folder / TREE, check=False)


def _sources(turn: Turn) -> Sources:
    sources = Sources(turn.scratch / "sources", turn.quick)
    sources.make()
    return sources


def _work(turn: Turn, key: str, *command: str | Path) -> None:
    """Time a command, and the same until all that it wrote is on the medium."""
    turn.mounted.sync()
    began = time.perf_counter()
    took = measure.timed([str(word) for word in command], turn.folder)
    turn.mounted.sync()
    turn.record(key, took)
    turn.record(f"{key}-durable", time.perf_counter() - began)


def first(turn: Turn) -> None:
    """Nobody has written to it for a while."""
    turn.record("write-first", measure.timed(["touch", "first"], turn.folder))


def copy_big(turn: Turn) -> None:
    _work(turn, "write-big", "cp", _sources(turn).folder / BIG, BIG)


def overwrite(turn: Turn) -> None:
    """In place, and one fsync at the end."""
    turn.mounted.sync()
    told = measure.read("overwritten", turn.folder / BIG, content.SEED, RANDOM_WRITES, RANDOM_BYTES)
    turn.record("write-random", float(told["seconds"]))


def copy_tree(turn: Turn) -> None:
    _work(turn, "write-tree", "cp", "-r", _sources(turn).folder / TREE, TREE)


def check_tree(turn: Turn) -> None:
    """What is shown is what was copied."""
    found, wanted = (measure.read("digest", at, TREE, "data") for at in (turn.folder, _sources(turn).folder))
    if found != wanted:
        raise Mismatch(f"{turn.recipe.name}: {TREE} in {turn.folder} is not what was copied")


def unpack(turn: Turn) -> None:
    (turn.folder / "unpacked").mkdir()
    command = ("tar", "--no-same-owner", "--no-same-permissions", "-C", "unpacked", "-xf", _sources(turn).archive)
    _work(turn, "write-tar", *command)


def remove_tree(turn: Turn) -> None:
    _work(turn, "write-rm", "rm", "-rf", TREE)


def memory(turn: Turn) -> None:
    """Of all processes, when all of this was written; that of a mount that only reads is another line."""
    if turn.mounted.processes():
        turn.record("memory-written", measure.pss(turn.mounted.processes()))


def _steps(*each: Callable[[Turn], None]) -> tuple[Step, ...]:
    keys: dict[Callable[[Turn], None], tuple[str, ...]] = {
        first: ("write-first",),
        copy_big: ("write-big", "write-big-durable"),
        overwrite: ("write-random",),
        copy_tree: ("write-tree", "write-tree-durable"),
        unpack: ("write-tar", "write-tar-durable"),
        remove_tree: ("write-rm", "write-rm-durable"),
        memory: ("memory-written",),
    }
    return tuple(Step(function, keys.get(function, ())) for function in each)


WRITING = Group(
    "writing",
    _steps(first, copy_big, overwrite, copy_tree, check_tree, unpack, remove_tree, memory),
    writes=True,
)
