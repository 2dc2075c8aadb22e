"""Layers as the guest tells them: a graph that cannot be is refused, and no table leads out of what it lies in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import wire
from mountsafe.errors import ExitCode, GuestFault, UserError
from mountsafe.incidents import Incidents
from mountsafe.limits import MAX_EXTENTS_PER_FILE
from mountsafe.medium.choosing import choose, folder_names, left_out
from mountsafe.medium.extents import Window, plan
from mountsafe.medium.volumes import MAX_DEPTH, Volume, checked
from mountsafe.wire import Extent, ExtentKind, Place, Trouble, VolumeKind
from tests.pure.test_volumes import SIZE, TABLE, partition, told

PV = partition(1, b"LVM2_member", usage=b"raid")._replace(parents=(0,))  # 8192 bytes from 4096 on


def logical(number: int = 1, name: bytes = b"vg/data", **fields: object) -> wire.Volume:
    blank = told(b"lv%d" % number, VolumeKind.LOGICAL, number, size=8192, name=name, parents=(1,))
    return blank._replace(**fields)


def array(number: int = 1, name: bytes = b"nas:2", **fields: object) -> wire.Volume:
    return logical(number, name, **{"device": b"md%d" % number, "kind": VolumeKind.ARRAY} | fields)


def volumes(*untrusted: wire.Volume, wrong: int = 0) -> list[Volume]:
    incidents = Incidents()
    found = checked(untrusted, SIZE, incidents)
    assert incidents.count == wrong
    return found


# --- the graph -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "untrusted",
    [
        logical(parents=(2,)),  # itself
        logical(parents=(3,)),  # what comes later: a circle
        logical(parents=(1, 0xFFFF)),
        told(b"sdb", number=1, parents=(0,)),
        partition(2)._replace(parents=(0, 1)),
        partition(2)._replace(parents=(1,), start=0, size=8193),
        logical(trouble=9),
    ],
)
def test_a_graph_that_cannot_be_is_an_incident(untrusted: wire.Volume) -> None:
    found = volumes(TABLE, PV, untrusted, wrong=1)
    assert [v.device for v in found] == ["sda", "sda1"]


def test_what_lies_in_a_volume_that_was_refused_is_refused() -> None:
    found = volumes(TABLE, PV, logical(trouble=9), logical(2, parents=(2,)), wrong=2)
    assert len(found) == 2


def test_layers_without_end_are_cut() -> None:
    tower = [logical(number, b"v%d" % number, parents=(number,)) for number in range(1, 101)]
    found = volumes(TABLE, PV, *tower, wrong=100 - MAX_DEPTH)
    assert max(len(v.layers) for v in found) == MAX_DEPTH


def test_a_thousand_children_are_not_decoded() -> None:
    with pytest.raises(wire.WireError):
        wire.unpack_volumes(wire.pack_volumes([logical(number) for number in range(1000)]))
    with pytest.raises(wire.WireError):
        wire.unpack_volumes(wire.pack_volumes([logical(parents=tuple(range(200)))]))
    with pytest.raises(wire.WireError):
        wire.unpack_volumes(wire.pack_volumes([logical(places=(Place(0, 4096, 1),) * 1000)]))
    with pytest.raises(wire.WireError):
        wire.unpack_volumes(wire.pack_volumes([logical(places=(Place(0, 4096, 1),) * 100)] * 100))


def test_layers_are_named_from_the_disk_inwards() -> None:
    second = partition(2)._replace(parents=(0,))
    found = volumes(
        TABLE,
        PV,
        second,
        array(parents=(1, 2)),
        logical(parents=(3,)),
        partition(1)._replace(parents=(4,), start=0, device=b"lv1p1"),
    )
    assert found[5].layers == ("1+2", "nas:2", "vg/data")
    assert found[5].name == "vg/data/1"


# --- places --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "places",
    [
        [(0, 4095, 512)],  # before the physical volume
        [(0, 4096, 8193)],  # beyond its end
        [(0, 0, 512)],
        [(0, SIZE, 512)],
        [(0, (1 << 64) - 512, 1024)],
        [(512, 4096, 512), (0, 5120, 512)],  # out of order
        [(0, 4096, 512), (511, 5120, 512)],  # overlapping
        [(0, 4096, 0)],
        [(8000, 4096, 512)],  # beyond the volume's end
    ],
)
def test_a_table_that_leads_elsewhere_is_an_incident(places: list[tuple[int, int, int]]) -> None:
    assert len(volumes(TABLE, PV, logical(places=tuple(Place(*place) for place in places)), wrong=1)) == 2


ANYWHERE = st.integers(0, SIZE + 512) | st.just((1 << 64) - 1)
PLACE = st.builds(Place, st.integers(0, 9000), ANYWHERE, st.integers(0, 9000))
PLACES = st.lists(PLACE, max_size=3).map(sorted).map(tuple)
WHOLE = [Extent(0, 0, 8192, ExtentKind.DATA)]  # a file that is all of the volume
EXTENTS = st.just(WHOLE) | st.lists(
    st.builds(Extent, st.integers(0, 9000), st.integers(0, 9000), st.integers(1, 9000), st.just(ExtentKind.DATA)),
    max_size=3,
)


@given(PLACES, EXTENTS, st.integers(0, 9000), st.integers(0, 9000))
def test_no_table_leads_out_of_what_the_volume_lies_in(
    places: tuple[Place, ...], told_extents: list[Extent], offset: int, length: int
) -> None:
    for volume in checked([TABLE, PV, logical(places=places)], SIZE, Incidents())[2:]:
        try:
            found = plan(told_extents, volume.window())
        except GuestFault:
            continue
        for piece in found.pieces(offset, length):
            assert piece.source != 1 or 4096 <= piece.physical <= piece.physical + piece.length <= 4096 + 8192


def test_a_read_is_mapped_through_the_table() -> None:
    window = Window(0, 300, (Place(0, 5000, 100), Place(100, 9000, 50), Place(200, 7000, 100)))
    found = plan([Extent(1000, 50, 200, ExtentKind.DATA)], window)
    assert [tuple(piece) for piece in found.pieces(1000, 200)] == [
        (1000, 50, 1, 5050),
        (1050, 50, 1, 9000),
        (1100, 50, 0, 0),
        (1150, 50, 1, 7000),
    ]


def test_a_table_makes_no_more_runs_than_a_file_may_have() -> None:
    """Each extent may lie over all of the volume, and be cut by each of its places."""
    places = tuple(Place(2 * number, 2 * number, 1) for number in range(wire.MAX_PLACES))
    count = MAX_EXTENTS_PER_FILE // wire.MAX_PLACES + 1
    extents = [Extent(number << 10, 0, 2 * wire.MAX_PLACES, ExtentKind.DATA) for number in range(count)]
    with pytest.raises(GuestFault, match="runs"):
        plan(extents, Window(0, 2 * wire.MAX_PLACES, places))


def test_a_volume_without_a_table_is_never_read_directly() -> None:
    assert volumes(TABLE, PV, logical())[2].window() == Window(0, 0)


# --- names ---------------------------------------------------------------------------------------------------------
def test_names_are_chosen_by() -> None:
    found = volumes(TABLE, PV, logical(1, b"vg/data"), logical(2, b"vg/root"), array(1, b"nas:music"))
    for wanted, device in [("vg/data", "lv1"), ("root", "lv2"), ("music", "md1"), ("1", "sda1"), (0, "sda")]:
        assert [v.device for v in choose(found, wanted, "ext4")] == [device]
    with pytest.raises(UserError, match="no volume tape") as failure:
        choose(found, "tape", None)
    assert "volume vg/data: ext4" in failure.value.hint


def test_a_number_that_no_partition_of_the_disk_has_may_be_an_inner_ones() -> None:
    inner = partition(3)._replace(parents=(2,), start=0, device=b"lv1p3")
    found = volumes(TABLE, PV, logical(), inner)
    assert [v.device for v in choose(found, 3, None)] == ["lv1p3"]


def test_a_short_name_that_two_have_is_none() -> None:
    found = volumes(TABLE, PV, logical(1, b"a/root"), logical(2, b"b/root"))
    with pytest.raises(UserError, match="no volume root"):
        choose(found, "root", None)


def test_names_are_all_different_and_no_partitions_number() -> None:
    found = volumes(TABLE, PV, logical(1, b"vg/x"), logical(2, b"vg/x"), array(1, b"1"), array(2, b""))
    assert [v.name for v in found] == ["0", "1", "vg/x", "vg/x~2", "md1-1", "md2"]


def test_a_name_is_escaped_and_bounded() -> None:
    (volume,) = volumes(TABLE, PV, logical(name=b"\x1b[2J" + b"x" * 250))[2:]
    assert volume.name.startswith(r"\x1b[2J")
    assert len(volume.name) <= 124
    assert len(folder_names([volume])[0]) <= 255


def test_folders_are_named_after_volumes() -> None:
    found = volumes(TABLE, PV, logical(1, b"vg/data", label=b"My"), array(1, b"nas:2"), logical(2, b"../.."))
    assert folder_names(found[2:]) == ["vg-data-My", "nas-2", "lv2"]


# --- what is missing -----------------------------------------------------------------------------------------------
def test_degraded_is_said_of_it_and_of_what_lies_in_it() -> None:
    found = volumes(TABLE, PV, array(present=1, wanted=2), logical(parents=(2,)))
    assert [v.condition for v in found[2:]] == ["degraded: 1 of 2 members"] * 2
    assert "(degraded: 1 of 2 members)" in found[3].describe()


def test_what_is_incomplete_is_told_and_not_mounted() -> None:
    absent = array(present=1, wanted=3, trouble=Trouble.INCOMPLETE, fstype=b"", usage=b"")
    found = volumes(TABLE, PV, absent)
    for wanted in (None, "nas:2"):
        with pytest.raises(UserError, match="incomplete: 1 of 3 members") as failure:
            choose(found, wanted, None)
        assert failure.value.code == ExitCode.SOURCE
    assert [v.name for v in left_out(found)] == ["nas:2"]


def test_it_is_not_taken_for_a_file_system_whatever_is_said_of_it() -> None:
    absent = array(present=1, wanted=3, trouble=Trouble.INCOMPLETE)
    with pytest.raises(UserError):
        choose(volumes(TABLE, PV, absent), None, None)
    assert [v.device for v in choose(volumes(TABLE, PV, absent, partition(2)), None, None)] == ["sda2"]
