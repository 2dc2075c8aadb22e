"""An image file that changes while it is mounted: what is gone is an error and nothing else, and nothing hangs."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mountsafe.sandbox import PYTHON
from tests.vm.command.stage import Person, sh
from tests.vm.command.test_faults import ASK, BOUND, content, expected, questions

Image = Callable[[str], Path]
BLOCK = 4096
GONE = errno.EIO

# Prints, of each block of a file, the errno that reading it ends in, or whether it is as it was, or zeros, or else.
LOOK = """
import os, sys
image, count = sys.argv[2], int(sys.argv[3])
fd = os.open(sys.argv[1], os.O_RDONLY)
with open(image, "rb") as file:
    whole = file.read()
for number in range(count):
    try:
        found = os.pread(fd, 4096, 4096 * number)
    except OSError as error:
        print(error.errno)
    else:
        print("same" if found == whole[4096 * number:][:4096] else "zeros" if not any(found) else "other")
"""


READ = """
import os, sys
while True:
    for folder, _, names in os.walk(sys.argv[1]):
        for path in (os.path.join(folder, name) for name in names):
            try:
                if os.path.isfile(path):
                    open(path, "rb").read()
            except OSError:
                pass
"""


class Held:
    """A mounted image with a file of random blocks that nobody has read yet."""

    BLOCKS = 40

    def __init__(self, person: Person, folder: Path, source: Path, data: bytes) -> None:
        self.person = person
        self.source = source
        self.top = folder / "m"
        self.start = source.read_bytes().index(data[:BLOCK])  # of the file in the image
        self._data = folder / "data"
        self._data.write_bytes(data)
        person.give(self._data)

    def look(self) -> list[str]:
        """What becomes of each block of the file."""
        words = self.person.python(LOOK, self.top / "held", str(self._data), str(self.BLOCKS)).ok()
        return words.out.split()


@contextmanager
def held(person: Person, folder: Path, source: Path, data: bytes) -> Iterator[Held]:
    made = Held(person, folder, person.give(source), data)
    person.run("mount", source, made.top).ok()
    yield made
    person.run("unmount", made.top).ok()
    assert not made.top.exists()


@pytest.fixture
def direct(user: Person, folder: Path, image: Image) -> Iterator[Held]:
    """Read from the image by the session process."""
    source, data = folder / "changing.img", os.urandom(Held.BLOCKS * BLOCK)
    source.write_bytes(image("ext4").read_bytes())
    (folder / "new").write_bytes(data)
    sh("debugfs", "-w", "-R", f"write {folder / 'new'} held", source)
    with held(user, folder, source, data) as made:
        assert user.records_of(source)["mounts"][0]["direct_reads"]
        assert content(user, made.top / "random.bin") == expected("random.bin")  # direct reads are proven by that
        yield made


@pytest.fixture
def through_guest(user: Person, folder: Path) -> Iterator[Held]:
    """Read by QEMU, in the virtual machine."""
    source, data, tree = folder / "changing.img", os.urandom(Held.BLOCKS * BLOCK), folder / "tree"
    tree.mkdir()
    (tree / "held").write_bytes(data)
    sh("mksquashfs", tree, source, "-noappend", "-quiet", "-noD", "-noF", "-noI", "-no-tailends", "-b", str(BLOCK))
    with held(user, folder, source, data) as made:
        assert not user.records_of(source)["mounts"][0]["direct_reads"]
        yield made


@contextmanager
def reading(person: Person, top: Path) -> Iterator[None]:
    """Somebody reads all of it, over and over, whatever comes of it; and ends when he is told to."""
    with person.start(top, program=[PYTHON, "-I", "-c", READ]) as reader:
        try:
            yield
        finally:
            reader.kill()
            reader.communicate(timeout=BOUND)


def test_what_is_cut_off_is_an_error_and_nothing_else(direct: Held) -> None:
    kept = 25
    os.truncate(direct.source, direct.start + kept * BLOCK + 100)
    assert direct.look() == ["same"] * kept + [str(GONE)] * (direct.BLOCKS - kept)
    assert direct.person.run(direct.top, program=["ls"]).ok().out


def test_what_is_cut_off_is_never_shown_as_zeros(through_guest: Held) -> None:
    """QEMU pads a file that has become shorter with zeros: bytes that only it can read are not to be believed."""
    os.truncate(through_guest.source, through_guest.start + 10 * BLOCK)
    seen = through_guest.look()
    assert set(seen) <= {"same", str(GONE)}
    assert set(seen[10:]) == {str(GONE)}


def test_a_file_that_is_cut_off_while_it_is_read(direct: Held) -> None:
    with reading(direct.person, direct.top):
        for blocks in range(direct.BLOCKS, 0, -5):
            os.truncate(direct.source, direct.start + blocks * BLOCK)
            assert set(direct.look()) <= {"same", str(GONE)}
    os.truncate(direct.source, 0)
    assert direct.person.python(ASK, questions(direct.top)[0]).code in (0, 1)  # an answer, whichever


@pytest.mark.parametrize("kind", ["direct", "through_guest"])
def test_a_file_that_grows_is_as_long_as_it_was(request: pytest.FixtureRequest, kind: str) -> None:
    grown: Held = request.getfixturevalue(kind)
    before = grown.person.run(grown.top, program=["stat", "-f", "-c", "%S %b %c"]).ok().out
    with open(grown.source, "ab") as file:
        file.write(os.urandom(1 << 20))
    os.truncate(grown.source, 1 << 36)
    assert grown.look() == ["same"] * grown.BLOCKS
    assert grown.person.run(grown.top, program=["stat", "-f", "-c", "%S %b %c"]).ok().out == before


@pytest.mark.parametrize("how", ["replaced", "deleted"])
@pytest.mark.parametrize("kind", ["direct", "through_guest"])
def test_a_file_that_goes_is_there_for_its_mount(
    request: pytest.FixtureRequest, image: Image, kind: str, how: str
) -> None:
    """Whatever has its name now is another file."""
    gone: Held = request.getfixturevalue(kind)
    if how == "replaced":
        other = gone.source.with_name("other.img")
        other.write_bytes(image("romfs").read_bytes())
        gone.person.give(other).rename(gone.source)
    else:
        gone.source.unlink()
    assert gone.look() == ["same"] * gone.BLOCKS


@pytest.mark.parametrize("kind", ["direct", "through_guest"])
def test_a_file_that_is_overwritten_shows_something_or_an_error(request: pytest.FixtureRequest, kind: str) -> None:
    """Whoever does that has what he asked for; it ends, and can be unmounted."""
    over: Held = request.getfixturevalue(kind)
    size = over.source.stat().st_size
    with reading(over.person, over.top), open(over.source, "r+b") as file:
        for at in range(0, size, 1 << 20):
            file.seek(at)
            file.write(os.urandom(min(1 << 20, size - at)))
        assert len(over.look()) == over.BLOCKS
    assert over.person.run(over.top, program=["ls"]).code in (0, 2)
