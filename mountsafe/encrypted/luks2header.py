"""LUKS2's header: two copies of a binary part with a JSON area behind it, the newer valid one counts.

The binary part's checksum covers both. What the JSON says is read into dataclasses here and nothing of it is believed
yet: `luks2` checks it. Source: LUKS2 On-Disk Format Specification 1.1.1.
"""

import hmac
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TypeVar

from mountsafe import codec
from mountsafe.encrypted import gcrypt
from mountsafe.encrypted.description import MAX_SLOTS, Note
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.volume import Volume
from mountsafe.errors import ProtocolFault

FIRST, SECOND = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
BINARY = struct.Struct(">6sHQQ48s32s64s40s48sQ184x64s")
BINARY_BYTES = 4096
CHECKSUM = slice(448, 512)
SIZES = tuple(1 << bits for bits in range(14, 23))  # of a copy, its JSON included: 16 KiB to 4 MiB
VERSION = 2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kdf:
    """How a slot's key is made of a secret: of pbkdf2 `hash` and `iterations`, of argon2 the others."""

    type: str
    salt: str
    hash: str = ""
    iterations: int = 0
    time: int = 0
    memory: int = 0  # KiB
    cpus: int = 0


@dataclass(frozen=True, slots=True)
class Area:
    """Where a slot's key lies, in bytes as decimal text, and how it is encrypted."""

    type: str
    offset: str
    size: str
    encryption: str = ""
    key_size: int = 0


@dataclass(frozen=True, slots=True)
class Splitter:
    """The anti-forensic splitter of a slot."""

    type: str
    stripes: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True)
