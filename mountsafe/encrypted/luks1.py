"""LUKS1: one header of 592 bytes, eight key slots. Source: LUKS On-Disk Format Specification 1.2.3.

Every slot is checked, used or not, as cryptsetup does: areas lie behind the header, before the payload, and apart.
"""

import hmac
import struct
from dataclasses import dataclass

from mountsafe.encrypted.description import Description, Form, Kind, Note, Slot
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget, pbkdf2
from mountsafe.encrypted.sectors import Spec, decrypt_area, payload_cipher
from mountsafe.encrypted.splitter import area_length, merge
from mountsafe.encrypted.unlocking import Unlocked, first_that_opens
from mountsafe.encrypted.volume import Volume
from mountsafe.medium.encryption import UNIT, Layout, Segment, SegmentKind

MAGIC = b"LUKS\xba\xbe\x00\x01"
HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
SLOT = struct.Struct(">II32sII")
SLOTS = 8
ENABLED, DISABLED = 0x00AC71F3, 0x0000DEAD
HEADER_BYTES = HEADER.size + SLOTS * SLOT.size  # 592


@dataclass(frozen=True, slots=True)
class KeySlot:
    """A key slot; `offset` of its area in bytes."""

    number: int
    enabled: bool
    iterations: int
    salt: bytes
    offset: int
    stripes: int


@dataclass(frozen=True, slots=True)
class Luks1:
    """A header that was read and checked. `payload`: where the ciphertext begins, in bytes."""

    cipher: str  # by dm-crypt's name
    hash_name: str
    payload: int
    key_size: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[KeySlot, ...]


def read(volume: Volume, detached: bool = False) -> Luks1:
    """Read a header. `detached`: the ciphertext is another volume. Raises KeyFault."""
    raw = volume.take(0, HEADER_BYTES)
    if raw[:8] != MAGIC:
        raise KeyFault(Fault.NOT_ENCRYPTED)
    fields = HEADER.unpack_from(raw)
    _, _, cipher, mode, hash_name, payload, key_size, digest, digest_salt, iterations, uuid = fields
    slots = tuple(_slot(raw, number) for number in range(SLOTS))
    header = Luks1(
        *(
            f"{_text(cipher)}-{_text(mode)}",
            _text(hash_name),
            payload * UNIT,
            key_size,
            digest,
            digest_salt,
            iterations,
            _text(uuid),
            slots,
        )
    )
    _check(header, volume, detached)
    return header


def _text(field: bytes) -> str:
    """Return the text of a field that zeros fill up. Raises KeyFault (DAMAGED) if it is not ASCII."""
    try:
        return field.partition(b"\0")[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise KeyFault(Fault.DAMAGED, "text") from error


def _slot(raw: bytes, number: int) -> KeySlot:
    state, iterations, salt, offset, stripes = SLOT.unpack_from(raw, HEADER.size + number * SLOT.size)
    if state not in (ENABLED, DISABLED):
        raise KeyFault(Fault.DAMAGED, f"key slot {number}")
    return KeySlot(number, state == ENABLED, iterations, salt, offset * UNIT, stripes)


def _check(header: Luks1, volume: Volume, detached: bool) -> None:
    if header.payload == 0 and not detached:
        raise KeyFault(Fault.DAMAGED, "payload")
    end = header.payload or volume.size
    before = HEADER_BYTES
    for slot in sorted(header.slots, key=lambda slot: slot.offset):
        length = area_length(header.key_size, slot.stripes)
        if slot.offset < before or slot.offset + length > end:
            raise KeyFault(Fault.DAMAGED, f"key slot {slot.number}")
        before = slot.offset + length


def describe(header: Luks1, size: int, detached: bool) -> Description:
    """Tell of a header whose ciphertext lies in a volume of `size` bytes."""
    notes = [Note.DETACHED_HEADER] if detached else []
    try:
        payload_cipher(header.cipher, header.key_size, size)
    except KeyFault:
        notes.append(Note.UNSUPPORTED_CIPHER)
    slots = tuple(
        Slot(str(slot.number), Form.PASSPHRASE, f"pbkdf2-{header.hash_name}", slot.iterations)
        for slot in header.slots
        if slot.enabled
    )
    bits = 8 * header.key_size
    return Description(Kind.LUKS, 1, header.cipher, bits, UNIT, slots, "", header.uuid, tuple(notes))


def unlock(header: Luks1, volume: Volume, size: int, secret: bytes, budget: Budget) -> Unlocked:
    """Return what `secret` opens. `volume` has the header, and `size` bytes the ciphertext's. Raises KeyFault."""
    cipher = payload_cipher(header.cipher, header.key_size, size)
    length = (size - header.payload) // UNIT * UNIT
    if length <= 0:
        raise KeyFault(Fault.CUT_OFF)
    segment = Segment(0, length, SegmentKind.CRYPT, header.payload, 0)
    layout = Layout(cipher, header.key_size, UNIT, UNIT, length, (segment,))
    enabled = [slot for slot in header.slots if slot.enabled]
    key = first_that_opens(enabled, lambda slot: _key(header, slot, volume, secret, budget))
    return Unlocked(layout, key)


def _key(header: Luks1, slot: KeySlot, volume: Volume, secret: bytes, budget: Budget) -> bytes | None:
    length = area_length(header.key_size, slot.stripes)
    area = volume.take(slot.offset, -(-length // UNIT) * UNIT)
    derived = pbkdf2(budget, header.hash_name, secret, slot.salt, slot.iterations, header.key_size)
    key = merge(
        decrypt_area(Spec.parse(header.cipher), derived, area)[:length], header.key_size, slot.stripes, header.hash_name
    )
    found = pbkdf2(budget, header.hash_name, key, header.digest_salt, header.digest_iterations, len(header.digest))
    return key if hmac.compare_digest(found, header.digest) else None
