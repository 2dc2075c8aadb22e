"""LUKS2: what its header says, checked, and a secret tried on its key slots.

Source: LUKS2 On-Disk Format Specification 1.1.1. A plaintext of one segment is what there is outside of re-encryption,
which is refused with all other requirements.
"""

import base64
import binascii
import hmac

from mountsafe.encrypted import luks2header
from mountsafe.encrypted.description import Description, Form, Kind, Note, Slot
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget, argon2, pbkdf2
from mountsafe.encrypted.luks2header import Digest, Header, KeySlot, Segment
from mountsafe.encrypted.sectors import Spec, decrypt_area, payload_cipher
from mountsafe.encrypted.splitter import area_length, merge
from mountsafe.encrypted.unlocking import Unlocked, first_that_opens
from mountsafe.encrypted.volume import Volume
from mountsafe.medium import encryption
from mountsafe.medium.encryption import SECTORS, UNIT, Layout, SegmentKind


def number(text: str) -> int:
    """Return a number of bytes, in whole sectors, of decimal text. Raises KeyFault (DAMAGED)."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise KeyFault(Fault.DAMAGED, "number")
    if (found := int(text)) % UNIT:
        raise KeyFault(Fault.DAMAGED, "alignment")
    return found


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyFault(Fault.DAMAGED, "base64") from error


def segment(header: Header) -> Segment:
    """Return the one segment. Raises KeyFault: REQUIREMENT, INTEGRITY, VERSION for a kind that is not known."""
    if header.requirements:
        raise KeyFault(Fault.REQUIREMENT, ", ".join(header.requirements)[:200])
    if header.integrity:
        raise KeyFault(Fault.INTEGRITY)
    if len(header.segments) != 1:
        raise KeyFault(Fault.DAMAGED if not header.segments else Fault.REQUIREMENT, "segments")
    [found] = header.segments.values()
    if found.type != "crypt":
        raise KeyFault(Fault.VERSION, found.type)
    if found.flags:
        raise KeyFault(Fault.REQUIREMENT, ", ".join(found.flags)[:200])
    return found


def layout(header: Header, size: int, key_size: int) -> Layout:
    """Return the plaintext's layout in a volume of `size` bytes. Raises KeyFault."""
    found = segment(header)
    if found.sector_size not in SECTORS:
        raise KeyFault(Fault.DAMAGED, "sector size")
    offset = number(found.offset)
    dynamic = found.size == "dynamic"
    length = (size - offset) // found.sector_size * found.sector_size if dynamic else number(found.size)
    if length <= 0 or offset + length > size:
        raise KeyFault(Fault.CUT_OFF)
    if length % found.sector_size:
        raise KeyFault(Fault.DAMAGED, "segment")
    tweak = found.iv_tweak
    if not (tweak.isascii() and tweak.isdigit() and len(tweak) <= 18):
        raise KeyFault(Fault.DAMAGED, "IV")
    cipher = payload_cipher(found.encryption, key_size, length + int(tweak) * UNIT)
    run = encryption.Segment(0, length, SegmentKind.CRYPT, offset, int(tweak))
    # dm-crypt counts IVs in units of 512 bytes whatever the sector's size is
    return Layout(cipher, key_size, found.sector_size, UNIT, length, (run,))


def _digests(header: Header) -> list[Digest]:
    """Return the digests of the key that opens the segment: slots of others hold other keys."""
    names = set(header.segments)
    return [digest for digest in header.digests.values() if names & set(digest.segments)]


def _slots(header: Header) -> list[tuple[KeySlot, Digest]]:
    """Return the slots that hold the volume key, in the order to try them: those to be left out are not there."""
    found = []
    for digest in _digests(header):
        for name in digest.keyslots:
            slot = header.keyslots.get(name)
            if slot is not None and slot.type == "luks2" and slot.priority != 0:
                found.append((slot, digest))
    return sorted(found, key=lambda each: -each[0].priority)


def check(header: Header, volume: Volume) -> None:
    """Raise KeyFault if areas lie in the header's copies, outside of the volume, or on each other."""
    before = 2 * header.size
    areas = sorted((number(slot.area.offset), number(slot.area.size)) for slot in header.keyslots.values())
    for offset, length in areas:
        if offset < before or length <= 0:
            raise KeyFault(Fault.DAMAGED, "key slot area")
        if offset + length > volume.size:
            raise KeyFault(Fault.CUT_OFF)
        before = offset + length