class KeySlot:
    """A key slot. `priority`: 0 is to be left out, 2 tried first."""

    type: str
    key_size: int
    area: Area
    kdf: Kdf | None = None
    af: Splitter | None = None
    priority: int = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of the plaintext. Numbers in bytes are decimal text, `size` may be "dynamic"."""

    type: str
    offset: str
    size: str
    iv_tweak: str = "0"
    encryption: str = ""
    sector_size: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Digest:
    """What a volume key is known by, for the slots that hold it and the segments that it opens."""

    type: str
    keyslots: tuple[str, ...]
    segments: tuple[str, ...]
    salt: str
    digest: str
    hash: str = ""
    iterations: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """What may know a secret for some slots: a TPM, a keyring."""

    type: str
    keyslots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """A header as it says. `raw_segments` that have an integrity object are in `integrity`."""

    label: str
    subsystem: str
    uuid: str
    sequence: int
    size: int  # bytes of one copy
    keyslots: Mapping[str, KeySlot]
    segments: Mapping[str, Segment]
    digests: Mapping[str, Digest]
    tokens: Mapping[str, Token]
    requirements: tuple[str, ...] = ()
    integrity: bool = False
    notes: tuple[Note, ...] = field(default=())


def read(volume: Volume) -> Header:
    """Read the newer valid copy. Raises KeyFault: NOT_ENCRYPTED if there is none, DAMAGED if none is valid."""
    first, second = _copy(volume, 0, FIRST), None
    sizes = SIZES if first is None else (first[1],)
    for place in sizes:
        second = _copy(volume, place, SECOND)
        if second is not None:
            break
    if first is None and second is None:
        raise _nothing(volume)
    notes = _notes(first, second)
    chosen = _newer(first, second)
    try:
        return _header(*chosen, notes)
    except (ProtocolFault, UnicodeDecodeError, ValueError, RecursionError, KeyError) as error:
        raise KeyFault(Fault.DAMAGED, "JSON") from error


def _nothing(volume: Volume) -> KeyFault:
    """Return why there is no valid copy."""
    begin = volume.take(0, 8) if volume.size >= 8 else b""
    if begin[:6] != FIRST:
        return KeyFault(Fault.NOT_ENCRYPTED)
    version = int.from_bytes(begin[6:], "big")
    return KeyFault(Fault.DAMAGED, "both headers") if version == VERSION else KeyFault(Fault.VERSION, f"LUKS{version}")


Copy = tuple[bytes, int, int]  # all of it, its size, its sequence number


def _newer(first: Copy | None, second: Copy | None) -> Copy:
    if first is None or second is None:
        found = first or second
        assert found is not None
        return found
    return second if second[2] > first[2] else first


def _notes(first: Copy | None, second: Copy | None) -> tuple[Note, ...]:
    if first is None:
        return (Note.FIRST_HEADER_DAMAGED,)
    if second is None:
        return (Note.SECOND_HEADER_DAMAGED,)
    return (Note.HEADERS_DIFFER,) if _meaning(first) != _meaning(second) else ()


def _meaning(copy: Copy) -> tuple[bytes, ...]:
    """Return what two copies have in common: not the magic, salt, place and checksum."""
    raw = copy[0]
    _, version, size, sequence, label, _, _, uuid, subsystem, _, _ = BINARY.unpack_from(raw)
    numbers = f"{version} {size} {sequence}".encode()
    return numbers, label, uuid, subsystem, raw[BINARY_BYTES:].partition(b"\0")[0]


def _copy(volume: Volume, place: int, magic: bytes) -> Copy | None:
    """Return a copy whose checksum is right; None if there is none at that place."""
    try:
        binary = volume.take(place, BINARY_BYTES)
        fields = BINARY.unpack_from(binary)
        found, version, size, sequence, _, algorithm, _, _, _, offset, checksum = fields
        if found != magic or version != VERSION or size not in SIZES or offset != place:
            return None
        raw = volume.take(place, size)
        zeroed = raw[: CHECKSUM.start] + bytes(64) + raw[CHECKSUM.stop :]
        digest = gcrypt.digest(algorithm.partition(b"\0")[0].decode("ascii", "replace"), zeroed)
    except (KeyFault, gcrypt.GcryptError):
        return None
    return (raw, size, sequence) if hmac.compare_digest(digest, checksum[: len(digest)]) else None


def _text(field_: bytes) -> str:
    return field_.partition(b"\0")[0].decode("utf-8", "replace")


def _header(raw: bytes, size: int, sequence: int, notes: tuple[Note, ...]) -> Header:
    _, _, _, _, label, _, _, uuid, subsystem, _, _ = BINARY.unpack_from(raw)
    told = json.loads(raw[BINARY_BYTES:].partition(b"\0")[0])
    segments = _objects(told, "segments", Segment)
    integrity = any("integrity" in each for each in told["segments"].values())
    return Header(
        *(_text(label), _text(subsystem), _text(uuid), sequence, size),
        *(_objects(told, "keyslots", KeySlot), segments),
        *(_objects(told, "digests", Digest), _objects(told, "tokens", Token, needed=False)),
        requirements=_requirements(told.get("config")),
        integrity=integrity,
        notes=notes,
    )


def _objects(told: object, name: str, kind: type[T], needed: bool = True) -> dict[str, T]:
    """Return the objects of a kind by their numbers. Raises ProtocolFault."""
    if not isinstance(told, dict):
        raise ProtocolFault("no object")
    found = told.get(name, None if needed else {})
    if not isinstance(found, dict) or len(found) > MAX_SLOTS:
        raise ProtocolFault(name)
    if not all(key.isascii() and key.isdigit() and len(key) <= 2 for key in found):
        raise ProtocolFault(f"numbers of {name}")
    read = {key: codec.read(kind, value, strict=False) for key, value in found.items()}
    if any(map(_has_negative, read.values())):
        raise ProtocolFault(f"a negative number of {name}")
    return read


def _has_negative(value: object) -> bool:
    """Whether a number in an object, or in one that it has, is less than 0: no number of a header may be."""
    if isinstance(value, int):
        return value < 0
    if not is_dataclass(value):
        return False
    return any(_has_negative(getattr(value, each.name)) for each in fields(value))


def _requirements(config: object) -> tuple[str, ...]:
    """Return what a reader must know of, or else leave the volume alone."""
    if not isinstance(config, dict):
        raise ProtocolFault("config")
    told = config.get("requirements", {})
    if not isinstance(told, dict):
        raise ProtocolFault("requirements")
    mandatory = told.get("mandatory", [])
    if not isinstance(mandatory, list) or not all(isinstance(each, str) for each in mandatory):
        raise ProtocolFault("mandatory")
    return tuple(mandatory)
