"""BitLocker's metadata: where it lies, what it says, and what the plaintext is made of.

A boot sector names three copies of 64 KiB, each with a list of entries and a checksum; the first valid one counts. The
file system's own first sectors were moved, and lie encrypted elsewhere. Source: libbde's "BitLocker Drive Encryption
(BDE) format specification"; the states are dislocker's. Windows Vista's version 1 is not read.
"""

import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mountsafe.encrypted.description import Description, Form, Kind, Note, Slot
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.volume import Volume
from mountsafe.medium.encryption import SECTORS, Cipher, Layout, Segment, SegmentKind

SIGNATURE, TO_GO = b"-FVE-FS-", b"MSWIN4.1"  # behind the jump of the boot sector; the second is any FAT's
NORMAL = uuid.UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001")
ON_WRITE = uuid.UUID("92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8")  # encrypted on write: only what was used
VISTA = b"\xeb\x52\x90"
PLACES = {SIGNATURE: 160, TO_GO: 424}  # of the identifier and the three offsets
METADATA_BYTES = 65536
BLOCK = struct.Struct("<8sHHHHQII3QQ")  # the block's header
HEADER = struct.Struct("<IIII16sIHHQ")  # the metadata's header behind it
ENTRIES = BLOCK.size + HEADER.size  # where the entries begin: 112
ENTRY = struct.Struct("<HHHH")  # size with this header, type, kind of value, version
VALIDATION = struct.Struct("<HHI")
MAX_ENTRIES = 64
ENCRYPTED, SWITCHING, PAUSED = 4, 2, 5  # states
FILETIME = datetime(1601, 1, 1, tzinfo=UTC)


class Type:
    """Types of entries, and kinds of values."""

    PROPERTY, VMK, FVEK, STARTUP_KEY, DESCRIPTION, VOLUME_HEADER = 0, 2, 3, 6, 7, 15
    KEY, TEXT, STRETCH_KEY, ENCRYPTED_KEY, EXTERNAL_KEY = 1, 2, 3, 5, 9


CIPHERS = {
    0x8000: (Cipher.AES_ELEPHANT, 32),
    0x8001: (Cipher.AES_ELEPHANT, 64),
    0x8002: (Cipher.AES_CBC_EBOIV, 16),
    0x8003: (Cipher.AES_CBC_EBOIV, 32),
    0x8004: (Cipher.AES_XTS, 32),
    0x8005: (Cipher.AES_XTS, 64),
}
CLEAR, STARTUP, RECOVERY, PASSWORD = 0x0000, 0x0200, 0x0800, 0x2000  # protections of a VMK
PROTECTIONS: dict[int, tuple[str, Form | None]] = {
    CLEAR: ("clear key", Form.CLEAR_KEY),
    0x0100: ("TPM", None),
    STARTUP: ("startup key", Form.BEK_FILE),
    0x0500: ("TPM and PIN", None),
    RECOVERY: ("recovery key", Form.RECOVERY_KEY),
    0x1000: ("smart card", None),
    PASSWORD: ("password", Form.PASSPHRASE),
}
ITERATIONS = 1 << 20  # of SHA-256, for passwords and recovery keys


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the metadata, or one inside another."""

    type: int
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Protector:
    """A copy of the volume master key, and what it is encrypted with."""

    id: uuid.UUID
    protection: int
    inside: tuple[Entry, ...]

    def first(self, kind: int) -> bytes | None:
        """Return the data of its first entry of a kind."""
        return next((entry.data for entry in self.inside if entry.kind == kind), None)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one valid copy says, and where all three are. `encrypted`: bytes from the start that are, as far as known.

    `moved`: where the file system's first bytes lie, and how many they are.
    """

    id: uuid.UUID
    sector: int
    to_go: bool
    on_write: bool
    state: int
    encrypted: int
    method: int
    created: int
    areas: tuple[int, ...]
    moved: tuple[int, int]
    text: str
    protectors: tuple[Protector, ...]
    volume_key: bytes | None
    first_damaged: bool

    def cipher(self) -> tuple[Cipher, int]:
        """Return the cipher and the bytes of its key. Raises KeyFault (CIPHER)."""
        if self.method not in CIPHERS:
            raise KeyFault(Fault.CIPHER, f"method {self.method:#06x}")
        return CIPHERS[self.method]


