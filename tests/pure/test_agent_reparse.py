"""Reparse points: what ntfs-3g shows of them, told as what they are, whatever their data say."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.agent.reparse import MOUNT_POINT, SYMLINK, told

WHERE = b"/run/mountsafe/fs-1"
UNKNOWN = b"unsupported reparse tag 0x"


def link(tag: int, follow: str, show: str) -> bytes:
    """The data of a symbolic link or a junction, as Windows writes them."""
    first, second = follow.encode("utf-16-le"), show.encode("utf-16-le")
    gap = b"\0\0" if tag == MOUNT_POINT else b""
    body = struct.pack("<HHHH", 0, len(first), len(first) + len(gap), len(second))
    body += (b"" if tag == MOUNT_POINT else bytes(4)) + first + gap + second + gap
    return struct.pack("<IHH", tag, len(body), 0) + body


@pytest.mark.parametrize(
    ("shown", "data", "depth", "target"),
    [
        (b"Users/me", b"", 3, b"Users/me"),  # relative already, a WSL link for example
        (WHERE + b"/Users/me", b"", 0, b"Users/me"),
        (WHERE + b"/Users/me", b"", 2, b"../../Users/me"),
        (WHERE, b"", 1, b"../"),
        (WHERE, b"", 0, b"."),
        (WHERE + b"0/Users", b"", 1, WHERE + b"0/Users"),  # somewhere else, and only alike
        (WHERE + b"/.NTFS-3G/C:/x", link(SYMLINK, "\\??\\C:\\x", "C:\\x"), 1, b"C:\\x"),
        (WHERE + b"/.NTFS-3G/Volume{1}", link(MOUNT_POINT, "\\??\\Volume{1}\\", ""), 1, b"Volume{1}\\"),
        (WHERE + b"/.NTFS-3G/C:/x", b"", 1, b"C:/x"),
        (UNKNOWN + b"a000000c", link(SYMLINK, "\\??\\UNC\\nas\\a", "\\\\nas\\a"), 1, b"\\\\nas\\a"),
        (UNKNOWN + b"80000017", struct.pack("<IHHIIII", 0x80000017, 16, 0, 1, 2, 1, 0), 1, None),
        (UNKNOWN + b"9000701a", b"", 1, None),
        (UNKNOWN + b"a000000c", link(SYMLINK, "", ""), 1, None),
    ],
)
def test_what_it_is(shown: bytes, data: bytes, depth: int, target: bytes | None) -> None:
    assert told(shown, data, WHERE, depth) == target


@given(st.binary(max_size=64), st.sampled_from([SYMLINK, MOUNT_POINT, 0x80000017]), st.booleans())
def test_no_data_are_too_bad(rest: bytes, tag: int, tagged: bool) -> None:
    data = struct.pack("<I", tag) + rest if tagged else rest
    target = told(UNKNOWN + b"00000000", data, WHERE, 1)
    assert target is None or (target and len(target) <= 3 * len(data) and b"\0" not in target)


def test_names_that_end_after_the_data_are_not_read() -> None:
    data = bytearray(link(SYMLINK, "C:\\x", "C:\\x"))
    struct.pack_into("<HHHH", data, 8, 0, 400, 0, 400)
    assert told(UNKNOWN + b"a000000c", bytes(data), WHERE, 1) is None
