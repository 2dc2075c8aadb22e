"""The images that other projects made (../shared/corpus beside the checkout, or MOUNTSAFE_CORPUS), and what is on them.

They are never in the repository. Strong oracle: EXPECTED_FILES.tsv, what the recipe of an image states. Weak oracle:
LISTINGS.jsonl, what another reader saw. How to read both is in the corpus's README.
"""

import bz2
import csv
import errno
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

from tests.vm.sight import Seen, Sight
from tests.vm.types import OPENED_CONTAINERS, named

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

    @property
    def fstype(self) -> str:
        """Its type as `tests.vm.types` calls it: of what is inside, if its container is opened."""
        if self.container not in ("raw", *OPENED_CONTAINERS):
            return self.container
        return named(self.blkid or self.declared)

    @property
    def option(self) -> str | None:
        """What a user would have to name with --type, because blkid does not know it."""
        return None if self.blkid or self.container != "raw" else self.declared.partition(" ")[0]


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


# --- comparing -----------------------------------------------------------------------------------------------------
KINDS = {"f": "file", "d": "folder", "l": "link"}
MADE_BY_THE_FILE_SYSTEM = {b"lost+found", b".nilfs"}
HAS_XATTRS = {"btrfs", "erofs", "ext4", "f2fs", "hfsplus", "squashfs", "xfs"}
XATTRS = {"user.xattr1": b"xattr1", "user.xattr2": b"xattr2"}
# Not iso9660, whose driver numbers inodes by directory record, nor romfs, which has no link count.
HAS_HARD_LINKS = HAS_XATTRS | {"minix", "nilfs2", "ntfs", "udf", "ufs"}
PLAIN_ISO9660 = {"syzkaller/images/syz_mount_image_iso9660_4.img.gz"}
# Symbolic links that ntfs3 wrote: ntfs-3g knows no reparse point that leads to a Unix path, and does not tell its data.
ONLY_WINDOWS = os.strerror(errno.EOPNOTSUPP)


def differences(image: Image, sight: Sight) -> list[str]:
    """Return what is not as the strong oracle states.

    A recipe of syzkaller states all that there is; the others state a part.
    """
    short = sight.fstype == "msdos" or image.path in PLAIN_ISO9660 or image.declared == "msdos"
    found = {path.lower() if short else path: entry for path, entry in sight.entries.items()}
    wrong = []
    wanted = set()
    for row in stated()[image.path]:
        if row.kind == "empty" or (row.kind == "l" and image.path in PLAIN_ISO9660):
            continue
        path = row.path.replace("file.cold", "file.col") if short else row.path
        wanted.add(path.encode())
        entry = _followed(found, path.encode()) if "following symlinks" in row.note else found.get(path.encode())
        if entry is None:
            wrong.append(f"{path} is missing")
        else:
            wrong += [f"{path}: {what}" for what in _differs(row, entry, named(sight.fstype))]
            wrong += (
                _not_linked(path, found) if "hard link" in row.note and named(sight.fstype) in HAS_HARD_LINKS else []
            )
    if image.path.startswith("syzkaller/"):
        wrong += [f"{path!r} is too much" for path in found.keys() - wanted - MADE_BY_THE_FILE_SYSTEM]
    return wrong


def _differs(row: Expected, entry: Seen, fstype: str) -> list[str]:
    wrong = []
    if (fstype, KINDS[row.kind], entry.kind, entry.fault) == ("ntfs", "link", "file", ONLY_WINDOWS):
        return []
    if entry.kind != KINDS[row.kind]:
        return [f"is a {entry.kind}"]
    if entry.fault:
        return [entry.fault]
    if row.size is not None and entry.size != row.size:
        wrong.append(f"has {entry.size} bytes, not {row.size}")
    if row.sha256 is not None and entry.sha256 != row.sha256:
        wrong.append("has other bytes")
    if row.target is not None and not _is_target(row.target, entry.target or b""):
        wrong.append(f"leads to {entry.target!r}")
    if row.note.startswith("xattrs") and fstype in HAS_XATTRS and not XATTRS.items() <= entry.xattrs.items():
        wrong.append(f"has the extended attributes {entry.xattrs}")
    return wrong


def _is_target(stated_target: str, target: bytes) -> bool:
    pattern = re.escape(stated_target).replace(re.escape("<random digits>"), "[0-9]+")
    return re.fullmatch(pattern.encode(), target) is not None


def _not_linked(path: str, found: dict[bytes, Seen]) -> list[str]:
    one, other = found.get(b"file2"), found.get(path.encode())
    if one and other and one.ino == other.ino and one.nlink == other.nlink == 2:
        return []
    return [f"{path} is not a hard link to file2"]


def _followed(found: dict[bytes, Seen], path: bytes) -> Seen | None:
    """Follow links inside the tree, as the kernel would, on the entries alone."""
    at = b""
    todo = path.split(b"/")
    for _ in range(1000):
        if not todo:
            return found.get(at)
        name = todo.pop(0)
        if name == b"..":
            at = os.path.dirname(at)
        elif name not in (b"", b"."):
            here = os.path.join(at, name)
            entry = found.get(here)
            if entry is not None and entry.kind == "link":
                todo = [*(entry.target or b"").split(b"/"), *todo]
            else:
                at = here
    return None


def disagreements(image: Image, sight: Sight) -> list[str]:
    """Return what the weak oracle's reader saw and the mount does not show.

    Tolerated, because that reader looks at other structures than a mount does: more entries than it saw; upper and
    lower case; entries that are not files ("[SYSTEM]", "Volume Label"); a link that it calls an empty file; the size of
    a folder; on iso9660 any name, if there is a file with that content (it read the tree of short names).
    """
    found = {path.lower(): entry for path, entry in sight.entries.items()}
    contents = {(entry.size, entry.sha1) for entry in found.values()}
    sizes = {entry.size for entry in found.values()}
    wrong = []
    for row in listed()[image.path]:
        if row.path.startswith("[SYSTEM]") or row.path.endswith("(Volume Label Entry)"):
            continue
        entry = found.get(row.path.encode().lower())
        if entry is None and sight.fstype == "iso9660" and (row.kind == "d" or not row.size):
            continue
        if entry is None and sight.fstype == "iso9660":
            if (row.size, row.sha1) not in contents and (row.sha1 or row.size not in sizes):
                wrong.append(f"{row.path}: no file has its content")
        elif entry is None:
            wrong.append(f"{row.path} is missing")
        elif entry.fault:
            wrong.append(f"{row.path}: {entry.fault}")
        elif entry.kind == "file" and (row.size != entry.size or (row.sha1 and row.sha1 != entry.sha1)):
            wrong.append(f"{row.path}: {row.size} bytes, {row.sha1}; here {entry.size} bytes, {entry.sha1}")
        elif entry.kind != {"d": "folder", "l": "link", "r": "file"}[row.kind] and (entry.kind != "link" or row.size):
            wrong.append(f"{row.path} is a {entry.kind}")
    return wrong
