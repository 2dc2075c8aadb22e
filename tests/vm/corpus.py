"""The images that other projects made (../shared/corpus beside the checkout, or MOUNTSAFE_CORPUS), and what is on them.

They are never in the repository. Strong oracle: EXPECTED_FILES.tsv, what the recipe of an image states. Weak oracle:
LISTINGS.jsonl, what another reader saw. How to read both is in the corpus's README.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.vm.sight import Seen

CHUNK = 1 << 16


def folder() -> Path:
    """Where the corpus is, or would be."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "corpus"
    return Path(os.environ.get("MOUNTSAFE_CORPUS") or beside)


@dataclass(frozen=True, slots=True)
class Image:
    """A row of MANIFEST.tsv."""

    path: str
    codec: str
    container: str
    declared: str
    blkid: str
    kind: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Expected:
    """A row of EXPECTED_FILES.tsv; `kind` is "f", "d", "l" or "empty". None: not stated."""

    path: str
    kind: str
    size: int | None
    sha256: str | None
    target: str | None
    note: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of LISTINGS.jsonl."""

    kind: str
    size: int
    sha1: str
    path: str


def _rows(name: str) -> list[dict[str, str]]:
    csv.field_size_limit(1 << 24)
    path = folder() / name
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@cache
def images() -> dict[str, Image]:
    """Every image by its path; empty if there is no corpus."""
    columns = ("path", "codec", "container", "fs_declared", "blkid_type", "kind", "sha256_raw")
    return {row["path"]: Image(*(row[column] for column in columns)) for row in _rows("MANIFEST.tsv")}


@cache
def stated() -> dict[str, list[Expected]]:
    """The strong oracle, by image."""
    found = defaultdict(list)
    for row in _rows("EXPECTED_FILES.tsv"):
        size = int(row["size"]) if row["size"] else None
        found[row["image"]].append(
            Expected(row["path"], row["type"], size, row["sha256"] or None, row["link_target"] or None, row["note"])
        )
    return dict(found)


@cache
def listed() -> dict[str, list[Listed]]:
    """The weak oracle, by image: where the other reader saw anything, all of it, and there is no strong one."""
    path = folder() / "LISTINGS.jsonl"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        if row["n"] and row["image"] not in stated():
            found[row["image"]] = [Listed(kind, size, sha1, name) for kind, size, sha1, _, name in row["entries"]]
    return found


def unpack(image: Image, target: Path) -> None:
    """Write the image's bytes, sparse, and check their SHA-256."""
    data = _decoded(image.codec, (folder() / image.path).read_bytes())
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise ValueError(f"{image.path}: not the bytes that the manifest says")
    with target.open("wb") as file:
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            if chunk.count(0) < len(chunk):
                file.seek(start)
                file.write(chunk)
        file.truncate(len(data))


def _decoded(codec: str, data: bytes) -> bytes:
    match codec:
        case "xz":
            return lzma.decompress(data)
        case "gzip":
            return gzip.decompress(data)
        case "bzip2":
            return bz2.decompress(data)
        case "zstd":
            return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
        case "compress(.Z)":
            return subprocess.run(["gzip", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
        case "tar.xz":
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                content = tar.extractfile(next(member for member in tar.getmembers() if member.isfile()))
                assert content is not None
                return content.read()
        case _:
            return data