def describe(header: Header, size: int, detached: bool) -> Description:
    """Tell of a header whose ciphertext lies in a volume of `size` bytes. Raises KeyFault only if it says nothing."""
    notes = [*header.notes, *([Note.DETACHED_HEADER] if detached else [])]
    first = next(iter(header.segments.values()), Segment("", "0", "0"))
    keys = [slot.key_size for slot, _ in _slots(header)]
    try:
        layout(header, size, keys[0] if keys else 0)
    except KeyFault as fault:
        notes += {
            Fault.REQUIREMENT: [Note.UNSUPPORTED_REQUIREMENT],
            Fault.INTEGRITY: [Note.INTEGRITY],
            Fault.CIPHER: [Note.UNSUPPORTED_CIPHER] if keys else [],
        }.get(fault.fault, [])
    return Description(
        *(Kind.LUKS, 2, first.encryption, 8 * keys[0] if keys else 0, first.sector_size),
        tuple(_slot(name, slot) for name, slot in header.keyslots.items()),
        *(header.label, header.uuid, tuple(notes), _words(header)),
    )


def _slot(name: str, slot: KeySlot) -> Slot:
    kdf = slot.kdf
    opens = Form.PASSPHRASE if slot.type == "luks2" else None
    if kdf is None:
        return Slot(name, opens, slot.type)
    if kdf.type == "pbkdf2":
        return Slot(name, opens, f"pbkdf2-{kdf.hash}", kdf.iterations)
    return Slot(name, opens, kdf.type, kdf.time, kdf.memory, kdf.cpus)


def _words(header: Header) -> tuple[tuple[str, str], ...]:
    words = [("token", token.type) for token in header.tokens.values()]
    words += [("requirement", name) for name in header.requirements[:8]]
    return (("subsystem", header.subsystem), *words) if header.subsystem else tuple(words)


def unlock(header: Header, volume: Volume, size: int, secret: bytes, budget: Budget) -> Unlocked:
    """Return what `secret` opens. `volume` has the header, and `size` bytes the ciphertext's. Raises KeyFault."""
    segment(header)
    check(header, volume)
    slots = _slots(header)
    for slot, _ in slots[:1]:
        layout(header, size, slot.key_size)  # before the time for a key is spent
    key = first_that_opens(slots, lambda each: _key(*each, volume, secret, budget))
    return Unlocked(layout(header, size, len(key)), key)


def _key(slot: KeySlot, digest: Digest, volume: Volume, secret: bytes, budget: Budget) -> bytes | None:
    if slot.af is None or slot.kdf is None or slot.af.type != "luks1" or slot.area.type != "raw":
        raise KeyFault(Fault.VERSION, "key slot")
    if digest.type != "pbkdf2":
        raise KeyFault(Fault.KDF, digest.type)
    length = area_length(slot.key_size, slot.af.stripes)
    whole = -(-length // UNIT) * UNIT
    if whole > number(slot.area.size):
        raise KeyFault(Fault.DAMAGED, "key slot area")
    area = volume.take(number(slot.area.offset), whole)
    derived = _derived(slot, secret, budget)
    plain = decrypt_area(Spec.parse(slot.area.encryption), derived, area)
    key = merge(plain[:length], slot.key_size, slot.af.stripes, slot.af.hash)
    wanted = _bytes(digest.digest)
    found = pbkdf2(budget, digest.hash, key, _bytes(digest.salt), digest.iterations, len(wanted))
    return key if hmac.compare_digest(found, wanted) else None


def _derived(slot: KeySlot, secret: bytes, budget: Budget) -> bytes:
    kdf, size = slot.kdf, slot.area.key_size
    assert kdf is not None
    if size not in range(8, 129):
        raise KeyFault(Fault.DAMAGED, "key slot")
    if kdf.type == "pbkdf2":
        return pbkdf2(budget, kdf.hash, secret, _bytes(kdf.salt), kdf.iterations, size)
    return argon2(budget, kdf.type, secret, _bytes(kdf.salt), (kdf.time, kdf.memory, kdf.cpus), size)


def read(volume: Volume) -> Header:
    """Read a header (`luks2header.read`)."""
    return luks2header.read(volume)
