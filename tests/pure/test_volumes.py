"""What is on a medium: what the guest told, checked, and which of it is mounted under which name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import wire
from mountsafe.errors import ExitCode, UserError
from mountsafe.incidents import Incidents
from mountsafe.medium.choosing import choose, deeper, folder_names, label_name, parts, within
from mountsafe.medium.extents import Window
from mountsafe.medium.volumes import Volume, checked
from mountsafe.wire import VolumeKind

SIZE = 1 << 20


def told(device: bytes = b"sda", kind: int = VolumeKind.DISK, number: int = 0, **fields: Any) -> wire.Volume:
    """A volume in the guest's words; the whole medium if nothing else is said."""
    blank = wire.Volume(device, kind, number, 0, SIZE, b"ext4", b"filesystem", b"", b"", b"", b"")
    return blank._replace(**fields)


def partition(number: int, fstype: bytes = b"ext4", **fields: Any) -> wire.Volume:
    usage = fields.pop("usage", b"filesystem" if fstype else b"")
    return told(
        b"sda%d" % number, VolumeKind.PARTITION, number, start=4096, size=8192, fstype=fstype, usage=usage, **fields
    )


def volumes(*untrusted: wire.Volume) -> list[Volume]:
    incidents = Incidents()
    found = checked(untrusted, SIZE, incidents)
    assert incidents.count == 0
    return found


TABLE = told(fstype=b"", usage=b"", table=b"gpt")


# --- checked -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "untrusted",
    [
        told(kind=0),
        told(kind=9),
        told(device=b""),
        told(device=b"../sda"),
        told(device=b"sda,shared"),
        told(device=b"s" * 65),
        told(size=SIZE + 1),
        told(start=1),
        told(start=(1 << 64) - 1, size=(1 << 64) - 1),
        told(fstype=b"ext4,uid=0"),
        told(fstype=b"a b"),
        told(fstype=b"\xff"),
    ],
)
def test_an_impossible_volume_is_an_incident(untrusted: wire.Volume) -> None:
    incidents = Incidents()
    assert checked([untrusted], SIZE, incidents) == []
    assert incidents.count == 1


def test_a_number_that_comes_twice_is_an_incident() -> None:
    """Both would be mounted under the same name."""
    incidents = Incidents()
    found = checked([TABLE, partition(1), partition(1), told(b"sdb")], SIZE, incidents)
    assert [v.device for v in found] == ["sda", "sda1"]
    assert incidents.count == 2


def test_the_last_sector_counts_whole() -> None:
    incidents = Incidents()
    assert checked([told(size=1024)], 1000, incidents)
    assert not checked([told(size=1025)], 1000, incidents)


def test_texts_are_made_printable() -> None:
    (volume,) = volumes(told(label=b"\x1b[2Jstick \0\0", uuid=b"\n", usage=b"filesystem\x07"))
    assert volume.label == r"\x1b[2Jstick"
    assert volume.uuid == r"\n"
    assert not volume.mountable


def test_direct_reads_of_a_partition_stay_in_it() -> None:
    assert volumes(partition(1))[0].window() == Window(4096, 8192)


def test_a_mapped_device_has_no_place_on_the_medium() -> None:
    """Its size may exceed the medium's, and its addresses are not the medium's."""
    (volume,) = volumes(told(b"dm-0", VolumeKind.LOGICAL, 1, start=99, size=1 << 50))
    assert volume.window().size == 0


# --- choose --------------------------------------------------------------------------------------------------------
def chosen(found: list[Volume], number: int | None = None, fstype: str | None = None) -> list[str]:
    return [volume.device for volume in choose(found, number, fstype)]


def test_a_file_system_without_partitions() -> None:
    assert chosen(volumes(told())) == ["sda"]


def test_every_file_system_of_a_partitioned_disk() -> None:
    found = volumes(TABLE, partition(1, b"vfat"), partition(2, b"swap", usage=b"other"), partition(3))
    assert chosen(found) == ["sda1", "sda3"]


def test_logical_volumes() -> None:
    found = volumes(
        TABLE, partition(1, b"LVM2_member", usage=b"raid"), told(b"dm-0", VolumeKind.LOGICAL, 1, size=1 << 30)
    )
    assert chosen(found) == ["dm-0"]


