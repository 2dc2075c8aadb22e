"""What is run: every image of the corpus or of a folder as it is; mutations of valid images, containers and headers."""

import json
import mmap
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from images import images
from tests.hostile import headers, mutations
from tests.hostile.mutations import Edit
from tests.vm import corpus, qemu_img, types

INDEX = "bases.json"
CONTAINED = ("hostile-names", "dirty-ext4")  # small ones: it is their containers that are damaged
OF_A_TYPE = 2  # images of the corpus that mutations of a type are made of, besides ours
OFTENER = 3
COMMANDS = 40  # headers, of which a turn goes through the command line
LARGEST_BASE = 1 << 20  # as it is stored: a mutation copies it


@dataclass(frozen=True, slots=True)
class Case:
    """One image to open. `way`: who runs the command ("root", "user"), or without a command line "session", in a
    virtual machine of its own, or "shared", in one that is there for many images. "keys": it is unlocked, in none.

    `source`: an image of the corpus, a file, or the base of a mutation, whose `seed` or `edits` say what is changed.
    """

    name: str
    way: str
    source: str
    seed: str | None = None
    edits: tuple[tuple[int, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A valid image that mutations are made of. `option` as for --type."""

    path: str
    fstype: str
    option: str | None


def of_corpus() -> list[Case]:
    """Every image of the corpus, in turns by root and by an ordinary user."""
    return [Case(f"corpus/{name}", ("user", "root")[n % 2], name) for n, name in enumerate(sorted(corpus.images()))]


def of_folder(folder: Path) -> list[Case]:
    """Every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [
        Case(f"file/{path.relative_to(folder)}", ("user", "root")[n % 2], str(path)) for n, path in enumerate(files)
    ]


def turns(bases: Iterable[str]) -> list[str]:
    """The order in which bases are mutated: ours hold 320 entries and cost twice the time, so their turn comes less."""
    ours = [name for name in bases if name.startswith("images/")]
    return [name for name in bases if name not in ours] * OFTENER + ours


def of_mutations(count: int, seed: int, names: list[str], kind: str = "mutation") -> Iterator[Case]:
    """`count` mutations, in turns of every base. `kind` is what their names begin with."""
    for number in range(count):
        name = names[number % len(names)]
        yield Case(f"{kind}/{seed}/{number}", "shared", name, f"{seed} {number} {name}")


def of_headers(count: int, seed: int) -> Iterator[Case]:
    """`count` damaged headers of encrypted volumes, each with a key; some of them through the command line."""
    for number in range(count):
        name = list(headers.LOCKS)[number % len(headers.LOCKS)]
        command = headers.LOCKS[name].file and number % COMMANDS < len(headers.LOCKS)
        way = ("user", "root")[number % 2] if command else "keys"
        yield Case(f"header/{seed}/{number}", way, f"{headers.PREFIX}{name}", f"{seed} {number} {name}")


# --- bases ---------------------------------------------------------------------------------------------------------
def make_bases(folder: Path, of_the_corpus: bool = True) -> dict[str, Base]:
    """Unpack what mutations are made of into `folder`, if that was not done yet."""
    return load_bases(folder) or _made(folder, _images(folder, of_the_corpus))


def make_containers(folder: Path) -> dict[str, Base]:
    """Make the containers that mutations are made of in `folder`, if that was not done yet."""
    return load_bases(folder) or _made(folder, _containers(folder))


def make_headers(folder: Path) -> dict[str, Base]:
    """Make the encrypted volumes that mutations are made of in `folder`, if that was not done yet."""
    return load_bases(folder) or _made(folder, _encrypted(folder))


def _encrypted(folder: Path) -> Iterator[tuple[str, Base]]:
    for name, lock in headers.LOCKS.items():
        headers.make(name, folder / name)
        yield f"{headers.PREFIX}{name}", Base(str(folder / name), "", lock.fstype)


def _made(folder: Path, bases: Iterator[tuple[str, Base]]) -> dict[str, Base]:
    folder.mkdir(parents=True, exist_ok=True)
    made = dict(bases)
    text = json.dumps({name: asdict(base) for name, base in made.items()}, indent=1)
    (folder / INDEX).write_text(text, encoding="utf-8")
    return made


def _images(folder: Path, of_the_corpus: bool) -> Iterator[tuple[str, Base]]:
    for name in images.names():
        kinds = [volume.filesystem for volume in images.volumes(name)]
        if any(kind in types.TYPES and types.TYPES[kind].read for kind in kinds) and name != "truncated":
            path = images.unpack(name, folder)
            yield f"images/{name}", Base(str(path), kinds[0] if len(kinds) == 1 else "", None)
    for number, image in enumerate(_populated() if of_the_corpus else ()):
        path = folder / f"{number}.img"
        corpus.unpack(image, path)
        yield image.path, Base(str(path), image.fstype, image.option)


def _containers(folder: Path) -> Iterator[tuple[str, Base]]:
    for name in CONTAINED:
        disk = images.unpack(name, folder)
        for way, words in qemu_img.WAYS.items():
            path = folder / f"{name}.{way}"
            qemu_img.convert(disk, way, path)
            yield path.name, Base(str(path), words[0], None)
        disk.unlink()


def load_bases(folder: Path) -> dict[str, Base]:
    """Return what `make_bases` or `make_containers` has made in `folder`, if they did."""
    try:
        stored = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: Base(**base) for name, base in stored.items()}


def containers_in(folder: Path) -> Path:
    """Where the containers of a folder of bases are."""
    return folder / "containers"


def headers_in(folder: Path) -> Path:
    """Where the encrypted volumes of a folder of bases are."""
    return folder / "headers"


def all_bases(folder: Path) -> dict[str, Base]:
    """Return everything that was made in a folder."""
    return load_bases(folder) | load_bases(containers_in(folder)) | load_bases(headers_in(folder))


def _populated() -> Iterator[corpus.Image]:
    """The smallest images of each type whose content is known and that must open."""
    by_type = defaultdict(list)
    for name in {**corpus.stated(), **corpus.listed()}:
        image = corpus.images()[name]
        stored = (corpus.folder() / name).stat().st_size
        if types.refusal(name, image.fstype) is None and stored <= LARGEST_BASE and image.kind.startswith("valid"):
            by_type[image.fstype].append((stored, name))
    for found in by_type.values():
        yield from (corpus.images()[name] for _, name in sorted(found)[:OF_A_TYPE])


# --- one image -----------------------------------------------------------------------------------------------------
class Workshop:
    """Makes the image of a case."""

    def __init__(self, bases: dict[str, Base]) -> None:
        self._bases = bases
        self._maps: dict[str, mutations.Map] = {}

    def make(self, case: Case, target: Path) -> str | None:
        """Write the image; return the type that its user has to name, if any."""
        if case.seed is not None or case.edits is not None:
            base = self._bases[case.source]
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", base.path, target], check=True)
            self._change(base, target, self.edits(case), case.source.startswith(headers.PREFIX))
            return base.option
        if case.name.startswith("file/"):
            shutil.copyfile(case.source, target)
            return None
        image = corpus.images()[case.source]
        corpus.unpack(image, target)
        return image.option if image.fstype in types.TYPES else None

    def edits(self, case: Case) -> tuple[Edit, ...]:
        """Return how a mutation's image differs from its base, before checksums are set right."""
        if case.edits is not None:
            return tuple(Edit(offset, bytes.fromhex(data)) for offset, data in case.edits)
        base = self._bases[case.source]
        with _mapped(base.path) as data:
            if case.source.startswith(headers.PREFIX):
                return headers.mutate(case.source.removeprefix(headers.PREFIX), data, Random(case.seed))
            return mutations.mutate(data, self._map(base, data), Random(case.seed))

    def _map(self, base: Base, data: mmap.mmap) -> mutations.Map:
        if base.path not in self._maps:
            self._maps[base.path] = mutations.find(data, list(parts(Path(base.path))), base.fstype)
        return self._maps[base.path]

    def _change(self, base: Base, target: Path, edits: tuple[Edit, ...], sealed: bool) -> None:
        with _mapped(base.path) as data, target.open("r+b") as file:
            for edit in edits if sealed else mutations.sealed(data, self._map(base, data), edits):
                file.seek(edit.offset)
                file.write(edit.data)


def _mapped(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parts(path: Path) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is not a hole."""
    with path.open("rb") as file:
        end = 0
        with suppress(OSError):  # ENXIO: no more data
            while True:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                yield start, end - start
