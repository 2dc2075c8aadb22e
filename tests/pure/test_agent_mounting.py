"""How the agent mounts a medium: as it is, else with its journal replayed in memory, else without replay."""

import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.agent import mounting, programs, signatures
from mountsafe.agent.mounting import COW_CHUNK, CowLayer, Mount, Target, mount_medium
from mountsafe.agent.patched import Patched
from mountsafe.agent.programs import Refused
from mountsafe.agent.signatures import _unescape
from mountsafe.wire import MountState

LAYER = "/dev/mapper/layer"


class Kernel:
    """Mounts what it is told to: `accepts` holds (device, type, an option that must be there)."""

    def __init__(self, *accepts: tuple[str, str, str]) -> None:
        self._accepts = accepts
        self.tried: list[tuple[str, str, str]] = []

    def mount(self, device: str, where: str, fstype: str, options: str) -> str:
        self.tried.append((device, fstype, options))
        for accepted in self._accepts:
            if accepted[:2] == (device, fstype) and accepted[2] in options:
                return ""
        return f"{fstype} says no"


class FakeLayer(CowLayer):
    """A layer that is made without device mapper."""

    running = False
    works = True

    def start(self) -> str:
        if not self.works:
            raise Refused(12, "no memory")
        self.running = True
        return LAYER

    def stop(self) -> None:
        self.running = False

    def changed(self) -> list[tuple[int, int]]:
        return [(0, COW_CHUNK)]


@pytest.fixture
def layer(tmp_path: Path) -> FakeLayer:
    device = tmp_path / "sdx"
    device.touch()
    return FakeLayer(str(device), "test")


def mount(
    kernel: Kernel, layer: FakeLayer, fstype: bytes, where: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, int, list[tuple[int, int]]]:
    monkeypatch.setattr(mounting, "_mount", kernel.mount)
    told: Mount = mount_medium(Target(layer.device, fstype, str(where), layer, Patched("test")))
    assert told.resorts == 0
    return told.fstype, told.state, told.changed


