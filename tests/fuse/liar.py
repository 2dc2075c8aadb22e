"""A far end of the agent's stream that lies for a whole conversation: it answers well for a while, and then not.

What it does wrong, and when, comes from a seed. `TRICKS` are the ways: what is wrong with the frames, and what with
that which they say. A tree that has everything in it is told where nothing is wrong.
"""

import os
import random
import socket
import stat
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from zlib import crc32

from mountsafe import wire
from mountsafe.wire import Entry, Extent, ExtentKind, Kind
from tests.guest import IMPOSSIBLE_NAMES, entry, folder, layout, link, page

CONTENT = bytes(range(256)) * 1024
HUGE = (1 << 63) - 1
SILENT = 3600.0


class HangUp(Exception):
    """The stream is closed."""


def tree(path: bytes) -> list[Entry]:
    """What is in a folder: files, links, devices, and folders as deep as anybody looks."""
    if path.count(b"/") > 40:
        return []
    number = 100 + crc32(path) * 20
    files = [entry(b"file%d" % each, number + each, size=len(CONTENT) // (each + 1)) for each in range(6)]
    folders = [folder(b"folder%d" % each, number + 10 + each) for each in range(2)]
    links = [link(b"link", b"folder0/../file1", number + 15), link(b"out", b"../../../../etc/passwd", number + 16)]
    return [*files, *folders, *links, entry(b"null", number + 17, mode=stat.S_IFCHR | 0o666)]


# --- what is said --------------------------------------------------------------------------------------------------
IMPOSSIBLE = [
    *map(entry, IMPOSSIBLE_NAMES),
    entry(b"\xff" * 255, mode=0o170000),
    entry(b"large", size=1 << 63),
    entry(b"larger", size=(1 << 64) - 1, blocks=(1 << 64) - 1),
    link(b"nowhere", b""),
    link(b"nul", b"a\0b"),
    entry(b"both", target=b"a file with a target"),
]
ODD = [
    entry(b"exabytes", 5, size=HUGE, blocks=HUGE),
    entry(b"times", 6, atime=-(1 << 63), mtime=HUGE, ctime=-1),
    entry(b"unknown", 7, mode=0, size=(1 << 64) - 1),
    entry(b"set", 8, mode=stat.S_IFREG | 0o7777, nlink=0),
    folder(b"root again", 1),
    folder(b"itself", 2),
    link(b"long", b"x/" * 2047, 9),
    link(b"up", b"../" * 1000, 10),
    entry(b"n" * 255, 1 << 62, size=5),
]
EXTENTS = [
    [Extent(0, 0, 8192, ExtentKind.DATA), Extent(4096, 0, 8192, ExtentKind.DATA)],
    [Extent(0, HUGE, 4096, ExtentKind.DATA)],
    [Extent(0, (1 << 64) - 4096, 8192, ExtentKind.DATA)],
    [Extent((1 << 64) - 1, 0, (1 << 64) - 1, ExtentKind.ZERO)],
    [Extent(0, 0, 0, ExtentKind.DATA)],
    [Extent(0, 0, 4096, 77)],
    [Extent(8192, 0, 4096, ExtentKind.DATA), Extent(0, 0, 4096, ExtentKind.DATA)],
    [Extent(each, each * 2, 1, ExtentKind.DATA) for each in range(16)],
    [Extent(0, 0, HUGE // 2, ExtentKind.ZERO)],
]


class Peer:
    """One stream's far end.

    `trick`: one of `TRICKS`, or all of them; `rate`: how often, from 0 to 1; `after`: so many good answers.
    """

    def __init__(self, seed: int, trick: str, rate: float, after: int) -> None:
        self._random = random.Random(seed)
        self._tricks = [TRICKS[trick]] if trick else list(TRICKS.values())
        self._rate = rate
        self._good = after
        self._numbers = count()
        self.late = b""

    def answer(self, request: wire.Frame) -> Iterator[bytes]:
        """Yield what to send; a number of bytes that is longer than a socket takes may be cut anywhere."""
        late, self.late = self.late, b""
        if late:
            yield late
        honest = wire.frame(request.ident, request.kind, self.body(request))
        self._good -= 1
        if self._good >= 0 or self._random.random() >= self._rate:
            yield honest
        else:
            yield from self._random.choice(self._tricks)(self, request, honest)

    def body(self, request: wire.Frame) -> bytes:
        """The body of a good answer."""
        if request.kind == Kind.LIST:
            return page(*tree(wire.unpack_list(request.body)[0]))
        if request.kind == Kind.READ:
            _, offset, length = wire.unpack_read(request.body)
            return CONTENT[offset : offset + length]
        if request.kind == Kind.LAYOUT:
            return layout(*[([], True)] * len(wire.unpack_layout_request(request.body)[1]))
        mounted = wire.Mounted(b"ext4", wire.MountState.CLEAN, True, folder(b""))
        disk = wire.Volume(b"sdx", wire.VolumeKind.DISK, 0, 0, 1 << 20, b"ext4", b"filesystem", b"", b"", b"", b"")
        return {
            Kind.HELLO: wire.pack_hello(wire.VERSION, b"6.1.0-liar"),
            Kind.PROBE: wire.pack_volumes([disk]),
            Kind.MOUNT: wire.pack_mounted(mounted),
            Kind.EXTENTS: wire.pack_extents([Extent(0, 0, 4096, ExtentKind.DATA)], 0),
            Kind.XATTRS: wire.pack_xattrs([(b"user.comment", b"hello")]),
            Kind.STATFS: wire.pack_statfs(wire.Statfs(4096, 4096, 100, 50, 50, 10, 5, 255)),
        }[request.kind]

    # --- tricks with frames ----------------------------------------------------------------------------------------
    def wrong_id(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield wire.frame(self._random.choice((0, 0xFFFFFFFF, request.ident ^ 1 << 20)), request.kind)

    def wrong_kind(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield wire.frame(request.ident, self._random.choice((request.kind % 9 + 1, 255)))

    def twice(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield honest + honest

    def early(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield honest + wire.frame(request.ident + 1, request.kind)

    def later(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        self.late = honest
        yield from ()

    def flood(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        for _ in range(64):
            yield wire.frame(self._random.getrandbits(32), Kind.READ, bytes(wire.MAX_BODY))

    def too_long(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield wire.HEADER.pack(0xFFFFFFFF, request.ident, request.kind)
        while True:
            yield bytes(1 << 20)

    def garbage(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield self._random.randbytes(self._random.randrange(1, 5000))

    def silence(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        time.sleep(SILENT)
        yield b""

    def half(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield honest[: self._random.randrange(len(honest))]
        time.sleep(SILENT)

    def half_and_hang_up(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield honest[: self._random.randrange(len(honest))]
        raise HangUp

    def drops(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        for at in range(0, len(honest), len(honest) // 30 + 1):
            yield honest[at : at + len(honest) // 30 + 1]
            time.sleep(0.02)

    def refusal(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        words = self._random.randbytes(self._random.randrange(3000))
        yield wire.frame(request.ident, Kind.ERROR, wire.pack_error(self._random.randrange(600), words))

    def cut(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        body = honest[wire.HEADER.size :]
        yield wire.frame(request.ident, request.kind, body[: self._random.randrange(len(body) + 1)])

    def longer(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        yield wire.frame(request.ident, request.kind, (honest[wire.HEADER.size :] + b"more")[: wire.MAX_BODY])

    def flipped(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        body = bytearray(honest[wire.HEADER.size :])
        for _ in range(self._random.randrange(1, 8)):
            if body:
                body[self._random.randrange(len(body))] = self._random.getrandbits(8)
        yield wire.frame(request.ident, request.kind, bytes(body))

    # --- tricks with what is said ----------------------------------------------------------------------------------
    def impossible(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        """Entries that cannot be, among others; and what else the kind has to offer."""
        body = honest[wire.HEADER.size :]
        if request.kind == Kind.LIST:
            told = [*tree(wire.unpack_list(request.body)[0]), *IMPOSSIBLE, *ODD, *ODD]
            self._random.shuffle(told)
            body = page(*told)
        elif request.kind == Kind.LAYOUT:
            names = wire.unpack_layout_request(request.body)[1]
            body = layout(*[(self._random.choice(EXTENTS), False) for _ in names])
        elif request.kind == Kind.EXTENTS:
            body = wire.pack_extents(self._random.choice(EXTENTS), self._random.getrandbits(64))
        elif request.kind == Kind.READ:
            body = self._random.randbytes(self._random.choice((0, 1, len(body), wire.MAX_BODY)))
        elif request.kind == Kind.STATFS:
            body = wire.pack_statfs(wire.Statfs(*(self._random.choice((0, (1 << 64) - 1)) for _ in range(8))))
        elif request.kind == Kind.XATTRS:
            body = wire.pack_xattrs([(b"user.a\0b", b""), (b"user." + b"x" * 250, bytes(60000)), (b"", b"")] * 5)
        elif request.kind == Kind.MOUNT:
            root = self._random.choice([*ODD, *IMPOSSIBLE])._replace(name=b"")
            state, direct = self._random.randrange(256), self._random.random() < 0.5
            body = wire.pack_mounted(wire.Mounted(self._random.randbytes(200), state, direct, root))
        elif request.kind == Kind.PROBE:
            body = wire.pack_volumes([self._volume() for _ in range(self._random.randrange(257))])
        yield wire.frame(request.ident, request.kind, body)

    def _volume(self) -> wire.Volume:
        """A volume of any kind, that lies in any others, itself too, and anywhere on the medium."""
        lies = (b"sdx", self._random.randrange(6), self._random.randrange(3), self._number(), self._number())
        parents = tuple(self._random.randrange(300) for _ in range(self._random.choice((0, 1, 32))))
        places = tuple(wire.Place(self._number(), self._number(), self._number()) for _ in parents[:3])
        words = (b"ext4", b"filesystem", b"\x1b[2J", b"", b"", b"")
        return wire.Volume(*lies, *words, b"../\x1b[2J", parents, 1, self._random.randrange(3), 0, places)

    def _number(self) -> int:
        return self._random.choice((0, 512, self._random.getrandbits(64)))

    def endless(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        """Another page of another folder, more extents of the file."""
        body = honest[wire.HEADER.size :]
        if request.kind == Kind.LIST:
            names = [b"%d" % number for number in islice(self._numbers, wire.MAX_PAGE_ENTRIES // 2)]
            links = [link(name, b"t" * wire.MAX_TARGET) for name in names[:60]]
            body = page(*links, *(folder(name) for name in names[60:]), cursor=next(self._numbers) + 1)
        elif request.kind == Kind.EXTENTS:
            _, offset = wire.unpack_extents_request(request.body)
            told = [Extent(offset + 2 * each, 0, 1, ExtentKind.DATA) for each in range(wire.MAX_EXTENTS)]
            body = wire.pack_extents(told, offset + 2 * wire.MAX_EXTENTS)
        yield wire.frame(request.ident, request.kind, body)

    def loop(self, request: wire.Frame, honest: bytes) -> Iterator[bytes]:
        """The folder is in itself, and so is the file before it."""
        body = honest[wire.HEADER.size :]
        if request.kind == Kind.LIST:
            body = page(folder(b"again", 2), folder(b"and again", 2), entry(b"file0", 2, size=5), cursor=0)
        yield wire.frame(request.ident, request.kind, body)


Trick = Callable[[Peer, wire.Frame, bytes], Iterator[bytes]]
TRICKS: dict[str, Trick] = {
    name: trick
    for name, trick in vars(Peer).items()
    if not name.startswith("_") and name not in ("answer", "body") and callable(trick)
}


def serve(fd: int, seed: int, trick: str, rate: float, after: int) -> None:
    """Answer on a stream until it is closed."""
    peer = Peer(seed, trick, rate, after)
    decoder = wire.Decoder()
    with socket.socket(fileno=fd) as stream:
        try:
            while data := stream.recv(1 << 16):
                for request in decoder.feed(data):
                    for part in peer.answer(request):
                        stream.sendall(part)
        except (HangUp, ConnectionError):
            os._exit(0)
