"""What is asked until a file system is mounted, packed and unpacked: HELLO, PROBE, MOUNT and CHECK; and ERROR."""

import struct

from mountsafe.wire.bounds import (
    MAX_ALL_PLACES,
    MAX_BODY,
    MAX_CHECK_WORDS,
    MAX_MESSAGE,
    MAX_OPTIONS,
    MAX_PARENTS,
    MAX_PLACES,
    MAX_TEXT,
    MAX_VOLUMES,
    MAX_ZONE,
)
from mountsafe.wire.facts import Checked, CheckOutcome, Mounted, MountRequest, MountState, Place, Volume
from mountsafe.wire.frames import U16, Body, WireError, pack_text, unpack_text
from mountsafe.wire.reading import pack_entry, unpack_entries

_VOLUME = struct.Struct(">BIQQHHBBHHQH?")
_PLACE = struct.Struct(">QQQ")
_MOUNTED = struct.Struct(">BBH")
_CHECK = struct.Struct(">I?")
_CHECKED = struct.Struct(">BBiI")


# --- HELLO, ERROR --------------------------------------------------------------------------------------------------
_TIME = struct.Struct(">Q")


def pack_hello_request(now: int) -> bytes:
    """The host's first word: the time, in ns since the epoch."""
    return _TIME.pack(now)


def unpack_hello_request(body_bytes: bytes) -> int:
    """Return the time."""
    body = Body(body_bytes)
    (now,) = body.unpack(_TIME)
    body.end()
    return now


def pack_hello(version: int, release: bytes) -> bytes:
    """The guest's answer to HELLO: protocol version and kernel release."""
    return U16.pack(version) + release


def unpack_hello(untrusted_body: bytes) -> tuple[int, bytes]:
    """Return (version, kernel release)."""
    body = Body(untrusted_body)
    return body.unpack(U16)[0], body.rest(MAX_TEXT)


def pack_error(errno: int, message: bytes) -> bytes:
    """An answer that says why not: errno and words, cut to `MAX_MESSAGE`."""
    return U16.pack(errno & 0xFFFF) + message[:MAX_MESSAGE]


def unpack_error(untrusted_body: bytes) -> tuple[int, bytes]:
    """Return (errno, message)."""
    body = Body(untrusted_body)
    return body.unpack(U16)[0], body.rest(MAX_MESSAGE)


# --- PROBE ---------------------------------------------------------------------------------------------------------
def pack_volumes(volumes: list[Volume]) -> bytes:
    """The answer to PROBE."""
    parts = [U16.pack(len(volumes))]
    for v in volumes:
        counts = (v.present, v.wanted, v.trouble, len(v.parents), len(v.places), v.resorts, v.claimed, v.sector)
        parts.append(_VOLUME.pack(v.kind, v.number, v.start, v.size, *counts, v.inside))
        parts.append(pack_text(v.device, v.fstype, v.usage, v.label, v.uuid, v.table, v.part_name, v.name))
        parts += [U16.pack(parent) for parent in v.parents]
        parts += [_PLACE.pack(*place) for place in v.places]
    return b"".join(parts)


def unpack_volumes(untrusted_body: bytes) -> list[Volume]:
    """Return the volumes of an answer to PROBE."""
    body = Body(untrusted_body)
    (count,) = body.unpack(U16)
    if count > MAX_VOLUMES:
        raise WireError(f"{count} volumes")
    volumes = []
    all_places = 0
    for _ in range(count):
        kind, number, start, size, present, wanted, trouble, *counts = body.unpack(_VOLUME)
        parent_count, place_count, resorts, claimed, sector, inside = counts
        all_places += place_count
        if parent_count > MAX_PARENTS or place_count > MAX_PLACES or all_places > MAX_ALL_PLACES:
            raise WireError(f"a volume of {parent_count} others in {place_count} places")
        *texts, name = (unpack_text(body) for _ in range(8))
        device, fstype, usage, label, uuid, table, part_name = texts
        parents = tuple(body.unpack(U16)[0] for _ in range(parent_count))
        places = tuple(Place._make(body.unpack(_PLACE)) for _ in range(place_count))
        told = (device, kind, number, start, size, fstype, usage, label, uuid, table, part_name)
        layers = (name, parents, present, wanted, trouble, places, resorts, claimed)
        volumes.append(Volume(*told, *layers, sector, bool(inside)))
    body.end()
    return volumes


# --- MOUNT ---------------------------------------------------------------------------------------------------------
_WRITABLE, _AGAIN = 1, 2  # bits of the last byte of a MOUNT


def pack_mount(request: MountRequest) -> bytes:
    """Ask to mount."""
    texts = pack_text(request.device, request.fstype, request.zone)
    flags = _WRITABLE * request.writable | _AGAIN * request.again
    return texts + U16.pack(len(request.options)) + pack_text(*request.options) + bytes([flags])


def unpack_mount(body_bytes: bytes) -> MountRequest:
    """Return what is to be mounted."""
    body = Body(body_bytes)
    device, fstype, zone = unpack_text(body), unpack_text(body), unpack_text(body, MAX_ZONE)
    (count,) = body.unpack(U16)
    if count > MAX_OPTIONS:
        raise WireError(f"{count} options")
    options = tuple(unpack_text(body) for _ in range(count))
    (flags,) = body.take(1, 1)
    body.end()
    return MountRequest(device, fstype, zone, options, bool(flags & _WRITABLE), bool(flags & _AGAIN))


def pack_mounted(mounted: Mounted) -> bytes:
    """The answer to MOUNT."""
    root = pack_entry(mounted.root.name, mounted.root[1:-1], mounted.root.target)
    return _MOUNTED.pack(mounted.state, mounted.direct, mounted.resorts) + pack_text(mounted.fstype) + root


def unpack_mounted(untrusted_body: bytes) -> Mounted:
    """Return what was mounted, and the attributes of its root (whose name is empty)."""
    body = Body(untrusted_body)
    state, direct, resorts = body.unpack(_MOUNTED)
    fstype = unpack_text(body)
    (root,) = unpack_entries(body.rest(MAX_BODY), 0, 1)
    return Mounted(fstype, state, bool(direct), root, resorts)


# --- CHECK ---------------------------------------------------------------------------------------------------------
def pack_check(device: bytes, fstype: bytes, seconds: int, repair: bool = False) -> bytes:
    """Ask for a check of `device` (a name as PROBE gave it) by its type's checker, in so many seconds at the most."""
    return pack_text(device, fstype) + _CHECK.pack(seconds, repair)


def unpack_check(body_bytes: bytes) -> tuple[bytes, bytes, int, bool]:
    """Return (device, fstype, seconds, repair)."""
    body = Body(body_bytes)
    device, fstype = unpack_text(body), unpack_text(body)
    seconds, repair = body.unpack(_CHECK)
    body.end()
    return device, fstype, seconds, bool(repair)


def pack_checked(checked: Checked) -> bytes:
    """The answer to CHECK."""
    return _CHECKED.pack(checked.outcome, checked.journal, checked.code, len(checked.words)) + checked.words


def unpack_checked(untrusted_body: bytes) -> Checked:
    """Return what came of a check."""
    body = Body(untrusted_body)
    outcome, journal, code, length = body.unpack(_CHECKED)
    words = body.take(length, MAX_CHECK_WORDS)
    body.end()
    if outcome not in CheckOutcome.ALL or journal > MountState.SKIPPED:
        raise WireError(f"a check of outcome {outcome}, with a journal of state {journal}")
    return Checked(outcome, journal, code, words)