def test_a_clean_medium_is_mounted_as_it_is(layer: FakeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((layer.device, "ext4", ""))
    assert mount(kernel, layer, b"ext4", tmp_path, monkeypatch) == ("ext4", MountState.CLEAN, [])
    assert len(kernel.tried) == 1
    assert not layer.running


def test_a_dirty_journal_is_replayed_in_the_layer(
    layer: FakeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel((LAYER, "ext4", ""))
    mounted = mount(kernel, layer, b"ext4", tmp_path, monkeypatch)
    assert mounted == ("ext4", MountState.RECOVERED, [(0, COW_CHUNK)])
    assert layer.running


@pytest.mark.parametrize("works", [True, False])
def test_the_last_resort_is_a_mount_without_replay(
    layer: FakeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    layer.works = works
    kernel = Kernel((layer.device, "xfs", "norecovery"))
    assert mount(kernel, layer, b"xfs", tmp_path, monkeypatch) == ("xfs", MountState.SKIPPED, [])
    assert not layer.running


def test_what_nothing_mounts_is_refused_in_the_kernels_first_words(
    layer: FakeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="ext4 says no"):
        mount(Kernel(), layer, b"ext4", tmp_path, monkeypatch)
    assert not layer.running


def test_a_type_without_a_journal_gets_no_layer(
    layer: FakeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    with pytest.raises(Refused):
        mount(kernel, layer, b"squashfs", tmp_path, monkeypatch)
    assert [device for device, _, _ in kernel.tried] == [layer.device]


def test_several_drivers_are_tried_in_turn(layer: FakeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((layer.device, "udf", ""))
    assert mount(kernel, layer, b"iso9660", tmp_path, monkeypatch)[0] == "udf"
    assert [fstype for _, fstype, _ in kernel.tried] == ["iso9660", "udf"]


def test_mount_is_told_to_mount_read_only_and_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> tuple[int, str]:
        commands.append(command)
        return 32, "mount: /where: wrong fs type\ndmesg(1) may have more information"

    nothing = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(mounting, "run", run)
    monkeypatch.setattr(mounting, "_kernel_lines", lambda log: ["EXT4-fs: bad"])
    monkeypatch.setattr(os, "open", lambda path, flags: nothing)
    assert mounting._mount("/dev/sdx", "/where", "ext4", "noload") == "wrong fs type [EXT4-fs: bad]"
    options = commands[0][commands[0].index("-o") + 1].split(",")
    assert {"ro", "nosuid", "nodev", "noexec", "noload"} <= set(options)


def test_the_last_words_of_the_kernel_are_told() -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with theirs, ours:
        for number in range(5):
            theirs.send(b"6,%d,99,-;loop0: line %d\n SUBSYSTEM=block\n" % (number, number))
        told = mounting._last_words(mounting._kernel_lines(ours.fileno()))
    assert told == [f"[loop0: line {number}]" for number in range(5)][-mounting.KERNEL_LINES :]


def test_every_way_to_mount_is_a_type_and_options() -> None:
    for attempts in mounting.MOUNT_AS.values():
        for fstype, options in attempts:
            assert fstype
            assert "rw" not in options.split(",")


# --- what a replay has changed -------------------------------------------------------------------------------------
def store(path: Path, exceptions: list[tuple[int, int]]) -> None:
    """Write dm-snapshot's persistent store: a header, then areas of 256 pairs and as many chunks of data."""
    per_area = COW_CHUNK // 16
    with open(path, "wb") as file:
        file.write(b"SnAp".ljust(COW_CHUNK, b"\0"))
        for area in range(len(exceptions) // per_area + 1):
            file.seek(COW_CHUNK * (1 + area * (per_area + 1)))
            pairs = exceptions[area * per_area : (area + 1) * per_area]
            file.write(b"".join(struct.pack("<QQ", *pair) for pair in pairs).ljust(COW_CHUNK, b"\0"))
            file.write(b"\xff" * COW_CHUNK * per_area)


@pytest.fixture
def on_disk(tmp_path: Path) -> CowLayer:
    layer = CowLayer("/dev/null", "test")
    layer._store = str(tmp_path / "store")
    return layer


@pytest.mark.parametrize("count", [0, 1, 3, 255, 256, 257, 513])
def test_every_replaced_chunk_is_found(on_disk: CowLayer, count: int) -> None:
    old = [(index * 7 + 3) % 2048 for index in range(count)]
    store(Path(on_disk._store), [(chunk, index + 2) for index, chunk in enumerate(old)])
    expected = sorted((chunk * COW_CHUNK, (chunk + 1) * COW_CHUNK) for chunk in old)
    assert on_disk.changed() == expected


def test_a_store_that_is_full_to_its_end(on_disk: CowLayer) -> None:
    store(Path(on_disk._store), [(index, index + 2) for index in range(256)])
    os.truncate(on_disk._store, COW_CHUNK * 258)
    assert len(on_disk.changed()) == 256


# --- what blkid says -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (rb"My\x20Stick", b"My Stick"),
        (rb"\x2fetc\x2f", b"/etc/"),
        (rb"a\xzz", rb"a\xzz"),
        (rb"a\x4", b"a\x04"),
        (rb"\x", rb"\x"),
        (b"plain", b"plain"),
        (b"", b""),
    ],
)
def test_unescape(escaped: bytes, plain: bytes) -> None:
    assert _unescape(escaped) == plain


@given(st.binary(max_size=50))
def test_unescape_undoes_what_blkid_does(label: bytes) -> None:
    escaped = b"".join(b"\\x%02x" % byte if byte in b"\\ /\n" or byte < 32 else bytes([byte]) for byte in label)
    assert _unescape(escaped) == label


@given(st.binary(max_size=50))
def test_unescape_takes_anything(value: bytes) -> None:
    _unescape(value)


def test_the_first_file_system_of_several_is_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "ID_FS_AMBIVALENT=raid:linux_raid_member:1.2 filesystem:ext4:1.0 filesystem:vfat:FAT32\nno pair"
    asked: list[tuple[str, ...]] = []

    def blkid(*command: str) -> tuple[int, str]:
        asked.append(command)
        return (8, words) if "-n" not in command else (0, "ID_FS_LABEL=DATA\nID_FS_TYPE=ext4")

    monkeypatch.setattr(signatures, "run", blkid)
    found = signatures.blkid("no-such-device")
    assert (found["ID_FS_TYPE"], found["ID_FS_USAGE"], found["ID_FS_LABEL"]) == (b"ext4", b"filesystem", b"DATA")
    assert asked[1][-3:] == ("-n", "ext4", "/dev/no-such-device")


def test_a_program_that_is_missing_is_an_answer() -> None:
    code, words = programs.run("no-such-program-of-the-appliance")
    assert code == programs.NO_PROGRAM
    assert "no-such-program" in words


def test_programs_run_beside_each_other() -> None:
    first, second = programs.run_all([("sh", "-c", "echo one; exit 3"), ("no-such-program-of-the-appliance",)])
    assert first == (3, "one")
    assert second[0] == programs.NO_PROGRAM


def test_of_many_devices_each_gets_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "sdc1": "ID_FS_TYPE=ext4\nID_PART_ENTRY_NUMBER=1",
        "sdc2": "ID_PART_ENTRY_NUMBER=2",
        "sdc3": "",
        "sdc4": "ID_FS_AMBIVALENT=filesystem:ext4:1.0 filesystem:vfat:FAT32\nID_PART_ENTRY_NUMBER=4",
    }

    def shells(commands: list[tuple[str, ...]]) -> list[tuple[int, str]]:
        assert [command[4:] for command in commands] == [("sdc1", "sdc3"), ("sdc2", "sdc4")]
        return [(2, "\n".join(f"={device}\n{told[device]}" for device in command[4:])) for command in commands]

    monkeypatch.setattr(signatures, "run_all", shells)
    monkeypatch.setattr(signatures, "blkid", lambda device: {"ID_FS_LABEL": device.encode()})
    found = signatures.blkid_all(list(told))
    assert found["sdc1"] == {"ID_FS_TYPE": b"ext4", "ID_PART_ENTRY_NUMBER": b"1"}
    assert found["sdc2"] == {"ID_PART_ENTRY_NUMBER": b"2"}
    assert (found["sdc3"], found["sdc4"]) == ({"ID_FS_LABEL": b"sdc3"}, {"ID_FS_LABEL": b"sdc4"})
