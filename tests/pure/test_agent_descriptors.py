"""What fails in the agent leaves nothing open: a folder that cannot be read may be asked for over and over."""

import errno
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.agent import extents as extents_module
from mountsafe.agent import tree as tree_module
from mountsafe.agent import twin as twin_module
from mountsafe.agent.extents import ExtentMap
from mountsafe.agent.programs import Refused
from mountsafe.agent.tree import READ_WORTH_SHARING, Tree
from mountsafe.agent.twin import Twin

FOLDER_LIMIT = wire.MAX_PAGE_ENTRIES


def descriptors() -> dict[str, str]:
    """What is open, by its number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    for number in range(FOLDER_LIMIT + 20):
        (tmp_path / "folder" / f"{number}").touch()
    (tmp_path / "file").write_bytes(os.urandom(3 * READ_WORTH_SHARING))
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.fixture
def tree(top: Path) -> Iterator[Tree]:
    made = Tree(str(top), "xfs", False, [])
    yield made
    made.close()


def broken_at(position: int) -> Callable[[int, str], Generator[bytes, None, None]]:
    """Names in a folder of which one cannot be told, and nothing after it."""

    def names(folder: int, kind: str) -> Generator[bytes, None, None]:
        for number in range(position):
            yield b"%d" % number
        raise OSError(errno.EIO, "Input/output error")

    return names


DEEP = b"/".join([b"n" * 200] * 20)
QUESTIONS: dict[str, Callable[[Tree], object]] = {
    "a folder that is not there": lambda tree: tree.list_page(b"nowhere", 0),
    "a deep folder that is not there": lambda tree: tree.list_page(DEEP, 0),
    "a file as a folder": lambda tree: tree.list_page(b"file", 0),
    "a cursor that is unknown": lambda tree: tree.list_page(b"folder", 99),
    "extents of a fifo": lambda tree: tree.extents(b"fifo", 0),
    "extents of a folder": lambda tree: tree.extents(b"folder", 0),
    "bytes of a deep file that is not there": lambda tree: tree.read_into(DEEP, 0, memoryview(bytearray(1))),
    "layout of a folder that is not there": lambda tree: tree.layout(b"nowhere", [b"x"]),
    "attributes of what is not there": lambda tree: tree.xattrs(b"nowhere"),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_a_refusal_leaves_nothing_open(tree: Tree, ask: Callable[[Tree], object]) -> None:
    before = descriptors()
    for _ in range(3):
        with pytest.raises((OSError, Refused)):
            ask(tree)
    assert descriptors() == before


@pytest.mark.parametrize("position", [0, 5, FOLDER_LIMIT + 5])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_folder_that_breaks_off_leaves_nothing_open(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, position: int, ahead: bool
) -> None:
    before = descriptors()
    monkeypatch.setattr(tree_module, "names_in", broken_at(position))
    for _ in range(2 * Tree.OPEN_LISTINGS):
        with pytest.raises(OSError, match="Input/output error"):
            list_all(tree, ahead)
    assert descriptors() == before
    monkeypatch.undo()
    assert len(list_all(tree, ahead)) == FOLDER_LIMIT + 20
    assert descriptors() == before


def list_all(tree: Tree, ahead: bool) -> list[wire.Entry]:
    found: list[wire.Entry] = []
    cursor = 0
    while True:
        cursor, entries = wire.unpack_page(tree.list_page(b"folder", cursor))
        found += entries
        if not cursor:
            return found
        if ahead:
            tree.work_ahead()


def test_a_driver_that_does_not_know_its_flags(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: int, kernel_type: str) -> bool:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    before = descriptors()
    monkeypatch.setattr(tree_module, "finds_by_index", refuse)
    for _ in range(3):
        with pytest.raises(OSError, match="Inappropriate"):
            tree.list_page(b"folder", 0)
    assert descriptors() == before


def test_a_file_that_cannot_be_looked_at(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", refuse)
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output error"):
                tree.extents(b"file", 0)
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["ext4", "vfat"])
def test_a_mount_whose_blocks_are_not_told(top: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = descriptors()
    monkeypatch.setattr(extents_module.fcntl, "ioctl", refuse)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            Tree(str(top), kind, False, [], str(top / "file"))
    assert descriptors() == before


def test_a_device_that_cannot_be_opened(top: Path) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        Tree(str(top), "vfat", False, [], "/dev/nowhere")
    assert descriptors() == before
    ExtentMap("vfat", True, [], -1, str(top / "file")).close()
    assert descriptors() == before


def test_a_page_that_cannot_be_made_ahead_is_an_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it: the worker goes on, and who asks for it is told."""

    def bug(*_: object) -> bytes:
        raise ValueError("a bug")

    cursor, _ = wire.unpack_page(tree.list_page(b"folder", 0))
    with monkeypatch.context() as patch:
        patch.setattr(wire, "pack_page", bug)
        tree.work_ahead()
    with pytest.raises(ValueError, match="a bug"):
        tree.list_page(b"folder", cursor)
    assert len(list_all(tree, ahead=True)) == FOLDER_LIMIT + 20


# --- the twin --------------------------------------------------------------------------------------------------------
def test_no_process_for_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    before = descriptors()
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(BlockingIOError):
        Twin({})
    assert descriptors() == before


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_without_its_twin_the_worker_does_everything(top: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """No answer is lost with it, neither the one that it works on nor a later one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    tree = Tree(str(top), "xfs", False, [])
    before = descriptors()
    tree.share_work()
    assert tree._twin is not None
    pid = tree._twin._pid
    if when == "before":
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    else:
        begin = Twin.begin

        def dying(self: Twin, what: str, *arguments: bytes | int | list[bytes]) -> None:
            begin(self, what, *arguments)
            os.kill(pid, 9)

        monkeypatch.setattr(Twin, "begin", dying)
    try:
        buffer = memoryview(bytearray(3 * READ_WORTH_SHARING))
        assert tree.read_into(b"file", 0, buffer) == len(buffer)
        assert bytes(buffer) == (top / "file").read_bytes()
        assert {entry.name for entry in list_all(tree, ahead=True)} == {
            b"%d" % number for number in range(FOLDER_LIMIT + 20)
        }
        tree.layout(b"folder", [b"%d" % number for number in range(wire.MAX_LAYOUT)])
        assert tree._twin is None or when == "meanwhile"
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(tree._files.popitem()[1])
        assert descriptors() == before
    finally:
        tree.close()


def test_a_twin_that_died_in_the_middle_of_its_words() -> None:
    twin = Twin({"answer": lambda: b"yes"})
    twin.begin("answer")
    length = twin._length()
    os.kill(twin._pid, 9)
    os.waitid(os.P_PID, twin._pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(twin_module.Gone):
        twin._receive(memoryview(bytearray(length + 1)))
    with pytest.raises(twin_module.Gone):
        twin.begin("answer")
    twin.end()
