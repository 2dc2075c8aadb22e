"""What the library makes of a session process that lies: it is counted as lost to the medium (zone 3)."""

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mountsafe import reading, wire
from mountsafe.library import stream as module
from mountsafe.library.filesystem import FIRST, FileSystem
from mountsafe.library.stream import Stream
from mountsafe.reading import Kind
from mountsafe.session.record import Mount
from tests.guest import entry, folder, link

MOUNT = Mount("", "sdx", 0, "0", "ext4", "label", "", (), True, 0, 0)
FILE = entry(b"", 5, size=100)
Say = Callable[[wire.Frame], bytes]


def answer(kind: int, body: bytes) -> Say:
    return lambda asked: wire.frame(asked.ident, kind, body)


def page(*entries: wire.Entry, cursor: int = 0) -> Say:
    return answer(Kind.LIST, reading.pack_entries(cursor, entries))


def opened(size: int = 100, first: bytes = b"x" * 100, **fields: object) -> Say:
    made = reading.Opened(1, entry(b"", 5, size=size)._replace(**fields), first)  # type: ignore[arg-type]
    return answer(Kind.OPEN, reading.pack_opened(made))


@contextmanager
def session(*says: Say) -> Iterator[FileSystem]:
    """A file system behind a far end that says this, one after the other, and then nothing."""
    ours, theirs = socket.socketpair()

    def far_end() -> None:
        decoder, left = wire.Decoder(), list(says)
        while data := theirs.recv(1 << 16):
            for asked in decoder.feed(data):
                if left:
                    theirs.sendall(left.pop(0)(asked))
        theirs.close()

    thread = threading.Thread(target=far_end)
    thread.start()
    stream = Stream(ours)
    try:
        yield FileSystem(object(), stream, MOUNT, 1)
    finally:
        stream.close()
        thread.join()


LISTINGS = {
    "slash": [page(entry(b"a/b"))],
    "parent": [page(entry(b".."))],
    "itself": [page(entry(b"."))],
    "nul": [page(entry(b"a\0"))],
    "nothing": [page(entry(b""))],
    "type": [page(entry(b"a", mode=0o170644))],
    "size": [page(entry(b"a", size=1 << 63))],
    "link": [page(link(b"a", b""))],
    "target": [page(entry(b"a", target=b"x"))],
    "twice": [page(entry(b"a"), entry(b"a"))],
    "again": [page(entry(b"a"), cursor=1), page(entry(b"a"))],
    "back": [page(entry(b"a"), cursor=5), page(entry(b"b"), cursor=5)],
    "empty": [page(cursor=3)],
    "cut": [answer(Kind.LIST, reading.pack_entries(0, [entry(b"abc")])[:-1])],
    "kind": [answer(Kind.LOOK, reading.pack_entries(0, []))],
    "error": [answer(Kind.ERROR, b"")],
    "long": [lambda asked: wire.HEADER.pack(wire.MAX_BODY + 1, asked.ident, asked.kind)],
    "unasked": [lambda asked: wire.frame(asked.ident + 7, asked.kind, b"")],
    "two": [lambda asked: 2 * wire.frame(asked.ident, asked.kind, reading.pack_entries(1, [entry(b"a")]))],
}


@pytest.mark.parametrize("says", LISTINGS.values(), ids=LISTINGS)
def test_an_impossible_listing_is_an_error_and_ends_it(says: list[Say]) -> None:
    with session(*says) as fs:
        for _ in range(2):  # nothing is asked any more
            with pytest.raises(OSError, match="broke the protocol") as failure:
                fs.listdir("/")
            assert failure.value.errno == errno.EIO


@pytest.mark.parametrize(
    "look",
    [
        pytest.param([answer(Kind.LOOK, reading.pack_entries(0, [entry(b"named")]))], id="named"),
        pytest.param([answer(Kind.LOOK, reading.pack_entries(0, []))], id="none"),
        pytest.param([answer(Kind.LOOK, reading.pack_entries(9, [FILE]))], id="cursor"),
        pytest.param([answer(Kind.LOOK, reading.pack_entries(0, [FILE._replace(mode=0o644)]))], id="type"),
    ],
)
def test_impossible_attributes_are_an_error(look: list[Say]) -> None:
    with session(*look) as fs, pytest.raises(OSError, match="broke the protocol"):
        fs.stat("/")


