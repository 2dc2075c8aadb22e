"""Sessions of a disc, found in its bytes."""

import struct

from mountsafe.agent.sessions import GAP, SECTOR, last, missing_before, sessions


def session(start: int, blocks: int, counted: int | None = None, root: int = 20) -> bytes:
    """A session of so many sectors, which begins at a sector of its disc; its descriptor tells `counted` blocks."""
    data = bytearray(blocks * SECTOR)
    descriptor = bytearray(SECTOR)
    descriptor[:7] = b"\x01CD001\x01"
    struct.pack_into("<I", descriptor, 80, blocks if counted is None else counted)
    struct.pack_into("<I", descriptor, 158, start + root)
    data[16 * SECTOR : 17 * SECTOR] = descriptor
    data[root * SECTOR : root * SECTOR + 34] = struct.pack("<BBI", 34, 0, start + root) + struct.pack(
        ">I22xBB", start + root, 1, 0
    )
    return bytes(data)


def starts(disc: bytes) -> list[int]:
    return [each.start for each in sessions(reader(disc), len(disc))]


def reader(disc: bytes):  # type: ignore[no-untyped-def]
    def read(at: int, length: int) -> bytes:
        data = disc[at : at + length]
        return data if len(data) == length else b""

    return read


def gap(sectors: int) -> bytes:
    return bytes(sectors * SECTOR)


def test_each_session_lies_behind_the_one_before() -> None:
    disc = session(0, 100) + gap(11_400) + session(11_500, 30) + gap(6_900) + session(18_430, 200)
    assert starts(disc) == [0, 11_500, 18_430]
    found = last(reader(disc), len(disc))
    assert found is not None
    assert (found.start, found.earlier) == (18_430, 2)


def test_a_writer_that_counts_blocks_from_the_beginning_hides_no_session() -> None:
    disc = session(0, 100) + gap(50) + session(150, 30, counted=180) + session(180, 40, counted=220)
    assert starts(disc) == [0, 150, 180]


def test_a_larger_session_behind_a_small_one() -> None:
    disc = session(0, 40) + session(40, 300) + session(340, 30)
    assert starts(disc) == [0, 40, 340]


def test_an_image_in_a_file_behind_another_is_no_session() -> None:
    """Its sector numbers count from itself."""
    assert starts(session(0, 100) + gap(50) + session(0, 60)) == [0]


def test_a_descriptor_without_its_folder_is_no_session() -> None:
    broken = bytearray(session(100, 60))
    broken[20 * SECTOR + 2] ^= 1
    assert starts(session(0, 100) + bytes(broken)) == [0]


def test_what_lies_too_far_away_is_none() -> None:
    assert starts(session(0, 100) + gap(GAP) + session(100 + GAP, 30)) == [0]


def test_a_disc_that_begins_with_music() -> None:
    disc = gap(5_000) + session(5_000, 30)
    assert starts(disc) == [5_000]


def test_what_is_no_disc_has_none() -> None:
    assert starts(gap(64)) == []
    assert starts(b"short") == []


def test_of_a_session_alone_is_known_what_is_missing() -> None:
    alone = session(5_000, 30)
    assert missing_before(reader(alone), len(alone)) == 5_000
    whole = session(0, 30)
    assert missing_before(reader(whole), len(whole)) == 0
