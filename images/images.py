"""The test images: which there are, unpacking one, and what must be found in it.

    python3 images/images.py list
    python3 images/images.py unpack NAME DIR
    python3 images/images.py tree NAME

Standard library only, no root, no other program. An image is stored as NAME.parts.xz: one line of JSON that
says where each part of the image goes, then the bytes of the parts. What is not named is a hole, and the long
pseudo-random file is not stored but made again, so 300 MB cost 20 KB.
"""

import argparse
import hashlib
import json
import lzma
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).resolve().parent
SECTOR = 512
STREAM_SEED = b"mountsafe images"

Kind = Literal["file", "folder", "link", "char", "block", "fifo"]


class ImageError(Exception):
    """An image that is unknown, damaged, or cannot be made; the text is for the user."""


@dataclass(frozen=True)
class Entry:
    """What is at one path. None means: does not apply, or this file system does not keep it.

    `path`: bytes relative to the file system's root. `size`: bytes. `mode`: permission bits with setuid.
    `link_of`: the path of the first name of the same inode. `rdev`: (major, minor).
    """

    path: bytes
    kind: Kind
    size: int | None = None
    sha256: str | None = None
    target: bytes | None = None
    mode: int | None = None
    link_of: bytes | None = None
    rdev: tuple[int, int] | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Volume:
    """One file system on an image.

    `partition` is 0 when it fills the image; a volume that is not a file system has no entries.

    The entries of a dirty file system are those after its log has been replayed: without that,
    `only_after_replay` are not there yet, and `gone_after_replay` still are. An encrypted volume has a
    passphrase and another one inside.
    """

    partition: int
    filesystem: str
    label: bytes
    entries: list[Entry]
    only_after_replay: frozenset[bytes] = frozenset()
    gone_after_replay: frozenset[bytes] = frozenset()
    passphrase: str | None = None
    inside: "Volume | None" = None


def stream(length: int, start: int = 0) -> bytes:
    """The seeded pseudo-random bytes from `start` on. SHAKE-256, so it is the same for ever, everywhere."""
    return hashlib.shake_256(STREAM_SEED).digest(start + length)[start:]


@cache
def manifest() -> dict[str, Any]:
    """The manifest as it is; the functions below say what it means."""
    loaded: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
    return loaded


def names() -> list[str]:
    """Every image, in the order of the manifest."""
    return list(manifest()["images"])


def describe(name: str) -> str:
    """One line for people."""
    return str(_image(name)["description"])


def volumes(name: str) -> list[Volume]:
    """The file systems on an image, in the order of their partitions."""
    return [_volume(untyped) for untyped in _image(name)["volumes"]]


def expected(name: str, partition: int | None = None) -> list[Entry]:
    """What must be found on an image's only file system, or on the one of `partition`.

    The root folder is not listed.
    """
    found = [volume for volume in volumes(name) if partition in (None, volume.partition)]
    if len(found) != 1:
        raise ImageError(
            f"{name}: {len(found)} file systems; partitions: {[volume.partition for volume in volumes(name)]}"
        )
    return found[0].entries


def unpack(name: str, folder: Path) -> Path:
    """Write NAME.img, sparse, into `folder` and check its SHA-256. Returns its path."""
    image = _image(name)
    path = folder / f"{name}.img"
    _write(image["source"], path)
    size, digest = path.stat().st_size, sha256(path)
    if (size, digest) != (image["size"], image["sha256"]):
        path.unlink()
        raise ImageError(
            f"{name}: unpacked to {size} bytes with SHA-256 {digest}, "
            f"but the manifest says {image['size']} and {image['sha256']}"
        )
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _image(name: str) -> dict[str, Any]:
    try:
        image: dict[str, Any] = manifest()["images"][name]
    except KeyError:
        raise ImageError(f"no image is called {name!r}; there are: {', '.join(names())}") from None
    return image


def _write(source: dict[str, Any], path: Path) -> None:
    match source:
        case {"stored": stored}:
            _write_parts((FOLDER / stored).read_bytes(), path)
        case {"zeros": length}:
            with path.open("wb") as file:
                file.truncate(length)
        case {"stream": length}:
            path.write_bytes(stream(length))
        case {"cut_from": whole, "length": length}:
            _write(_image(whole)["source"], path)
            os.truncate(path, length)
        case _:
            raise ImageError(f"{path.stem}: unknown source {source}")


def _write_parts(packed: bytes, path: Path) -> None:
    unpacked = lzma.decompress(packed)
    head, _, stored = unpacked.partition(b"\n")
    header = json.loads(head)
    random = stream(max((at + length for _, length, kind, at in header["parts"] if kind == "stream"), default=0))
    with path.open("wb") as file:
        file.truncate(header["size"])
        for offset, length, kind, at in header["parts"]:
            file.seek(offset)
            file.write((random if kind == "stream" else stored)[at : at + length])


def _volume(untyped: dict[str, Any]) -> Volume:
    keeps_mode = untyped["keeps_mode"]
    trees = manifest()["trees"]
    entries = [*untyped["entries"], *(entry for tree in untyped["trees"] for entry in trees[tree])]
    return Volume(
        untyped["partition"],
        untyped["filesystem"],
        bytes.fromhex(untyped["label_hex"]),
        [_entry(entry, keeps_mode=keeps_mode) for entry in entries],
        frozenset(bytes.fromhex(path) for path in untyped.get("only_after_replay_hex", [])),
        frozenset(bytes.fromhex(path) for path in untyped.get("gone_after_replay_hex", [])),
        untyped.get("passphrase"),
        _volume(untyped["inside"]) if "inside" in untyped else None,
    )


def _entry(untyped: dict[str, Any], *, keeps_mode: bool) -> Entry:
    major_minor = untyped.get("rdev")
    return Entry(
        bytes.fromhex(untyped["path_hex"]),
        untyped["kind"],
        untyped.get("size"),
        untyped.get("sha256"),
        _bytes(untyped.get("target_hex")),
        int(untyped["mode"], 8) if keeps_mode else None,
        _bytes(untyped.get("link_of_hex")),
        (major_minor[0], major_minor[1]) if major_minor else None,
        {name: bytes.fromhex(value) for name, value in untyped.get("xattrs_hex", {}).items()},
    )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def printable(name: bytes) -> str:
    """A name from an image, safe for a terminal."""
    return ascii(name.decode("utf-8", "backslashreplace"))[1:-1]


def main(arguments: list[str]) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="List and unpack the test images.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="name, size and description of every image")
    unpacking = verbs.add_parser("unpack", help="write NAME.img into DIR")
    unpacking.add_argument("name", metavar="NAME", help="an image, or 'all'")
    unpacking.add_argument("folder", metavar="DIR", type=Path)
    tree = verbs.add_parser("tree", help="what must be found on an image")
    tree.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    try:
        match options.verb:
            case "list":
                _print_list()
            case "unpack":
                for name in names() if options.name == "all" else [options.name]:
                    print(unpack(name, options.folder))
            case "tree":
                _print_tree(options.name)
    except (ImageError, OSError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


def _print_list() -> None:
    for name in names():
        print(f"{name:16} {_image(name)['size'] / 2**20:7.1f} MiB  {describe(name)}")


def _print_tree(name: str) -> None:
    for volume in volumes(name):
        print(f"partition {volume.partition}: {volume.filesystem}, label {printable(volume.label)!r}")
        for entry in volume.entries:
            print(f"  {entry.kind:6} {'-' if entry.size is None else entry.size:>8} {printable(entry.path)}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
