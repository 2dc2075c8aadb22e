"""cryptsetup's own test images, of the corpus beside the checkout: what each opens with is said there."""

import lzma
import tarfile
from pathlib import Path
from typing import Any

from tests.conftest import missing
from tests.vm import corpus


def unpacked(folder: Path, archive: str, name: str) -> Path:
    """Return a file of theirs, unpacked into `folder` with all of its `archive`, unless it is there.

    `archive`: "" for an image of its own. Gives the test up for want of the corpus.
    """
    stored = corpus.folder() / "cryptsetup"
    if not stored.is_dir():
        missing(f"the corpus (expected at {corpus.folder()}, or where MOUNTSAFE_CORPUS says)")
    path = folder / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if archive:
        with tarfile.open(stored / archive) as tar:
            safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
            tar.extractall(folder, **safely)
    else:
        path.write_bytes(lzma.decompress((stored / f"{name}.xz").read_bytes()))
    return path
