"""How much slower an encrypted medium is than the same one not encrypted: sudo ./dev bench encryption [--help].

The ext4 image of the benchmark, and copies of it in LUKS, are mounted in turns; figures are medians, ratios those of
each turn's. Ready: from command to first ls, less what cryptsetup takes to derive the key.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import measure
from content import BIG, MIB, TREE
from measure import BenchError, Reader, run
from media import Kitchen, recipes
from mounters import Mounted, Mountsafe, MountsafeMounted

from mountsafe.medium.encrypting import both_ways
from mountsafe.medium.encryption import UNIT, Cipher, Layout

WORKDIR = Path("/var/tmp/mountsafe-bench")
PASSPHRASE = b"what is measured is no secret"
TIMEOUT = 600.0
PIECE = 4 << 20  # bytes that are encrypted at once
PLAIN = "not encrypted"
# At least, or at most, this much of what is not encrypted; sequential reading by the size of sectors.
LEAST, MOST_READY, MOST_TAR = {512: 0.6, 4096: 0.85}, 1.2, 1.3


@dataclass(frozen=True)
class Kind:
    """A way to encrypt. `options`: of luksFormat; `sector`, in bytes."""

    name: str
    sector: int
    options: tuple[str, ...]


ARGON2 = ("--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1048576", "--pbkdf-parallel", "2")
KINDS = (
    Kind("LUKS1", 512, ("--type", "luks1", "--pbkdf-force-iterations", "1000000")),
    Kind("LUKS2", 4096, ("--type", "luks2", "--sector-size", "4096", *ARGON2)),
)


@dataclass
class Figures:
    """What was measured of one image: seconds, and of `read` MiB in a second."""

    ready: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    tar: list[float] = field(default_factory=list)


def encrypt(plain: Path, image: Path, kind: Kind) -> None:
    """Write an image whose plaintext is another one; nothing but cryptsetup(8) makes its header."""
    with image.open("wb") as file:
        file.truncate((32 << 20) + plain.stat().st_size)
    _cryptsetup("luksFormat", *kind.options, image)
    told = _cryptsetup("luksDump", "--dump-volume-key", image)
    key = bytearray.fromhex(re.sub(r"\s", "", told.partition("MK dump:")[2]))
    offset = re.search(r"Payload offset:\s*(\d+)", told)
    if offset is None:
        raise BenchError("cryptsetup tells no payload offset")
    cipher = both_ways(Layout(Cipher.AES_XTS, len(key), kind.sector, UNIT, kind.sector, ()), key)
    with plain.open("rb") as source, image.open("r+b") as made:
        made.seek(int(offset[1]) * UNIT)
        at = 0
        while data := bytearray(source.read(PIECE)):
            cipher.encrypt(memoryview(data), at // UNIT)
            made.write(data)
            at += len(data)


def _cryptsetup(*arguments: str | Path) -> str:
    command = ["cryptsetup", "-q", *arguments, "--key-file", "-"]
    done = subprocess.run(command, input=PASSPHRASE, capture_output=True, check=False, timeout=TIMEOUT)
    if done.returncode:
        raise BenchError(f"cryptsetup {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()


def derivation(image: Path) -> float:
    """Return how long cryptsetup takes to derive the key."""
    began = time.perf_counter()
    _cryptsetup("luksOpen", "--test-passphrase", image)
    return time.perf_counter() - began


def mounted_by(program: Path, image: Path, folder: Path, *more: str | Path) -> Mounted:
    """Mount by mountsafe, as a user would."""
    return MountsafeMounted(folder, json.loads(run(program, "mount", "--json", *more, image, folder)), program)


def measured(mount: Callable[[], Mounted], image: Path, into: Figures, big: int, less: float = 0.0) -> None:
    """Mount, measure and unmount once. `big`: MiB of the large file; `less`: seconds of the derivation."""
    measure.fill_cache(image)
    began = time.perf_counter()
    mounted = mount()
    os.listdir(mounted.folder)
    into.ready.append(time.perf_counter() - began - less)
    try:
        reader = Reader("sequential", mounted.folder / BIG, 0, big * MIB)
        reader.go()
        into.read.append(big / float(reader.result()["seconds"]))
        into.tar.append(measure.timed(["sh", "-c", f"tar cf - {TREE} | cat >/dev/null"], mounted.folder))
    finally:
        mounted.unmount()


def _shown(name: str, figures: Figures, plain: Figures, kind: Kind | None) -> None:
    """Print a line: medians, and the medians of what each turn's are of those that are not encrypted."""
    print(
        f"{name:32}"
        + "".join(f"{statistics.median(each):10.2f}" for each in (figures.ready, figures.read, figures.tar))
    )
    if kind is not None:
        of = [
            statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
            for mine, theirs in ((figures.ready, plain.ready), (figures.read, plain.read), (figures.tar, plain.tar))
        ]
        wanted = f"<= {MOST_READY}, >= {LEAST[kind.sector]}, <= {MOST_TAR}"
        print(f"{'  of that: ' + wanted:32}" + "".join(f"{each:10.2f}" for each in of), flush=True)


def main() -> int:
    """Run with the command line's words."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each; 5")
    parser.add_argument("--quick", action="store_true", help="a small image: for a look, not for figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--workdir", type=Path, default=WORKDIR, metavar="DIR", help=f"for images; {WORKDIR}")
    arguments = parser.parse_args()
    program = Path(sys.executable).with_name("mountsafe")
    Mountsafe(program).build()
    recipe = recipes(arguments.quick)["ext4"]
    plain = Kitchen(arguments.workdir / "images", {}, print).make([recipe])[recipe.name]
    found = {PLAIN: Figures(), **{kind.name: Figures() for kind in KINDS}}
    with tempfile.TemporaryDirectory(prefix="encryption-", dir=arguments.workdir) as name:
        scratch, key = Path(name, "mnt"), Path(name, "key")
        scratch.mkdir()
        key.write_bytes(PASSPHRASE)
        images = {kind: Path(name, kind.name) for kind in KINDS}
        for kind, image in images.items():
            encrypt(plain, image, kind)
        for _ in range(arguments.rounds):
            big = recipe.content.big
            measured(partial(mounted_by, program, plain, scratch), plain, found[PLAIN], big)
            for kind, image in images.items():
                mount = partial(mounted_by, program, image, scratch, "--key-file", key)
                measured(mount, image, found[kind.name], big, derivation(image))
    print(f"{'':32}{'ready, s':>10}{'MiB/s':>10}{'tar, s':>10}")
    _shown(PLAIN, found[PLAIN], found[PLAIN], None)
    for kind in KINDS:
        _shown(f"{kind.name}, sectors of {kind.sector} bytes", found[kind.name], found[PLAIN], kind)
    if arguments.json is not None:
        told = {name: asdict(figures) for name, figures in found.items()}
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
