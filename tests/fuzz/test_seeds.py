"""The fuzzer's targets with its seeds, what its long runs kept, and what hypothesis makes: seconds, and no search."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import wire
from mountsafe.wire import VolumeKind
from tests.fuzz.corpus import kept
from tests.fuzz.targets import SEEDS, TARGETS

SIZE = 1 << 20


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_has_seeds_that_hold(name: str) -> None:
    assert SEEDS[name]
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_kept_holds(name: str) -> None:
    inputs = kept(name)
    assert inputs
    for data in inputs:
        TARGETS[name](data)


CHANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 4), st.binary(max_size=8)), max_size=4)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_a_seed_that_is_changed_somewhere(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS[name] + kept(name)))
    for at, cut, put in data.draw(CHANGES):
        at %= len(seed) + 1
        seed = seed[:at] + put + seed[at + cut :]
    TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=400))
def test_noise(name: str, data: bytes) -> None:
    TARGETS[name](data)


# --- what a fuzzer of bytes is slow to come upon ---------------------------------------------------------------------
WORDS = st.sampled_from([b"", b".", b"..", b"-", b"vfat", b"ext4", b"iso9660", b"filesystem", b"crypto", b"gpt"])
LABELS = WORDS | st.text(max_size=63).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=255)
PLACE = st.integers(0, SIZE) | st.just((1 << 64) - 1)
VOLUMES = st.builds(
    wire.Volume,
    device=st.sampled_from([b"sda", b"sda1", b"dm-0", b"..", b"a/b"]),
    kind=st.sampled_from([VolumeKind.DISK, VolumeKind.PARTITION, VolumeKind.LOGICAL, VolumeKind.ARRAY, 5]),
    number=st.integers(0, 3) | st.just((1 << 32) - 1),
    start=st.integers(0, SIZE) | st.just((1 << 64) - 1),
    size=st.integers(0, SIZE) | st.just((1 << 64) - 1),
    fstype=WORDS,
    usage=WORDS,
    label=LABELS,
    uuid=LABELS,
    table=WORDS,
    part_name=LABELS,
    name=LABELS,
    parents=st.lists(st.integers(0, 6), max_size=2).map(tuple),
    present=st.integers(0, 3),
    wanted=st.integers(0, 3),
    trouble=st.integers(0, 4),
    places=st.lists(st.builds(wire.Place, PLACE, PLACE, PLACE), max_size=3).map(tuple),
    resorts=st.integers(0, wire.Resort.ALL) | st.just((1 << 16) - 1),
    claimed=st.just(0) | st.integers(0, SIZE) | st.just((1 << 64) - 1),
    sector=st.sampled_from([0, 512, 4096, 7, (1 << 16) - 1]),
)


@given(st.lists(VOLUMES, max_size=6), st.integers(0, 255), st.integers(0, 1))
def test_volumes_of_all_kinds(volumes: list[wire.Volume], number: int, forced: int) -> None:
    TARGETS["volumes"](SIZE.to_bytes(5, "big") + bytes([number, forced]) + wire.pack_volumes(volumes))


NAMES = st.sampled_from(["sda", "sdb1", "mmcblk0p1", "nvme0n1", "sr0", "fd0", "loop0", "vda1", "dm-0", "zram0"])
KEYS = st.sampled_from(
    [
        *("ID_BUS", "ID_USB_DRIVER", "ID_PATH", "ID_INTEGRATION", "MMC_TYPE", "ID_SEAT", "DISKSEQ"),
        *("ID_VENDOR", "ID_MODEL", "ID_SERIAL", "ID_SERIAL_SHORT", "ID_FS_TYPE", "ID_FS_LABEL", "ID_FS_UUID"),
        *("MOUNTSAFE_MANAGED", "MOUNTSAFE_FS_TYPE"),
    ]
)
VALUES = st.text(max_size=40) | st.sampled_from(["1", "usb", "ata", "internal", "external", "MMC", "-usb-", '"', "*"])


@given(NAMES, st.dictionaries(KEYS, VALUES), st.integers(0, 15))
def test_devices_of_all_kinds(name: str, properties: dict[str, str], above: int) -> None:
    lines = [name, *(f"{key}={value}" for key, value in properties.items())]
    TARGETS["properties"](bytes(6) + bytes([above]) + "\n".join(lines).encode("utf-8", "surrogatepass"))
