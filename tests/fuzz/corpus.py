"""What long runs of the fuzzer have kept: the inputs that reached something new, in corpus.zip.

python tests/fuzz/corpus.py FOLDER adds those that `./dev fuzz` left in FOLDER (fuzz/, where it is not said otherwise).
"""

import hashlib
import sys
from functools import cache
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

PLACE = Path(__file__).with_name("corpus.zip")


@cache
def _all() -> dict[str, bytes]:
    with ZipFile(PLACE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def kept(target: str) -> list[bytes]:
    """Return the inputs of a target."""
    return [data for name, data in _all().items() if name.startswith(f"{target}/")]


def add(folder: Path) -> int:
    """Add what is in folders by the names of targets; return how many inputs there are then.

    The same inputs make the same file.
    """
    inputs = dict(_all()) if PLACE.exists() else {}
    for path in folder.glob("*/*"):
        data = path.read_bytes()
        inputs[f"{path.parent.name}/{hashlib.sha1(data).hexdigest()}"] = data
    with ZipFile(PLACE, "w", ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(inputs):
            archive.writestr(ZipInfo(name), inputs[name], ZIP_DEFLATED)
    return len(inputs)


if __name__ == "__main__":
    sys.stdout.write(f"{add(Path(sys.argv[1] if len(sys.argv) > 1 else 'fuzz'))} inputs\n")
