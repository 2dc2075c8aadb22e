"""What the guest says of a directory entry, believed only where it is possible."""

import stat
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import wire
from mountsafe.agent import entries
from mountsafe.agent.tree import Tree
from mountsafe.filesystem.untrusted import fault_of_attributes, fault_of_name
from mountsafe.limits import MAX_FILE_SIZE
from mountsafe.wire import Entry

FILE = Entry(b"name", stat.S_IFREG | 0o644, 1, 0, 0, 12, 5, 8, 0, 0, 0, b"")
LINK = FILE._replace(mode=stat.S_IFLNK | 0o777, target=b"elsewhere")


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"/", b"../etc", b"a\0b", b"\0", b"n" * 256, b"..\0", b"/..", b"./x"]
)
def test_impossible_names(name: bytes) -> None:
    assert fault_of_name(name)


@pytest.mark.parametrize("name", [b"a", b"...", b".hidden", b"n" * 255, b"caf\xe9", b"\n", b"\xff", b"-rf", b" "])
def test_odd_names_that_linux_allows(name: bytes) -> None:
    assert not fault_of_name(name)


@given(st.binary(max_size=300))
def test_a_name_that_passes_is_one_component_of_a_path(name: bytes) -> None:
    if not fault_of_name(name):
        assert name not in (b"", b".", b"..")
        assert not {0, ord("/")} & set(name)
        assert len(name) <= 255


@pytest.mark.parametrize("kind", [1, 2, 4, 6, 8, 10, 12])
def test_the_seven_types_pass(kind: int) -> None:
    mode = kind << 12 | 0o644
    assert not fault_of_attributes(FILE._replace(mode=mode, target=b"t" if stat.S_ISLNK(mode) else b""))


@pytest.mark.parametrize("kind", [0, 3, 5, 7, 9, 11, 13, 14, 15])
def test_other_types_do_not(kind: int) -> None:
    assert fault_of_attributes(FILE._replace(mode=kind << 12 | 0o644))


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": stat.S_IFREG | 1 << 16},
        {"mode": 0xFFFFFFFF},
        {"size": MAX_FILE_SIZE + 1},
        {"size": (1 << 64) - 1},
        {"blocks": 1 << 63},
        {"target": b"not a link"},
    ],
)
def test_impossible_files(fields: dict[str, Any]) -> None:
    assert fault_of_attributes(FILE._replace(**fields))


@pytest.mark.parametrize("fields", [{"target": b""}, {"target": b"a\0b"}])
def test_impossible_links(fields: dict[str, Any]) -> None:
    assert not fault_of_attributes(LINK)
    assert fault_of_attributes(LINK._replace(**fields))


def test_the_largest_possible_file_passes() -> None:
    assert not fault_of_attributes(FILE._replace(size=MAX_FILE_SIZE, nlink=0xFFFFFFFF, uid=0xFFFFFFFF))


def test_what_the_guest_could_not_look_at_is_a_name_alone() -> None:
    assert not fault_of_attributes(Entry(b"name", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b""))


@pytest.mark.parametrize("at", [40, 48], ids=["size", "blocks"])  # in a `struct statx`
def test_a_size_that_the_guests_kernel_takes_for_negative_reaches_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, at: int
) -> None:
    """The agent could not tell it, and with that lost the whole folder; an efs image of the hostile run had one."""
    (tmp_path / "file").touch()
    real, told = entries._statx, entries._told

    def damaged(*question: Any) -> int:
        failed: int = real(*question)
        told[at : at + 8] = (-12).to_bytes(8, sys.byteorder, signed=True)
        return failed

    monkeypatch.setattr(entries, "_statx", damaged)
    tree = Tree(str(tmp_path), "ext4", False, [])
    try:
        (entry,) = wire.unpack_page(tree.list_page(b"", 0))[1]
    finally:
        tree.close()
    assert fault_of_attributes(entry).startswith("an impossible")
