"""Links cannot lead out of their mount: shown on trees in memory, resolved as the kernel resolves."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountsafe.filesystem.links import BLOCKED, contained

MOST_LINKS = 40  # MAXSYMLINKS of the kernel


@dataclass
class Folder:
    """A folder with its children: folders, or links' targets."""

    parent: "Folder | None" = None
    depth: int = 0
    children: dict[bytes, "Folder | bytes"] = field(default_factory=dict)


class Escaped(Exception):
    """The resolution left the mount."""


def resolve(folder: Folder, path: bytes, links: list[int]) -> Folder | None:
    """Walk a path as the kernel does: ".." goes to the real parent, links are followed. None: it leads nowhere."""
    if path.startswith(b"/"):
        if path.startswith(BLOCKED):
            return None  # such a name does not exist
        raise Escaped(path)
    at = folder
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if at.parent is None:
                raise Escaped(path)
            at = at.parent
            continue
        child = at.children.get(part)
        if isinstance(child, bytes):
            links.append(1)
            if len(links) > MOST_LINKS:
                return None
            child = resolve(at, contained(child, at.depth + 1), links)
        if child is None:
            return None
        at = child
    return at


NAMES = st.sampled_from([b"a", b"b", b"c"])
PARTS = st.sampled_from([b"a", b"b", b"c", b"..", b"..", b".", b""])
TARGETS = st.builds(
    lambda absolute, parts: (b"/" if absolute else b"") + b"/".join(parts),
    st.sampled_from([False, False, False, True]),
    st.lists(PARTS, min_size=1, max_size=6),
)


@st.composite
def trees(draw: st.DrawFn) -> tuple[Folder, list[Folder]]:
    """A tree of folders and links: the root and every folder."""
    root = Folder()
    folders = [root]
    for _ in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from(folders))
        child = Folder(parent, parent.depth + 1)
        if parent.children.setdefault(draw(NAMES), child) is child:
            folders.append(child)
    for _ in range(draw(st.integers(1, 8))):
        draw(st.sampled_from(folders)).children.setdefault(draw(NAMES), draw(TARGETS))
    return root, folders


@given(trees(), st.data())
@settings(max_examples=500)
def test_no_path_of_names_leads_out(made: tuple[Folder, list[Folder]], data: st.DataObject) -> None:
    """Whoever stays inside by names alone stays inside, whatever links those names are."""
    root, folders = made
    start = data.draw(st.sampled_from(folders))
    path = b"/".join(data.draw(st.lists(NAMES, min_size=1, max_size=5)))
    resolve(start, path, [])
    for folder in folders:
        for name, child in folder.children.items():
            if isinstance(child, bytes):
                resolve(folder, name, [])
    assert root.parent is None


def test_the_model_notices_an_escape() -> None:
    root = Folder()
    with pytest.raises(Escaped):
        resolve(root, b"..", [])


@pytest.mark.parametrize(
    ("target", "depth"),
    [
        (b"/etc/passwd", 3),
        (b"/", 3),
        (b"//etc", 3),
        (b"..", 1),
        (b"../../x", 2),
        (b"./../..", 2),
        (b"a/../b", 5),
        (b"a/../../../../../etc", 5),
        (b"..//..//..", 3),
    ],
)
def test_targets_that_could_lead_out_are_defused(target: bytes, depth: int) -> None:
    assert contained(target, depth).startswith(BLOCKED)


@pytest.mark.parametrize(
    ("target", "depth"),
    [(b"a", 1), (b"a/b", 1), (b"./a", 1), (b"../a", 2), (b"../..", 3), (b"../../a/b", 3), (b".", 1)],
)
def test_targets_that_stay_inside_are_unchanged(target: bytes, depth: int) -> None:
    assert contained(target, depth) == target


@given(st.binary(max_size=5000), st.integers(1, 6))
def test_a_defused_target_shows_where_it_led_and_fits_the_kernel(target: bytes, depth: int) -> None:
    shown = contained(target, depth)
    assert len(shown) <= max(len(target), 4095)
    assert shown == target or b"/../" not in shown