def is_one(volume: Volume) -> bool:
    """Whether a volume begins as BitLocker's do."""
    if volume.size < 512:
        return False
    boot = volume.take(0, 512)
    return boot[3:11] == SIGNATURE or (boot[3:11] == TO_GO and _identifier(boot) in (NORMAL, ON_WRITE))


def _identifier(boot: bytes) -> uuid.UUID:
    place = PLACES[boot[3:11]]
    return uuid.UUID(bytes_le=boot[place : place + 16])


def read(volume: Volume) -> Metadata:
    """Read the first valid copy. Raises KeyFault."""
    if not is_one(volume):
        raise KeyFault(Fault.NOT_ENCRYPTED)
    boot = volume.take(0, 512)
    if boot[:3] == VISTA:
        raise KeyFault(Fault.VERSION, "1")
    identifier = _identifier(boot)
    if identifier not in (NORMAL, ON_WRITE):
        raise KeyFault(Fault.VERSION, str(identifier))
    [sector] = struct.unpack_from("<H", boot, 11)
    if sector not in SECTORS:
        raise KeyFault(Fault.DAMAGED, "sector size")
    areas = struct.unpack_from("<3Q", boot, PLACES[boot[3:11]] + 16)
    why: KeyFault | None = None
    for place in areas:
        try:
            raw = _checked(volume.take(place, METADATA_BYTES))
        except KeyFault as fault:
            why = why or fault
            continue
        return _metadata(raw, sector, boot[3:11] == TO_GO, identifier == ON_WRITE, why is not None)
    assert why is not None
    raise why


def _checked(raw: bytes) -> bytes:
    """Return a copy whose checksum is right. Raises KeyFault."""
    signature, units, version, *_ = BLOCK.unpack_from(raw)
    if signature != SIGNATURE:
        raise KeyFault(Fault.DAMAGED, "metadata")
    if version != 2:
        raise KeyFault(Fault.VERSION, str(version))
    size, metadata_version, header_size, *_ = HEADER.unpack_from(raw, BLOCK.size)
    end = units * 16
    if metadata_version != 1 or header_size != HEADER.size:
        raise KeyFault(Fault.VERSION, f"metadata {metadata_version}")
    if not HEADER.size <= size <= end - BLOCK.size or end > len(raw) - VALIDATION.size:
        raise KeyFault(Fault.DAMAGED, "metadata")
    _, _, checksum = VALIDATION.unpack_from(raw, end)
    if zlib.crc32(raw[:end]) != checksum:
        raise KeyFault(Fault.DAMAGED, "metadata")
    return raw[: BLOCK.size + size]


def entries(data: bytes) -> Iterator[Entry]:
    """Yield the entries in `data`. Raises KeyFault (DAMAGED)."""
    at = 0
    for _ in range(MAX_ENTRIES):
        if len(data) - at < ENTRY.size:
            return
        size, type_, kind, _ = ENTRY.unpack_from(data, at)
        if size == 0:
            return
        if not ENTRY.size <= size <= len(data) - at:
            raise KeyFault(Fault.DAMAGED, "entry")
        yield Entry(type_, kind, data[at + ENTRY.size : at + size])
        at += size
    raise KeyFault(Fault.DAMAGED, "entries")


def _metadata(raw: bytes, sector: int, to_go: bool, on_write: bool, first_damaged: bool) -> Metadata:
    _, _, _, state, _, encrypted, _, sectors, *offsets, moved = BLOCK.unpack_from(raw)
    _, _, _, _, identifier, _, method, _, created = HEADER.unpack_from(raw, BLOCK.size)
    found = list(entries(raw[ENTRIES:]))
    where = (moved, sectors * sector)
    for entry in found:
        if entry.type == Type.VOLUME_HEADER and len(entry.data) >= 16:
            where = struct.unpack_from("<2Q", entry.data)
    text = next((entry.data for entry in found if entry.type == Type.DESCRIPTION), b"")
    return Metadata(
        *(uuid.UUID(bytes_le=identifier), sector, to_go, on_write, state, encrypted, method, created),
        *(tuple(offsets), where, text.decode("utf-16-le", "replace").rstrip("\0")),
        protectors=tuple(_protector(entry.data) for entry in found if entry.type == Type.VMK),
        volume_key=next((entry.data for entry in found if entry.type == Type.FVEK), None),
        first_damaged=first_damaged,
    )