def test_a_hybrid_image_is_its_disk_and_what_lies_beside_it() -> None:
    within, beside = partition(2, b"vfat")._replace(inside=True), partition(3, b"ext4")
    found = volumes(told(fstype=b"iso9660", table=b"dos"), within, beside)
    assert chosen(found) == ["sda", "sda3"]
    assert [volume.device for volume in parts(found, choose(found, None, None))] == ["sda2"]


def test_a_partition_that_is_the_image_is_not_told_twice() -> None:
    itself = partition(1, b"iso9660")._replace(inside=True)
    found = volumes(told(fstype=b"iso9660", table=b"dos"), itself)
    assert chosen(found) == ["sda"]
    assert parts(found, choose(found, None, None)) == []


def test_what_lies_in_no_image_is_no_part_of_one() -> None:
    found = volumes(TABLE, partition(1, b"vfat")._replace(inside=True))
    assert parts(found, choose(found, None, None)) == []


def test_a_stale_signature_before_a_partition_table_does_not_win() -> None:
    assert chosen(volumes(told(table=b"gpt"), partition(1))) == ["sda1"]


def test_the_partition_that_was_asked_for() -> None:
    found = volumes(TABLE, partition(1, b"vfat"), partition(2))
    assert chosen(found, 2) == ["sda2"]
    with pytest.raises(UserError, match="no partition 3") as failure:
        choose(found, 3, None)
    assert failure.value.code == ExitCode.SOURCE
    assert "partition 2: ext4" in failure.value.hint


LUKS = {"fstype": b"crypto_LUKS", "usage": b"crypto"}


@pytest.mark.parametrize(
    ("found", "wanted", "which"),
    [
        ([told(**LUKS)], None, ["sda"]),
        ([told(**LUKS)], 0, ["sda"]),
        ([told(**LUKS)], "0/2", ["sda"]),
        ([TABLE, partition(1), partition(2, **LUKS)], None, ["sda1", "sda2"]),
        ([TABLE, partition(1), partition(2, **LUKS)], 2, ["sda2"]),
        ([TABLE, partition(1), partition(2, **LUKS), partition(3, **LUKS)], "3/vg/root", ["sda3"]),
        ([TABLE, partition(1), partition(2, **LUKS), partition(3, **LUKS)], "vg/root", ["sda2", "sda3"]),
    ],
)
def test_what_is_encrypted_is_chosen_to_be_unlocked(
    found: list[wire.Volume], wanted: int | str | None, which: list[str]
) -> None:
    assert chosen(volumes(*found), wanted) == which


def test_an_encryption_without_a_signature_is_named() -> None:
    (forced,) = choose(volumes(told(fstype=b"", usage=b"")), None, "VeraCrypt")
    assert (forced.device, forced.encrypted, forced.mountable) == ("sda", True, False)


def test_noise_is_the_only_partition_in_which_nothing_was_found_or_the_disk() -> None:
    noise = partition(2, b"")
    for found, fstype, device in (
        ([TABLE, partition(1), noise], "VeraCrypt", "sda2"),
        ([TABLE, partition(1), noise], "crypto_LUKS", "sda"),
        ([TABLE, noise, partition(3, b"")], "VeraCrypt", "sda"),
        ([told(fstype=b"", usage=b"")], "TrueCrypt", "sda"),
    ):
        (volume,) = choose(volumes(*found), None, fstype)
        assert (volume.device, volume.fstype, volume.encrypted) == (device, fstype, True)


def test_no_number_is_looked_for_in_what_is_encrypted() -> None:
    with pytest.raises(UserError, match="no partition 7"):
        choose(volumes(TABLE, partition(2, **LUKS)), 7, None)


@pytest.mark.parametrize(
    ("wanted", "inner"),
    [(None, None), (2, None), ("2", None), ("2/0", "0"), ("2/vg/root", "vg/root"), ("root", "root")],
)
def test_what_is_wanted_of_a_plaintext(wanted: int | str | None, inner: str | None) -> None:
    found = volumes(TABLE, partition(1), partition(2, **LUKS))
    assert deeper(found, wanted, found[2]) == inner


