"""What is put on the images:

the trees, as values. The manifest's expectation is made from these, never by reading an image back.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from images.images import Entry, Kind, stream

EPOCH = 1_700_000_000  # 2023-11-14 22:13:20 UTC, the time of everything on the images
SPARSE_SIZE = 1 << 20
SPARSE_PIECE = 4096
UNICODE = "Grüße-日本.txt".encode()
COMMENT = b"set by images/make"
MANY = 300


@dataclass(frozen=True)
class Item:
    """One thing to put on an image. `data` is None for what has no content; `rdev` is (major, minor)."""

    path: bytes
    kind: Kind
    data: bytes | None = None
    mode: int = 0o644
    target: bytes | None = None
    link_of: bytes | None = None
    rdev: tuple[int, int] | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)
    is_sparse: bool = False

    def entry(self) -> Entry:
        """What must be found where this was put."""
        digest = None if self.data is None else hashlib.sha256(self.data).hexdigest()
        size = None if self.data is None else len(self.data)
        return Entry(self.path, self.kind, size, digest, self.target, self.mode, self.link_of, self.rdev, self.xattrs)


def file(path: bytes | str, data: bytes, mode: int = 0o644) -> Item:
    """An ordinary file."""
    return Item(path.encode() if isinstance(path, str) else path, "file", data, mode)


def folder(path: str) -> Item:
    """A folder that everybody may read."""
    return Item(path.encode(), "folder", mode=0o755)


def lines(length: int) -> bytes:
    """Exactly `length` bytes of numbered lines: each block differs, and all of it compresses well."""
    text = b"".join(b"%07d\n" % number for number in range(length // 8 + 1))
    return text[:length]


def readme(kind: str) -> Item:
    """The file that says what the image is; it also carries the extended attribute."""
    text = f"This is a test image of mountsafe, file system {kind}.\nAll of it is made up.\n"
    return Item(b"README.txt", "file", text.encode(), xattrs={"user.comment": COMMENT})


def small(kind: str) -> list[Item]:
    """The tree of images that are about something else than their files."""
    return [
        readme(kind),
        folder("documents"),
        file("documents/letter.txt", b"Dear reader,\nnothing happened.\n"),
        file("empty", b""),
    ]


def many() -> list[Item]:
    """A folder that takes more than one block."""
    return [folder("many"), *(file(f"many/file-{number:03}", b"file %03d\n" % number) for number in range(MANY))]


def full(kind: str, block: int, *, unicode_name: bytes = UNICODE) -> list[Item]:
    """The tree of every ordinary image; `block` is the file system's block size in bytes."""
    sparse = lines(SPARSE_PIECE)
    hard = b"two names, one file\n"
    return [
        *small(kind),
        folder("documents/2023"),
        folder("documents/2023/accounts"),
        file("documents/2023/accounts/april.csv", b"date,amount\n2023-04-01,12.50\n"),
        file("random.bin", stream(300 * 1024)),
        Item(b"sparse.bin", "file", sparse + bytes(SPARSE_SIZE - 2 * SPARSE_PIECE) + sparse, is_sparse=True),
        file("one-block", lines(block)),
        file("one-block-plus-one", lines(block + 1)),
        file(unicode_name, b"a name outside ASCII\n"),
        file("setuid", b"#!/bin/sh\nid -u\n", 0o4755),
        file("hard-a", hard),
        Item(b"hard-b", "file", hard, link_of=b"hard-a"),
        Item(b"link-relative", "link", target=b"documents/letter.txt", mode=0o777),
        Item(b"link-absolute", "link", target=b"/etc/passwd", mode=0o777),
        Item(b"null-device", "char", rdev=(1, 3), mode=0o666),
        Item(b"disk-device", "block", rdev=(8, 0), mode=0o660),
        Item(b"fifo", "fifo", mode=0o644),
        *many(),
    ]


def hostile() -> list[Item]:
    """Names that a file manager, a shell or a log may trip over. Each file contains its own name."""
    names = [
        "Grüße.txt".encode("latin-1"),
        b"new\nline",
        b"title \x1b]0;pwned\x07",
        b"colour \x1b[31mred\x1b[2J",
        "invoice\u202efdp.exe".encode(),
        "zero\u200bwidth".encode(),
        "e\u0301 decomposed".encode(),
        "\u00e9 composed".encode(),
        "\ud800".encode("utf-8", "surrogatepass"),
        b"overlong \xc0\xaf slash",
        b"x" * 255,
        b"-rf",
        b"--help",
        b" leading space",
        b"trailing space ",
        b"   ",
        b"...",
        b"..hidden",
        b'double " quote',
        b"single ' quote",
        b"back\\slash",
        b"back\\x41escape",
        b"$(id) `id` ${HOME}",
        b"semi;colon & pipe | star * mark ?",
        b"%s%n%d",
        b"<b>markup & entity<b>",
        b"tab\there",
        b"carriage\rreturn",
        b"CON",
        b"file:with:colons",
        bytes(range(0x01, 0x20)),
        bytes(range(0x7F, 0x100)),
        b"DUPLICATE",
        b"duplicate",
    ]
    link = Item(b"link to escape", "link", target=b"\x1b]0;pwned\x07/../../../../etc/shadow", mode=0o777)
    return [*(file(name, name) for name in names), link, folder("~"), file("~/file", b"in a folder named tilde\n")]


def as_kept(items: Iterable[Item], keeps: frozenset[str]) -> list[Item]:
    """The items as a file system can hold them: what `keeps` does not name is dropped, a hard link becomes a copy."""
    kinds = {"link": "link", "char": "node", "block": "node", "fifo": "fifo"}
    kept = []
    for item in items:
        if item.kind in kinds and kinds[item.kind] not in keeps:
            continue
        kept.append(
            replace(
                item,
                mode=item.mode if "mode" in keeps else 0o755,
                link_of=item.link_of if "hard" in keeps else None,
                xattrs=item.xattrs if "xattr" in keeps else {},
            )
        )
    return kept


def archive(items: Iterable[Item], *, xattrs: bool = False) -> bytes:
    """A tar archive of the items, root folder first.

    Names travel as bytes; xattrs only in the pax format, which wants UTF-8 names.
    """
    types = {
        "file": tarfile.REGTYPE,
        "folder": tarfile.DIRTYPE,
        "link": tarfile.SYMTYPE,
        "char": tarfile.CHRTYPE,
        "block": tarfile.BLKTYPE,
        "fifo": tarfile.FIFOTYPE,
    }
    out = io.BytesIO()
    form = tarfile.PAX_FORMAT if xattrs else tarfile.GNU_FORMAT
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for item in [Item(b".", "folder", mode=0o755), *items]:
            info = tarfile.TarInfo("./" + _text(item.path) if item.path != b"." else ".")
            info.mtime, info.mode, info.type = EPOCH, item.mode, types[item.kind]
            if item.target is not None:
                info.linkname = _text(item.target)
            if item.rdev is not None:
                info.devmajor, info.devminor = item.rdev
            if xattrs:
                info.pax_headers = {f"SCHILY.xattr.{name}": value.decode() for name, value in item.xattrs.items()}
            if item.link_of is not None:
                info.type, info.linkname = tarfile.LNKTYPE, "./" + _text(item.link_of)
                tar.addfile(info)
                continue
            data = item.data or b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