def _protector(data: bytes) -> Protector:
    if len(data) < 28:
        raise KeyFault(Fault.DAMAGED, "protector")
    [protection] = struct.unpack_from("<H", data, 26)
    return Protector(uuid.UUID(bytes_le=data[:16]), protection, tuple(entries(data[28:])))


def layout(metadata: Metadata, size: int) -> Layout:
    """Return the plaintext's layout in a volume of `size` bytes. Raises KeyFault.

    An image that was cut short has what is left of it; a volume whose encryption goes on is plain behind its border.
    """
    cipher, key_size = metadata.cipher()
    sector = metadata.sector
    size = size // sector * sector
    if metadata.state not in (ENCRYPTED, SWITCHING, PAUSED):
        raise KeyFault(Fault.REQUIREMENT, f"state {metadata.state}")
    if metadata.on_write:  # bitmaps say which sectors are encrypted; taken for all, the others would be noise
        raise KeyFault(Fault.REQUIREMENT, "encrypted on write")
    border = size if metadata.state == ENCRYPTED else min(size, metadata.encrypted // sector * sector)
    place, length = metadata.moved
    hidden = sorted([(place, length), *((area, METADATA_BYTES) for area in metadata.areas)])
    if any(each % sector for run in hidden for each in run):
        raise KeyFault(Fault.DAMAGED, "alignment")
    if place + length > size:
        raise KeyFault(Fault.CUT_OFF)
    segments = [Segment(0, length, SegmentKind.CRYPT, place, place // sector)] if length else []
    at = length
    for start, many in hidden:
        if start < at:
            raise KeyFault(Fault.DAMAGED, "overlap")
        segments += _between(at, min(start, size), border, sector)
        at = min(start + many, size)
        if at > start:
            segments.append(Segment(start, at - start, SegmentKind.ZERO, 0, 0))
        else:
            at = min(start, size)
    segments += _between(at, size, border, sector)
    return Layout(cipher, key_size, sector, sector, size, tuple(segments))


def _between(start: int, end: int, border: int, sector: int) -> Iterator[Segment]:
    """Yield the segments of what lies in its place: encrypted up to the border."""
    if start < min(end, border):
        yield Segment(start, min(end, border) - start, SegmentKind.CRYPT, start, start // sector)
    if max(start, border) < end:
        yield Segment(max(start, border), end - max(start, border), SegmentKind.PLAIN, max(start, border), 0)


def describe(metadata: Metadata, volume: Volume) -> Description:
    """Tell of a volume."""
    cipher, bits = str(CIPHERS[metadata.method][0]) if metadata.method in CIPHERS else "", 0
    if metadata.method in CIPHERS:
        bits = 8 * CIPHERS[metadata.method][1] // (2 if metadata.method in (0x8000, 0x8001, 0x8004, 0x8005) else 1)
    checks = (
        (Note.FIRST_HEADER_DAMAGED, metadata.first_damaged),
        (Note.PARTLY_ENCRYPTED, metadata.on_write or metadata.state in (SWITCHING, PAUSED)),
        (Note.CUT_OFF, metadata.state == ENCRYPTED and volume.size < metadata.encrypted),
        (Note.CLEAR_KEY, any(each.protection == CLEAR for each in metadata.protectors)),
        (Note.UNSUPPORTED_REQUIREMENT, metadata.on_write),
        (Note.UNSUPPORTED_CIPHER, metadata.method not in CIPHERS),
    )
    slots = tuple(_slot(each) for each in metadata.protectors)
    words = [("to go", "yes")] if metadata.to_go else []
    if created := _time(metadata.created):
        words.append(("created", created))
    return Description(
        *(Kind.BITLOCKER, 2, cipher, bits, metadata.sector, slots, metadata.text, str(metadata.id)),
        *(tuple(note for note, holds in checks if holds), tuple(words)),
    )


def _slot(protector: Protector) -> Slot:
    name, form = PROTECTIONS.get(protector.protection, (f"protection {protector.protection:#06x}", None))
    stretched = protector.protection in (PASSWORD, RECOVERY)
    return Slot(str(protector.id), form, "sha256" if stretched else name, ITERATIONS if stretched else 0)


def _time(filetime: int) -> str:
    """Return the day of a number of 100 ns since 1601; "" for one that is none."""
    try:
        return (FILETIME + timedelta(microseconds=filetime // 10)).date().isoformat()
    except OverflowError:
        return ""
