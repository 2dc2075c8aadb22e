"""What programs do to a mount that can be changed: as on any file system, whatever becomes of virtual machines."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.fuse.changed import Changed

Mounts = Callable[..., Changed]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounts]:
    """A function that mounts a folder, which it fills before if it is told how."""
    if os.geteuid() != 0:
        missing("root")
    begun: list[Changed] = []

    def begin(fill: Callable[[Path], object] = lambda top: None, **options: Any) -> Changed:
        places = [tmp_path / f"{name}{len(begun)}" for name in ("tree", "target", "state")]
        for place in places:
            place.mkdir()
        fill(places[0])
        begun.append(Changed(*places, **options))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def test_a_file_is_made_written_read_and_removed(mount: Mounts) -> None:
    mounted = mount()
    top, tree = mounted.target, mounted.tree
    (top / "file").write_bytes(b"hello")
    assert (top / "file").read_bytes() == b"hello"
    mounted.sync()
    assert (tree / "file").read_bytes() == b"hello"
    os.rename(top / "file", top / "other")
    assert os.listdir(top) == ["other"]
    (top / "other").unlink()
    assert os.listdir(top) == []
    mounted.unmount()
    assert os.listdir(tree) == []
    assert mounted.unsaved == []
