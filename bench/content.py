"""What is on the images: made from a seed, so that every run reads the same bytes and any byte can be made again."""

import hashlib
import io
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 20231114
EPOCH = 1_700_000_000
MIB = 1 << 20
BIG, TREE, FLAT, DEEP = "big.bin", "tree", "flat", "deep"
SAMPLES, SAMPLE_BYTES = 64, 256 << 10


@dataclass(frozen=True)
class Content:
    """One image's files. A count of 0 leaves that part out.

    `big`: MiB of BIG, which a compressor halves if `compressible` and cannot touch otherwise. TREE: `tree_files` of up
    to 16 KiB in `tree_folders`, and four beside the folders. FLAT: `flat` files in one folder. DEEP: `deep` entries,
    itself included, in `deep_folders` folders on two levels.
    """

    big: int = 0
    compressible: bool = False
    tree_files: int = 0
    tree_folders: int = 0
    flat: int = 0
    deep: int = 0
    deep_folders: int = 0

    @property
    def bytes(self) -> int:
        """About how much room the files take, in blocks of 4 KiB."""
        return self.big * MIB + self.tree_files * 12_000 + (self.flat + self.deep) * 4096


@dataclass(frozen=True)
class Entry:
    """A file, or a folder (`size` None). `path` is relative to the image's root."""

    path: str
    size: int | None = None

    def data(self) -> bytes:
        """The bytes of a small file."""
        return random.Random(f"{SEED}/{self.path}").randbytes(self.size or 0)


def tree(content: Content) -> list[Entry]:
    """Return the entries of TREE, itself first."""
    sizes = random.Random(SEED)
    entries = [Entry(TREE), *(Entry(f"{TREE}/note-{number}.txt", 100) for number in range(4))]
    entries += [Entry(f"{TREE}/folder-{number:02}") for number in range(content.tree_folders)]
    for number in range(content.tree_files):
        folder = number % content.tree_folders
        entries.append(Entry(f"{TREE}/folder-{folder:02}/file-{number:04}.dat", sizes.randrange(200, 16_000)))
    return entries


def flat(content: Content) -> list[Entry]:
    """Return the entries of FLAT, itself first."""
    return [Entry(FLAT), *(Entry(f"{FLAT}/file-{number:05}.txt", 64) for number in range(content.flat))]


def deep(content: Content) -> list[Entry]:
    """Return the entries of DEEP, itself first: 20 folders of folders of files."""
    outer = [f"{DEEP}/{number:02}" for number in range(20)]
    inner = [f"{outer[number % 20]}/{number:03}" for number in range(content.deep_folders - 20)]
    files = [f"{inner[n % len(inner)]}/file-{n:05}.txt" for n in range(content.deep - content.deep_folders - 1)]
    return [Entry(DEEP), *map(Entry, outer), *map(Entry, inner), *(Entry(path, 64) for path in files)]


def entries(content: Content) -> Iterator[Entry]:
    """Yield everything but BIG, folders before what is in them."""
    yield from tree(content) if content.tree_files else ()
    yield from flat(content) if content.flat else ()
    yield from deep(content) if content.deep else ()


def chunk(content: Content, number: int) -> bytes:
    """The MiB of BIG with this number."""
    source = random.Random(SEED * 1_000_003 + number)
    return source.randbytes(MIB // 2).hex().encode() if content.compressible else source.randbytes(MIB)


class _BigFile(io.RawIOBase):
    """BIG as a file that tarfile can read."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._chunks = iter(range(content.big))
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (number := next(self._chunks, None)) is not None:
            self._rest += chunk(self._content, number)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def write_archive(content: Content, path: Path) -> None:
    """Write everything as a tar archive."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        if content.big:
            tar.addfile(_header(Entry(BIG, content.big * MIB)), _BigFile(content))
        for entry in entries(content):
            tar.addfile(_header(entry), io.BytesIO(entry.data()) if entry.size is not None else None)


def _header(entry: Entry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(entry.path)
    header.mtime = EPOCH
    if entry.size is None:
        header.type, header.mode = tarfile.DIRTYPE, 0o755
    else:
        header.size, header.mode = entry.size, 0o644
    return header


# --- what must be read back -----------------------------------------------------------------------------------------
def sample_offsets(content: Content) -> list[int]:
    """Where the samples of BIG are: its start, its end, and places between that no block size divides."""
    last = content.big * MIB - SAMPLE_BYTES
    places = random.Random(SEED + 1)
    return [0, last, *(places.randrange(last) for _ in range(SAMPLES - 2))]


def sample_digest(content: Content) -> str:
    """The digest that `reader.py samples` must find."""
    digest = hashlib.sha256()
    for offset in sample_offsets(content):
        first, skip = divmod(offset, MIB)
        pair = chunk(content, first) + (chunk(content, first + 1) if first + 1 < content.big else b"")
        digest.update(pair[skip : skip + SAMPLE_BYTES])
    return digest.hexdigest()


def tree_digest(listed: list[Entry], with_data: bool) -> str:
    """The digest that `reader.py digest` must find of one of the folders: names, sizes, and with `with_data` bytes."""
    digest = hashlib.sha256()
    for entry in sorted(listed, key=lambda entry: entry.path):
        digest.update(f"{entry.path} {'folder' if entry.size is None else entry.size}\n".encode())
        if with_data and entry.size is not None:
            digest.update(entry.data())
    return digest.hexdigest()
