"""Whose sectors a partition table counts in, decided from bytes and from what blkid(8) would say."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.agent import sectors
from mountsafe.agent.sectors import NATIVE, Part, Table, has_gpt, has_table, is_known, other_table, wished
from mountsafe.incidents import Incidents
from mountsafe.medium.volumes import checked
from tests.pure.test_volumes import SIZE, TABLE, partition, told

EXT4 = {"ID_FS_TYPE": b"ext4"}
NOTHING: dict[str, bytes] = {}


# --- what the host names ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "wish"),
    [
        ("sector 4096", (4096, False)),
        ("sector 2048 only", (2048, True)),
        ("sector 512 only", (512, True)),
        ("sector 4096 perhaps", (4096, False)),
        ("sector 4095", (NATIVE, False)),
        ("sector -512", (NATIVE, False)),
        ("sector", (NATIVE, False)),
        ("QEMU HARDDISK", (NATIVE, False)),
        ("", (NATIVE, False)),
    ],
)
def test_the_hosts_wish(model: str, wish: tuple[int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sectors, "read_text", lambda path: model if path == "/sys/block/sdc/device/model" else "")
    assert wished("sdc") == wish


# --- what a disk begins with -----------------------------------------------------------------------------------------
def disk(folder: Path, gpt: int = 0, kinds: tuple[int, ...] = (), end: bytes = b"\x55\xaa") -> str:
    data = bytearray(1 << 16)
    for number, kind in enumerate(kinds):
        data[446 + 16 * number + 4] = kind
    data[510:512] = end
    if gpt:
        data[gpt : gpt + 8] = b"EFI PART"
    (folder / "disk").write_bytes(data)
    return str(folder / "disk")


@pytest.mark.parametrize("sector", wire.SECTOR_SIZES)
def test_a_gpt_is_where_its_sectors_put_it(sector: int, tmp_path: Path) -> None:
    path = disk(tmp_path, gpt=sector, kinds=(0xEE,))
    assert [size for size in wire.SECTOR_SIZES if has_gpt(path, size)] == [sector]
    assert [size for size in wire.SECTOR_SIZES if has_table(path, size)] == [sector]


@pytest.mark.parametrize(
    ("kinds", "end", "there"),
    [
        ((0x83,), b"\x55\xaa", True),
        ((0, 0, 0, 0xC), b"\x55\xaa", True),
        ((0xEE,), b"\x55\xaa", False),  # there is a GPT, it says, and there is none
        ((), b"\x55\xaa", False),  # a boot sector without entries
        ((0x83,), b"\0\0", False),
    ],
)
def test_a_dos_table_may_count_anything(kinds: tuple[int, ...], end: bytes, there: bool, tmp_path: Path) -> None:
    path = disk(tmp_path, kinds=kinds, end=end)
    assert [has_table(path, size) for size in wire.SECTOR_SIZES] == [there] * len(wire.SECTOR_SIZES)


def test_a_disk_of_a_few_bytes_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"\x55\xaa")
    assert not any(has_table(str(tmp_path / "disk"), size) for size in wire.SECTOR_SIZES)


# --- which table is taken --------------------------------------------------------------------------------------------
def table(sector: int, *facts: dict[str, bytes]) -> Table:
    return Table(sector, {}, [Part(number, 4096, 4096, each) for number, each in enumerate(facts, 1)])


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | None]:
    """A function that returns the size that is chosen, of a disk that reads so with each size."""

    def chosen(
        read: dict[int, Table], wish: tuple[int, bool] = (NATIVE, False), native: bool = False, gpt: int = 0
    ) -> int | None:
        monkeypatch.setattr(sectors, "read_table", lambda path, sector, blkid: read.get(sector, table(sector)))
        found = other_table(disk(tmp_path, gpt, (0xC,)), wish, native, lambda device: {})
        return found.sector if found else None

    return chosen


def test_what_the_kernel_has_read_is_kept_where_something_is_known(choose: Callable[..., int | None]) -> None:
    assert choose({4096: table(4096, EXT4)}, native=True) is None
    assert choose({4096: table(4096, EXT4)}, native=False) == 4096


def test_the_devices_own_size_comes_first(choose: Callable[..., int | None]) -> None:
    both = {4096: table(4096, EXT4), 2048: table(2048, EXT4)}
    assert choose(both, (2048, False)) == 2048
    assert choose(both, (4096, False), native=True) == 4096
    assert choose({}, (4096, False), native=True) is None


def test_a_size_that_the_user_names_is_the_only_one(choose: Callable[..., int | None]) -> None:
    assert choose({4096: table(4096, EXT4)}, (NATIVE, True)) is None
    assert choose({4096: table(4096, EXT4)}, (2048, True)) == 2048  # with nothing in it
    assert choose({2048: table(2048, NOTHING)}, (2048, True)) == 2048


def test_partitions_of_which_nothing_is_known_need_a_gpt(choose: Callable[..., int | None]) -> None:
    unknown = {4096: table(4096, NOTHING, NOTHING)}
    assert choose(unknown) is None
    assert choose(unknown, gpt=4096) == 4096
    assert choose(unknown, gpt=512) is None


def test_an_extended_partition_proves_nothing() -> None:
    extended = {"ID_PART_TABLE_TYPE": b"dos", "ID_PART_ENTRY_TYPE": b"0x5"}
    assert not table(4096, extended).sensible
    assert table(4096, extended, EXT4).sensible
    assert not table(4096).sensible
    assert is_known({"ID_FS_AMBIVALENT": b"filesystem:ext4"})


def test_of_a_partition_its_entry_alone_is_taken_over() -> None:
    facts = {"ID_PART_ENTRY_NAME": b"data", "ID_PART_ENTRY_TYPE": b"0x83", "ID_FS_TYPE": b"ext4"}
    read = table(4096, facts)
    assert read.entry(1) == {"ID_PART_ENTRY_NAME": b"data", "ID_PART_ENTRY_TYPE": b"0x83"}
    assert read.entry(2) == {}


def test_the_kernel_is_given_the_other_tables_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def add(fd: int, *numbers: int) -> None:
        asked.append(numbers)
        if numbers[0] == 2:
            raise OSError(errno.EBUSY, "it overlaps another one")

    monkeypatch.setattr(sectors, "partitions_of", lambda disk: [("null1", 1, 0, 512), ("null5", 5, 0, 512)])
    monkeypatch.setattr(sectors.tables, "remove", lambda fd, number: asked.append((number,)))
    monkeypatch.setattr(sectors.tables, "add", add)
    parts = [Part(2, 8 * 4096, 4 * 4096, EXT4), Part(3, 12 * 4096, 4096, EXT4)]
    sectors.adopt("null", Table(4096, {}, parts))
    assert asked == [(1,), (5,), (2, 8 * 4096, 4 * 4096), (3, 12 * 4096, 4096)]


# --- the host's check ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sector", [0, *wire.SECTOR_SIZES])
def test_sectors_that_can_be_are_taken_and_said(sector: int) -> None:
    incidents = Incidents()
    _, volume = checked([TABLE, partition(1)._replace(sector=sector)], SIZE, incidents)
    assert incidents.count == 0
    assert volume.sector_size == (sector or None)
    assert volume.condition == (f"its partition table counts sectors of {sector} bytes" if sector else "")


@pytest.mark.parametrize("sector", [1, 511, 513, 8192, 0xFFFF])
def test_sectors_that_cannot_be_are_an_incident(sector: int) -> None:
    incidents = Incidents()
    assert len(checked([TABLE, partition(1)._replace(sector=sector)], SIZE, incidents)) == 1
    assert incidents.count == 1


def test_only_a_partition_has_them() -> None:
    incidents = Incidents()
    assert checked([told(sector=4096)], SIZE, incidents) == []
    assert incidents.count == 1
