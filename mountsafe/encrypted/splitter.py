"""The anti-forensic splitter: a key, spread over an area so that a lost part of that loses it whole.

Source: LUKS On-Disk Format Specification 1.2.3, section 2.4 (AFsplit).
"""

import struct

from mountsafe.encrypted import gcrypt
from mountsafe.encrypted.faults import Fault, KeyFault

MAX_STRIPES = 4000  # LUKS_STRIPES: cryptsetup makes, and takes, no other number
KEY_BYTES = range(8, 129)  # sizes that a volume key may have; the ciphers have more to say


def area_length(key_size: int, stripes: int) -> int:
    """Return the bytes of a key that is split. Raises KeyFault (DAMAGED) for numbers that cannot be."""
    if key_size not in KEY_BYTES or not 0 < stripes <= MAX_STRIPES:
        raise KeyFault(Fault.DAMAGED, "stripes")
    return key_size * stripes


def merge(area: bytes, key_size: int, stripes: int, hash_name: str) -> bytes:
    """Return the key. Raises KeyFault (KDF) for a digest that is not there."""
    try:
        made = bytes(key_size)
        for stripe in range(stripes):
            mixed = _xor(made, area[stripe * key_size : (stripe + 1) * key_size])
            made = mixed if stripe == stripes - 1 else _diffuse(mixed, hash_name)
    except gcrypt.GcryptError as error:
        raise KeyFault(Fault.KDF, hash_name) from error
    return made


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _diffuse(block: bytes, hash_name: str) -> bytes:
    size = gcrypt.digest_size(hash_name)
    parts = []
    for number, at in enumerate(range(0, len(block), size)):
        part = block[at : at + size]
        parts.append(gcrypt.digest(hash_name, struct.pack(">I", number) + part)[: len(part)])
    return b"".join(parts)