def test_volumes_of_a_plaintext_have_names_of_their_own() -> None:
    *_, host = volumes(TABLE, partition(1), partition(2, **LUKS))
    inner = [within(host, volume) for volume in volumes(TABLE, partition(1), partition(2, label=b"DATA"))]
    assert [volume.name for volume in inner] == ["2/0", "2/1", "2/2"]
    assert [volume.title for volume in inner] == ["partition 2", "partition 2/1", "partition 2/2"]
    assert all(volume.layers[0] == "2" for volume in inner)
    assert folder_names([host, *inner]) == ["p2", "p2-2", "2-1", "2-2-DATA"]


def test_partition_0_is_the_disk() -> None:
    assert chosen(volumes(told(), partition(1)), 0) == ["sda"]


def test_the_type_that_was_asked_for() -> None:
    found = volumes(TABLE, partition(1, b"vfat"), partition(2))
    assert chosen(found, None, "vfat") == ["sda1"]
    (forced,) = choose(found, None, "minix")
    assert (forced.device, forced.fstype, forced.mountable) == ("sda", "minix", True)
    (forced,) = choose(found, 2, "minix")
    assert (forced.device, forced.fstype) == ("sda2", "minix")


@pytest.mark.parametrize(
    ("untrusted", "number", "words"),
    [
        ([told(fstype=b"", usage=b"")], None, "no file system"),
        ([TABLE, partition(1, b"")], 1, "no file system was recognised"),
        ([TABLE, partition(1, b"swap", usage=b"other")], None, "no file system"),
        ([], None, "no file system"),
    ],
)
def test_nothing_to_mount(untrusted: list[wire.Volume], number: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as failure:
        choose(volumes(*untrusted), number, None)
    assert failure.value.code == ExitCode.SOURCE


# --- folder names --------------------------------------------------------------------------------------------------
KINDS = st.sampled_from([VolumeKind.DISK, VolumeKind.PARTITION, VolumeKind.LOGICAL])
ANY = st.builds(
    lambda kind, number, label: told(b"sda", kind, number, label=label),
    KINDS,
    st.integers(0, 3),
    st.binary(max_size=80),
)


@given(st.lists(ANY, max_size=8))
def test_names_are_single_visible_and_all_different(untrusted: list[wire.Volume]) -> None:
    names = folder_names(checked(untrusted, SIZE, Incidents()))
    assert len(set(names)) == len(names)
    for name in names:
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert name.isprintable()
        assert not name.startswith(("-", "."))


@pytest.mark.parametrize(
    ("untrusted", "name"),
    [
        (partition(1, label=b"My Stick"), "p1-My_Stick"),
        (partition(2), "p2"),
        (partition(3, label=b"../../etc"), "p3-etc"),
        (told(b"dm-0", VolumeKind.LOGICAL, 1, label=b"root"), "lv1-root"),
        (told(label="Größe".encode()), "disk-Größe"),
    ],
)
def test_folder_names(untrusted: wire.Volume, name: str) -> None:
    assert folder_names(volumes(untrusted)) == [name]


@pytest.mark.parametrize(
    ("untrusted", "name"),
    [
        (told(label=b"My Stick"), "My Stick"),
        (told(label=b"..", fstype=b"vfat"), "vfat"),
        (told(fstype=b".."), "disk"),
        (told(fstype=b"."), "disk"),
        (told(fstype=b"--x"), "x"),
        (told(fstype=b""), "disk"),
        (partition(1, b"..", usage=b"filesystem"), "partition"),
    ],
)
def test_a_name_for_a_file_system_alone_is_never_a_path(untrusted: wire.Volume, name: str) -> None:
    assert label_name(volumes(untrusted)[0]) == name


def test_the_longest_label_is_a_name_that_linux_takes() -> None:
    (volume,) = volumes(partition((1 << 32) - 1, label="𠀀".encode() * 63))
    assert len(folder_names([volume])[0].encode()) <= 255
    assert len(f"{label_name(volume)}-1000".encode()) <= 255


def test_facts_hold_the_risk() -> None:
    facts = volumes(told(fstype=b"jfs"))[0].facts()
    assert (facts["risk"], facts["mountable"], facts["encrypted"]) == ("critical", True, False)
    assert "risk" not in volumes(TABLE)[0].facts()
