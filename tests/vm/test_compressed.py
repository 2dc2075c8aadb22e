"""Compressed files beside others: what one of the others has proven says nothing of where their bytes are."""

import hashlib
import random
import subprocess
from pathlib import Path

from tests.vm.sight import Look, Looking

FILES = {
    "a-random": random.Random(1).randbytes(256 << 10),  # is stored as it is, and read first
    "b-text": b"it can be compressed, but not all of it to nothing %d\n" * 9000,
    "c-random and text": random.Random(2).randbytes(64 << 10) + b"text " * 50_000,
    "d-random": random.Random(3).randbytes(2 << 20),  # so that what is said of the others lies on the medium
}


def test_files_of_erofs(looking: Looking, tmp_path: Path) -> None:
    """Its driver says of compressed extents that they lie on the medium as they are."""
    tree, image = tmp_path / "tree", tmp_path / "medium.img"
    tree.mkdir()
    for name, content in FILES.items():
        (tree / name).write_bytes(content)
    subprocess.run(["mkfs.erofs", "--quiet", "-zlz4hc", image, tree], check=True, capture_output=True)
    (sight,) = looking(Look(image))
    shown = {path.decode(): entry.sha256 for path, entry in sight.entries.items()}
    assert shown == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert sight.incidents == []
