"""QEMU as the container process runs it, without the box and without the look at headers: which names it opens.

Outside the box every name could be opened, so what is held here is the last barrier alone.
"""

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mountsafe.appliance.qmp import QmpError
from mountsafe.container import serve
from mountsafe.medium.formats import Format
from tests import containers
from tests.vm import qemu_img
from tests.vm.nbd import Nbd, Unreadable

SIZE = 64 << 10
MUTATIONS = 30  # of each format


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the host that anybody could read."""
    path = tmp_path / "canary"
    path.write_bytes(b"canary of the host\n".ljust(SIZE, b"C"))
    return path


@pytest.fixture(autouse=True)
def qemu(program: Callable[[str], str]) -> None:
    program("qemu-system-x86_64")


@contextmanager
def disk(folder: Path, data: bytes, format_: Format) -> Iterator[tuple[int, Nbd]]:
    """Open an image; give QEMU's process id and a connection to the disk."""
    (folder / "image").write_bytes(data)
    with (folder / "image").open("rb") as file:
        child, qmp = serve.start()
        try:
            size = serve.open_disk(child.pid, qmp, file.fileno(), format_)
            serve.serve_disk(qmp, str(folder / "nbd"))
            with Nbd(str(folder / "nbd")) as connection:
                assert connection.size == size
                yield child.pid, connection
        finally:
            child.kill()
            child.wait()
            qmp.close()


def hostile(canary: Path) -> dict[str, tuple[Format, bytes]]:
    """Images that name the canary."""
    name = str(canary)
    flat = f'RW {SIZE // 512} FLAT "{{}}" 0'

    def text(extents: str, kind: str = "monolithicFlat") -> tuple[Format, bytes]:
        return Format.VMDK, containers.vmdk_text(extents, kind=kind).encode()

    return {
        "data-file": (Format.QCOW2, containers.qcow2(SIZE, features=4, data_file=name.encode())),
        "text": text(flat.format(name)),
        "text-inside": (Format.VMDK, containers.vmdk(0, flat.format(name), kind="monolithicFlat")),
        "text-vmfs": text(f'RW {SIZE // 512} VMFS "{name}"', "vmfs"),
        "text-itself": text(flat.format("1")),  # which QEMU takes for /dev/fdset/1
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_who_names_another_file_is_not_opened(tmp_path: Path, canary: Path, name: str) -> None:
    format_, data = hostile(canary)[name]
    with pytest.raises(QmpError) as failure, disk(tmp_path, data, format_):
        pass
    # QEMU 10 says what failed, earlier ones why.
    assert re.search(r"Too many open files|Failed to dup\(\)", str(failure.value))


@pytest.mark.parametrize(
    "backing", ["{}", "file:{}", 'json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}']
)
@pytest.mark.parametrize("version", [2, 3])
def test_a_backing_file_is_none(tmp_path: Path, canary: Path, backing: str, version: int) -> None:
    data = containers.qcow2(SIZE, backing=backing.format(canary).encode(), version=version)
    with disk(tmp_path, data, Format.QCOW2) as (qemu, connection):
        assert connection.size == SIZE
        assert connection.read(0, SIZE) == bytes(SIZE)
        assert str(canary) not in {os.readlink(link) for link in Path(f"/proc/{qemu}/fd").iterdir()}


def test_a_parent_of_a_vmdk_is_none(tmp_path: Path, canary: Path) -> None:
    text = f'RW 2048 SPARSE "disk.vmdk"\nparentFileNameHint="{canary}"'
    data = containers.vmdk(extents=text, parent="12345678")
    with disk(tmp_path, data, Format.VMDK) as (_, connection):
        assert connection.read(0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize("format_", qemu_img.FORMATS)
def test_what_is_in_the_file_is_read(tmp_path: Path, program: Callable[[str], str], format_: Format) -> None:
    """The control: what QEMU's own tool has made is opened, with the same barrier, and has the bytes."""
    raw = os.urandom(SIZE) + bytes(SIZE) + os.urandom(SIZE)
    (tmp_path / "raw").write_bytes(raw)
    program("qemu-img")
    qemu_img.convert(tmp_path / "raw", format_, tmp_path / "made")
    data = (tmp_path / "made").read_bytes()
    with disk(tmp_path, data, format_) as (_, connection):
        assert connection.size >= len(raw)
        assert connection.read(0, len(raw)) == raw


@pytest.mark.parametrize("format_", qemu_img.FORMATS)
def test_damaged_headers_end_in_words(tmp_path: Path, program: Callable[[str], str], format_: Format) -> None:
    """Whatever is changed: it is opened, or QEMU says why not, soon and alive; its memory is bounded by the box."""
    raw = os.urandom(SIZE) * 2
    (tmp_path / "raw").write_bytes(raw)
    program("qemu-img")
    qemu_img.convert(tmp_path / "raw", format_, tmp_path / "made")
    sound = (tmp_path / "made").read_bytes()
    # Where each keeps what it says of itself: the header, and tables behind it.
    places = [*range(512), *range(SIZE, SIZE + 64), *range(3 * SIZE, 3 * SIZE + 512)]
    chance = random.Random(f"mountsafe {format_}")
    for _ in range(MUTATIONS):
        data = bytearray(sound[: chance.choice([len(sound), len(sound), 100, 1000, len(sound) // 2])])
        for at in chance.choices(places, k=chance.randrange(1, 5)):
            if at < len(data):
                data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        with suppress(QmpError), disk(tmp_path, bytes(data), format_) as (qemu, connection):
            assert connection.size > 0
            with suppress(Unreadable):
                connection.read(0, min(SIZE, connection.size))
            assert os.readlink(f"/proc/{qemu}/exe")
        (tmp_path / "nbd").unlink(missing_ok=True)
