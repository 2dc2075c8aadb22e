"""Every message of the wire survives the way there and back; every other sequence of bytes is a WireError."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import changes, wire

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.binary(max_size=wire.MAX_TEXT)
PATH = st.binary(max_size=2000)
EXTENT = st.builds(wire.Extent, U64, U64, U64, U8)
ENTRY = st.builds(
    wire.Entry,
    name=st.binary(max_size=wire.MAX_NAME),
    mode=U16,
    nlink=U32,
    uid=U32,
    gid=U32,
    ino=U64,
    size=U64,
    blocks=U64,
    atime=I64,
    mtime=I64,
    ctime=I64,
    target=st.binary(max_size=300),
)
PLACES = st.lists(st.builds(wire.Place, U64, U64, U64), max_size=3).map(tuple)
LAYERS = (TEXT, st.lists(U16, max_size=3).map(tuple), U16, U16, U8, PLACES, U16, U64, U16, st.booleans())
VOLUME = st.builds(wire.Volume, TEXT, U8, U32, U64, U64, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, *LAYERS)
XATTR = st.tuples(TEXT, st.binary(max_size=300))


def page(cursor: int, entries: list[wire.Entry]) -> bytes:
    return wire.pack_page(cursor, [wire.pack_entry(each.name, each[1:-1], each.target) for each in entries])


def layout(files: list[tuple[list[wire.Extent], bool]]) -> bytes:
    return wire.pack_layout([wire.pack_file_layout(*each) for each in files])


CHANGE = st.builds(
    changes.Change,
    act=st.sampled_from(sorted(changes.Act.ALL)),
    path=PATH,
    other=PATH,
    handle=U64,
    flags=st.integers(0, changes.Flag.ALL),
    mode=U32,
    uid=U32,
    gid=U32,
    size=U64,
    atime=I64,
    mtime=I64,
    value=st.binary(max_size=300),
)


def changed(*entries: wire.Entry) -> bytes:
    return changes.pack_changed([wire.pack_entry(each.name, each[1:-1], each.target) for each in entries])


# Each message: what it is made of, how it is packed from a tuple of that, how it is unpacked to the same tuple.
Message = tuple[st.SearchStrategy[Any], Callable[..., bytes], Callable[[bytes], Any]]
MESSAGES: dict[str, Message] = {
    "check": (st.tuples(TEXT, TEXT, U32, st.booleans()), wire.pack_check, wire.unpack_check),
    "checked": (
        st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(-(1 << 31), (1 << 31) - 1), PATH),
        lambda *told: wire.pack_checked(wire.Checked(*told)),
        wire.unpack_checked,
    ),
    "hello request": (st.tuples(U64), wire.pack_hello_request, lambda b: (wire.unpack_hello_request(b),)),
    "hello": (st.tuples(U16, TEXT), wire.pack_hello, wire.unpack_hello),
    "error": (st.tuples(U16, st.binary(max_size=wire.MAX_MESSAGE)), wire.pack_error, wire.unpack_error),
    "volumes": (
        st.tuples(st.lists(VOLUME, max_size=4)),
        wire.pack_volumes,
        lambda b: (wire.unpack_volumes(b),),
    ),
    "mount": (
        st.tuples(
            *(TEXT, TEXT, st.binary(max_size=400), st.lists(TEXT, max_size=wire.MAX_OPTIONS).map(tuple)),
            *(st.booleans(), st.booleans()),
        ),
        lambda *asked: wire.pack_mount(wire.MountRequest(*asked)),
        wire.unpack_mount,
    ),
    "mounted": (
        st.tuples(st.builds(wire.Mounted, TEXT, U8, st.booleans(), ENTRY, U16)),
        wire.pack_mounted,
        lambda b: (wire.unpack_mounted(b),),
    ),
    "list": (st.tuples(PATH, U64), wire.pack_list, wire.unpack_list),
    "page": (st.tuples(U64, st.lists(ENTRY, max_size=4)), page, wire.unpack_page),
    "read": (st.tuples(PATH, U64, st.integers(0, wire.MAX_READ)), wire.pack_read, wire.unpack_read),
    "extents request": (st.tuples(PATH, U64), wire.pack_extents_request, wire.unpack_extents_request),
    "extents": (
        st.tuples(st.lists(EXTENT, max_size=20).map(tuple), U64),
        lambda extents, following: wire.pack_extents(list(extents), following),
        wire.unpack_extents,
    ),
    "layout request": (
        st.tuples(PATH, st.lists(TEXT, max_size=5)),
        wire.pack_layout_request,
        wire.unpack_layout_request,
    ),
    "layout": (
        st.tuples(st.lists(st.tuples(st.lists(EXTENT, max_size=3).map(tuple), st.booleans()), max_size=5)),
        layout,
        lambda b: (wire.unpack_layout(b),),
    ),
    "xattrs": (st.tuples(st.lists(XATTR, max_size=4)), wire.pack_xattrs, lambda b: (wire.unpack_xattrs(b),)),
    "statfs": (
        st.tuples(st.builds(wire.Statfs, *[U64] * 8)),
        wire.pack_statfs,
        lambda b: (wire.unpack_statfs(b),),
    ),
    "change": (st.tuples(CHANGE), changes.pack_change, lambda b: (changes.unpack_change(b),)),
    "changed": (st.lists(ENTRY, max_size=changes.MAX_ENTRIES).map(tuple), changed, changes.unpack_changed),
    "write": (st.tuples(U64, U64, st.binary(max_size=300)), changes.pack_write, changes.unpack_write),
    "read of a handle": (
        st.tuples(U64, U64, st.integers(0, wire.MAX_READ)),
        changes.pack_read,
        changes.unpack_read,
    ),
    "batch": (
        st.tuples(st.lists(st.tuples(st.sampled_from([wire.Kind.CHANGE, wire.Kind.WRITE]), st.binary(max_size=99)))),
        changes.pack_batch,
        lambda b: (changes.unpack_batch(b),),
    ),
    "results": (
        st.tuples(st.lists(st.builds(changes.Result, U16, st.binary(max_size=99)))),
        changes.pack_results,
        lambda b: (changes.unpack_results(b),),
    ),
}
# The last field of these has no length of its own: it is the rest of the body, after so many bytes.
OPEN_ENDED = {"hello": 2, "error": 2, "write": 16}

each_message = pytest.mark.parametrize("name", MESSAGES)


@each_message
@given(data=st.data())
def test_what_is_packed_is_what_is_unpacked(name: str, data: st.DataObject) -> None:
    values, pack, unpack = MESSAGES[name]
    message = data.draw(values)
    assert tuple(unpack(pack(*message))) == tuple(message)


@each_message
@given(data=st.data())
def test_a_body_that_is_cut_anywhere_is_an_error(name: str, data: st.DataObject) -> None:
    values, pack, unpack = MESSAGES[name]
    body = pack(*data.draw(values))
    fixed = OPEN_ENDED.get(name, len(body))
    cut = data.draw(st.integers(0, fixed - 1))
    with pytest.raises(wire.WireError):
        unpack(body[:cut])


@each_message
@given(data=st.data(), more=st.binary(min_size=1, max_size=5))
def test_bytes_after_the_end_are_an_error(name: str, data: st.DataObject, more: bytes) -> None:
    values, pack, unpack = MESSAGES[name]
    if name not in OPEN_ENDED:
        body = pack(*data.draw(values))
        with pytest.raises(wire.WireError):
            unpack(body + more)


@each_message
@given(body=st.binary(max_size=400))
def test_noise_is_a_message_or_an_error_and_nothing_else(name: str, body: bytes) -> None:
    _, _, unpack = MESSAGES[name]
    with suppress(wire.WireError):
        unpack(body)


def entry(**fields: Any) -> wire.Entry:
    blank = wire.Entry(b"name", 0o100644, 1, 0, 0, 12, 0, 0, 0, 0, 0, b"")
    return blank._replace(**fields)


def too_many_entries() -> bytes:
    return wire.reading._PAGE.pack(0, wire.MAX_PAGE_ENTRIES + 1)


def too_many_volumes() -> bytes:
    blank = wire.Volume(b"", 0, 0, 0, 0, b"", b"", b"", b"", b"", b"")
    return wire.pack_volumes([blank] * (wire.MAX_VOLUMES + 1))


@pytest.mark.parametrize(
    ("unpack", "body"),
    [
        (wire.unpack_page, page(0, [entry(name=b"n" * (wire.MAX_NAME + 1))])),
        (wire.unpack_page, page(0, [entry(target=b"t" * (wire.MAX_TARGET + 1))])),
        (wire.unpack_page, too_many_entries()),
        (wire.unpack_volumes, too_many_volumes()),
        (wire.unpack_extents, wire.pack_extents([wire.Extent(0, 0, 1, 1)] * (wire.MAX_EXTENTS + 1), 0)),
        (wire.unpack_xattrs, (wire.MAX_XATTRS + 1).to_bytes(2, "big")),
        (wire.unpack_xattrs, b"\0\1" + b"\0\1a" + (wire.MAX_XATTR_VALUE + 1).to_bytes(4, "big")),
        (wire.unpack_layout_request, wire.pack_layout_request(b"", [b"n"] * (wire.MAX_LAYOUT + 1))),
        (wire.unpack_layout, layout([([], False)] * (wire.MAX_LAYOUT + 1))),
        (wire.unpack_layout, layout([([wire.Extent(0, 0, 1, 1)] * (wire.MAX_FILE_EXTENTS + 1), False)])),
        (wire.unpack_read, wire.pack_read(b"file", 0, wire.MAX_READ + 1)),
        (wire.unpack_read, wire.pack_read(b"p" * (wire.MAX_PATH + 1), 0, 1)),
        (wire.unpack_list, wire.pack_list(b"p" * (wire.MAX_PATH + 1), 0)),
        (wire.unpack_hello, wire.pack_hello(1, b"r" * (wire.MAX_TEXT + 1))),
        (wire.unpack_error, b"\0\1" + b"w" * (wire.MAX_MESSAGE + 1)),
        (wire.unpack_mount, wire.pack_mount(wire.MountRequest(b"d" * (wire.MAX_TEXT + 1), b"", b""))),
        (wire.unpack_mount, wire.pack_mount(wire.MountRequest(b"sda", b"vfat", b"z" * (wire.MAX_ZONE + 1)))),
        (changes.unpack_change, changes.pack_change(changes.Change(changes.Act.MKDIR, b"p" * (wire.MAX_PATH + 1)))),
        (changes.unpack_change, changes.pack_change(changes.Change(1, b"", b"o" * (wire.MAX_PATH + 1)))),
        (changes.unpack_change, changes.pack_change(changes.Change(1, value=bytes(changes.MAX_VALUE + 1)))),
        (changes.unpack_change, changes.pack_change(changes.Change(max(changes.Act.ALL) + 1))),
        (changes.unpack_change, changes.pack_change(changes.Change(1, flags=changes.Flag.ALL + 1))),
        (changes.unpack_changed, changed(*[entry()] * (changes.MAX_ENTRIES + 1))),
        (changes.unpack_write, changes.pack_write(1, 0, bytes(changes.MAX_WRITE + 1))),
        (changes.unpack_read, changes.pack_read(1, 0, wire.MAX_READ + 1)),
    ],
)
def test_every_bound_holds(unpack: Callable[[bytes], Any], body: bytes) -> None:
    with pytest.raises(wire.WireError):
        unpack(body)


@given(st.lists(st.tuples(TEXT, st.binary(max_size=wire.MAX_XATTR_VALUE)), max_size=6), st.integers(0, 40))
def test_extended_attributes_always_fit_a_frame(pairs: list[tuple[bytes, bytes]], times: int) -> None:
    pairs = [(b"user.big", bytes(wire.MAX_XATTR_VALUE))] * times + pairs
    body = wire.pack_xattrs(pairs)
    assert len(body) <= wire.MAX_BODY
    unpacked = wire.unpack_xattrs(body)
    assert unpacked == pairs[: len(unpacked)]


def test_a_full_page_fits_a_frame() -> None:
    largest = entry(name=b"n" * wire.MAX_NAME, target=b"t" * wire.MAX_TARGET)
    body = page(1, [largest] * wire.MAX_PAGE_ENTRIES)
    assert len(body) <= wire.MAX_BODY
    assert wire.unpack_page(body) == (1, [largest] * wire.MAX_PAGE_ENTRIES)


def test_the_largest_changes_fit_a_frame() -> None:
    path = b"p" * wire.MAX_PATH
    change = changes.Change(changes.Act.SETXATTR, path, path, value=bytes(changes.MAX_VALUE))
    for body in (changes.pack_change(change), changes.pack_write(1, 0, bytes(changes.MAX_WRITE))):
        assert wire.frame(1, wire.Kind.CHANGE, body)


def test_a_batch_has_bounds() -> None:
    empty = changes.Result(0, b"")
    assert len(changes.unpack_batch(changes.pack_batch([(wire.Kind.WRITE, b"")] * changes.MAX_BATCH)))
    assert len(changes.unpack_results(changes.pack_results([empty] * changes.MAX_BATCH)))
    for unpack, body in (
        (changes.unpack_batch, changes.pack_batch([(wire.Kind.WRITE, b"")] * (changes.MAX_BATCH + 1))),
        (changes.unpack_batch, changes.pack_batch([(wire.Kind.SYNC, b"")])),
        (changes.unpack_results, changes.pack_results([empty] * (changes.MAX_BATCH + 1))),
    ):
        with pytest.raises(wire.WireError):
            unpack(body)


def test_the_longest_answers_to_a_batch_fit_a_frame() -> None:
    longest = wire.pack_entry(b"n" * wire.MAX_NAME, (0,) * 10, b"t" * wire.MAX_TARGET)
    above = wire.pack_entry(b"n" * wire.MAX_NAME, (0,) * 10, b"")
    result = changes.Result(0, changes.pack_changed([longest, above, above]))
    refused = changes.Result(5, b"w" * wire.MAX_MESSAGE)
    for each in (result, refused):
        assert wire.frame(1, wire.Kind.BATCH, changes.pack_results([each] * changes.MAX_BATCH))


def test_long_words_of_an_error_are_cut() -> None:
    assert wire.unpack_error(wire.pack_error(5, b"w" * 5000)) == (5, b"w" * wire.MAX_MESSAGE)
