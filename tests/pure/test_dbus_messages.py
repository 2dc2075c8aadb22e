"""What anybody may write on a bus: passed over by its header where it is too large, and never a fault of ours."""

import struct

import pytest
from jeepney import DBusAddress, HeaderFields, Message, new_method_call
from jeepney.low_level import MessageType

from mountsafe.daemon.address import NAME, PATH
from mountsafe.system.messages import MAX_BODY, Heard, Malformed, Reader

WHERE = DBusAddress(PATH, NAME, NAME)
SMALL = new_method_call(WHERE, "Open", "s", ("sdb",)).serialise(serial=7)


def heard(data: bytes, chunk: int) -> list[Heard]:
    reader = Reader()
    return [each for start in range(0, len(data), chunk) for each in reader.feed(data[start : start + chunk])]


@pytest.mark.parametrize("chunk", [1, 7, 4096, 1 << 20])
def test_what_is_too_large_is_passed_over_and_the_next_is_heard(chunk: int) -> None:
    large = new_method_call(WHERE, "Open", "s", ("A" * MAX_BODY,)).serialise(serial=8)
    wide = new_method_call(DBusAddress("/" + "a" * 10_000, NAME, NAME), "Open").serialise(serial=9)
    found = heard(SMALL + large + wide + SMALL, chunk)
    assert [(each.header.serial, each.untrusted_bytes is None) for each in found] == [
        (7, False),
        (8, True),
        (7, False),
    ]
    assert found[0].body("s") == ("sdb",)
    with pytest.raises(Malformed):
        found[1].body("s")


def test_a_body_is_parsed_by_its_expected_signature_alone() -> None:
    nested = new_method_call(WHERE, "Open", "v", (("v", ("s", "sdb")),)).serialise(serial=7)
    (found,) = heard(nested, 4096)
    with pytest.raises(Malformed):
        found.body("s")


@pytest.mark.parametrize("place", range(len(SMALL)))
def test_broken_messages_are_malformed_and_nothing_else(place: int) -> None:
    for value in (0, 1, 5, 0x7F, 0xFF):
        broken = bytearray(SMALL)
        broken[place] = value
        try:
            for each in heard(bytes(broken) + SMALL, 4096):
                each.body("s")
        except Malformed:
            continue


def test_a_message_of_an_unknown_kind_is_lost_and_the_next_is_heard() -> None:
    strange = bytearray(SMALL)
    strange[1] = 5
    assert len(heard(bytes(strange) + SMALL, 4096)) == 1


def test_a_stream_of_something_else_ends() -> None:
    with pytest.raises(Malformed):
        heard(b"HTTP/1.1 200 OK\r\n", 4096)


def test_a_header_of_lies_about_its_length_is_no_fault() -> None:
    lying = bytearray(SMALL)
    lying[12:16] = struct.pack("<I", 0xFFFFFFFF)
    assert heard(bytes(lying), 4096) == []


def test_names_of_a_wrong_type_are_lost() -> None:
    message = Message(new_method_call(WHERE, "Open").header, ())
    message.header.message_type = MessageType.method_call
    raw = message.serialise(serial=3).replace(b"\x03\x01s\x00", b"\x03\x01u\x00")
    assert HeaderFields.member not in [field for each in heard(raw, 4096) for field in each.header.fields]
