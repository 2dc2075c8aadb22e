"""What a guest says of last resorts: bits that are known, and words of the host."""

import pytest

from mountsafe import wire
from mountsafe.incidents import Incidents
from mountsafe.medium.resorts import RESORTS, codes, words
from mountsafe.medium.volumes import checked

SIZE = 1 << 20
DISK = wire.Volume(b"sdc", wire.VolumeKind.DISK, 0, 0, SIZE, b"vfat", b"filesystem", b"", b"", b"", b"")


@pytest.mark.parametrize("bit", RESORTS)
def test_each_is_said(bit: int) -> None:
    (volume,) = checked([DISK._replace(resorts=bit)], SIZE, Incidents())
    assert volume.condition == words(bit)[0]
    assert volume.facts()["resorts"] == codes(bit)


def test_every_bit_has_words() -> None:
    assert sum(RESORTS) == wire.Resort.ALL


def test_an_unknown_one_is_refused() -> None:
    incidents = Incidents()
    assert checked([DISK._replace(resorts=1 << 15)], SIZE, incidents) == []
    assert incidents.count == 1


@pytest.mark.parametrize(("claimed", "words_"), [(SIZE, False), (SIZE + 1, True), (1 << 63, False), (0, False)])
def test_what_is_cut_off_is_said_in_numbers_that_can_be(claimed: int, words_: bool) -> None:
    (volume,) = checked([DISK._replace(claimed=claimed)], SIZE, Incidents())
    assert (f"the image ends before its file system: {SIZE} of {claimed} bytes" == volume.condition) == words_
    assert bool(volume.condition) == words_
