"""A question that two processes answer has the answer that one would give."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.agent.programs import Refused
from mountsafe.agent.tree import READ_WORTH_SHARING, Tree
from mountsafe.agent.twin import Gone, Twin

COUNT = wire.MAX_PAGE_ENTRIES * 2 + 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("twin")
    for number in range(COUNT):
        (path / f"{number:04}").write_bytes(bytes(number))
    (path / "large").write_bytes(os.urandom(3 * READ_WORTH_SHARING + 1234))
    (path / "link").symlink_to("0001")
    return path


@pytest.fixture
def alone(folder: Path) -> Iterator[Tree]:
    tree = Tree(str(folder), "xfs", False, [])
    yield tree
    tree.close()


@pytest.fixture
def shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    tree = Tree(str(folder), "xfs", False, [])
    tree.share_work()
    assert tree._twin is not None
    yield tree
    pid = tree._twin._pid
    tree.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def listed(tree: Tree, ahead: bool = False) -> list[wire.Entry]:
    found: list[wire.Entry] = []
    cursor = 0
    while True:
        cursor, entries = wire.unpack_page(tree.list_page(b"", cursor))
        found += [entry._replace(atime=0) for entry in entries]  # looking at a link changes it
        if not cursor:
            return found
        if ahead:
            tree.work_ahead()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_listing(alone: Tree, shared: Tree, ahead: bool) -> None:
    found = listed(shared, ahead)
    assert sorted(found) == sorted(listed(alone))
    assert len({entry.name for entry in found}) == len(found) == COUNT + 2


def test_two_listings_ahead_of_each_other(shared: Tree) -> None:
    first, one = wire.unpack_page(shared.list_page(b"", 0))
    shared.work_ahead()
    second, two = wire.unpack_page(shared.list_page(b"", 0))
    shared.work_ahead()
    assert first != second
    for cursor, found in ((second, two), (first, one)):
        while cursor:
            cursor, more = wire.unpack_page(shared.list_page(b"", cursor))
            found += more
            shared.work_ahead()
        assert len({entry.name for entry in found}) == len(found) == COUNT + 2


def test_a_layout(alone: Tree, shared: Tree) -> None:
    names = [entry.name for entry in listed(alone)][: wire.MAX_LAYOUT]
    assert shared.layout(b"", names) == alone.layout(b"", names)


@pytest.mark.parametrize("length", [wire.MAX_READ, 2 * READ_WORTH_SHARING, 2 * READ_WORTH_SHARING - 1, 5])
@pytest.mark.parametrize("offset", [0, 1, READ_WORTH_SHARING, 3 * READ_WORTH_SHARING + 1230, 1 << 30])
def test_a_read(folder: Path, shared: Tree, offset: int, length: int) -> None:
    buffer = memoryview(bytearray(wire.MAX_READ))[:length]
    count = shared.read_into(b"large", offset, buffer)
    assert bytes(buffer[:count]) == (folder / "large").read_bytes()[offset : offset + length]


def test_a_folder_that_is_not_there_is_an_error_and_the_next_question_has_its_answer(shared: Tree) -> None:
    with pytest.raises((OSError, Refused)):
        shared.layout(b"nowhere", [b"%d" % number for number in range(100)])
    assert len(listed(shared)) == COUNT + 2


def test_a_failure_of_the_twin_is_refused() -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    twin = Twin({"fail": fail, "answer": lambda: b"yes"})
    twin.begin("fail")
    with pytest.raises(Refused):
        twin.result()
    twin.begin("answer")
    assert twin.result() == b"yes"
    twin.end()


def test_a_twin_that_died_is_noticed() -> None:
    twin = Twin({"die": lambda: os._exit(1)})  # type: ignore[dict-item]
    twin.begin("die")
    with pytest.raises(Gone):
        twin.result()
    twin.end()