READS = {
    "first": [opened(first=b"x")],
    "more": [opened(first=b"x" * 101)],
    "folder": [opened(size=0, first=b"", mode=stat.S_IFDIR | 0o755)],
    "size": [opened(size=1 << 63, first=b"x" * FIRST)],
    "short": [opened(FIRST + 10, b"x" * FIRST), answer(Kind.READ, b"123")],
    "longer": [opened(FIRST + 10, b"x" * FIRST), answer(Kind.READ, b"1" * 11)],
}


@pytest.mark.parametrize("says", READS.values(), ids=READS)
def test_bytes_that_cannot_be_are_an_error(says: list[Say]) -> None:
    with session(*says) as fs, pytest.raises(OSError, match="broke the protocol"):
        fs.read_bytes("file")


@pytest.mark.parametrize("told", [0, 4, 101, 1 << 63])
def test_data_that_is_elsewhere_is_an_error(told: int) -> None:
    says = [opened(), answer(Kind.DATA, reading.pack_offset(told))]
    with session(*says) as fs, fs.open_raw("file") as file, pytest.raises(OSError, match="broke the protocol"):
        file.next_data(5)


@pytest.mark.parametrize("name", [b"", b"user.a\0b", b"user.a/b"])
def test_an_attribute_of_an_impossible_name_is_an_error(name: bytes) -> None:
    says = answer(Kind.XATTRS, wire.pack_xattrs([(name, b"x")]))
    with session(says) as fs, pytest.raises(OSError, match="broke the protocol"):
        fs.xattrs("file")


@pytest.mark.parametrize("number", [0, errno.EAGAIN, errno.EINTR, errno.EPIPE, 9999])
def test_an_errno_that_says_nothing_to_a_program_is_an_io_error(number: int) -> None:
    with session(answer(Kind.ERROR, wire.pack_error(number, b"\x1b[2J"))) as fs:
        with pytest.raises(OSError, match="Input/output error") as failure:
            fs.stat("file")
        assert failure.value.errno == errno.EIO
        assert failure.value.filename == "file"


def test_a_folder_without_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mountsafe.library.filesystem.MAX_DIRECTORY_ENTRIES", 10)
    pages = [
        page(*(entry(b"%d" % (turn * 100 + each)) for each in range(100)), cursor=turn * 100 + 100) for turn in range(9)
    ]
    with session(*pages) as fs, pytest.raises(OSError, match="without end"):
        fs.listdir("/")


def test_a_far_end_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with session() as fs:
        with pytest.raises(TimeoutError):
            fs.stat("/")
        with pytest.raises(OSError, match="no answer"):
            fs.stat("/")


def test_a_far_end_that_ends_is_an_io_error_for_all_who_wait() -> None:
    ours, theirs = socket.socketpair()
    stream = Stream(ours)
    fs = FileSystem(object(), stream, MOUNT, 1)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            fs.stat("/")
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    received = b""
    while len(received) < 4 * len(wire.frame(1, Kind.LOOK, reading.pack_asked(reading.Asked(b"/")))):
        received += theirs.recv(1 << 16)
    theirs.close()
    for thread in threads:
        thread.join()
    assert [(type(each), "has ended" in str(each)) for each in failures] == [(OSError, True)] * 4
    stream.close()


def test_one_who_gives_up_leaves_the_stream_to_the_others() -> None:
    """An answer that nobody waits for any more is nobody else's."""
    with session(page(entry(b"mine")), page(entry(b"yours"))) as fs:
        stream = fs._stream
        ident = stream.begin(Kind.LIST, reading.pack_asked(reading.Asked(b"/")))
        stream.forget(ident)
        assert fs.listdir("/") == ["yours"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the far end is a thread
def test_a_fork_does_not_use_what_is_its_parents() -> None:
    with session(page(entry(b"a"))) as fs:
        pid = os.fork()
        if not pid:
            try:
                fs.listdir("/")
            except ValueError as error:
                os._exit(42 if "another process" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
        assert fs.listdir("/") == ["a"]


def test_folders_are_as_told() -> None:
    with session(page(folder(b"f"), link(b"l", b"f", 3), entry(b"n", mode=0))) as fs:
        told = {each.name: each for each in fs.scandir(b"/")}
        assert told[b"f"].is_dir()
        assert told[b"l"].target == b"f"
        assert told[b"n"].stat().st_mode == stat.S_IFREG
        assert told[b"f"].path == b"/f"
