"""TrueCrypt's and VeraCrypt's headers: 64 bytes of salt, 448 bytes that only the right key makes sense of.

Nothing on the volume says what it is, which cipher or which digest: each is tried, the likely ones first. Source:
VeraCrypt's "Volume Format Specification", "Header Key Derivation" and "Keyfiles".
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from mountsafe.encrypted import gcrypt
from mountsafe.encrypted.description import Description, Kind
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget, argon2, pbkdf2
from mountsafe.encrypted.unlocking import Unlocked
from mountsafe.encrypted.volume import Volume
from mountsafe.medium.encryption import SECTORS, UNIT, XTS, Cipher, Layout, Segment, SegmentKind, cascade
from mountsafe.medium.libgcrypt import Mode

SALT, HEADER_BYTES = 64, 512
KEY_BYTES = 192  # of three ciphers in XTS
ONE_CIPHER = 64  # bytes of PBKDF2's result are the same however many are made, and three times as fast
FIELDS = struct.Struct(">4sHHI16xQQQQII")  # of the decrypted part; the checksum of it is at 188, the keys at 192
CHECKED, KEYS = 188, 192
MAGICS = {Kind.VERACRYPT: b"VERA", Kind.TRUECRYPT: b"TRUE"}
# Where a header is: from the end if negative. The copies at the end are there since TrueCrypt 6.
NORMAL, HIDDEN = (0, -131072), (65536, -65536)
CASCADES = tuple(sorted((names for cipher in Cipher if (names := cascade(cipher))), key=len))  # the likely ones first
RARE = ("streebog512", "argon2id")  # and slow
MAX_PASSWORD, MAX_LONG_PASSWORD = 64, 128  # bytes; the second only of VeraCrypt's
MAX_PIM = 2147468
POOL = {True: 128, False: 64}  # bytes of the pool that key files are mixed into, for a long password or not


@dataclass(frozen=True, slots=True)
class Derivation:
    """A way to a header key: PBKDF2 with `hash` and `iterations`, or argon2id with passes and KiB."""

    hash: str
    iterations: int
    memory: int = 0

    def key(self, budget: Budget, secret: bytes, salt: bytes, size: int) -> bytes:
        """Return the header key, the first `size` bytes of it if that is less work. Raises KeyFault."""
        if self.memory:
            return argon2(budget, self.hash, secret, salt, (self.iterations, self.memory, 1), KEY_BYTES)
        return pbkdf2(budget, self.hash, secret, salt, self.iterations, size)


def derivations(kind: Kind, pim: int) -> tuple[Derivation, ...]:
    """Return what to try. `pim`: 0 for none. Raises KeyFault (KDF) for one that there is not."""
    if kind is Kind.TRUECRYPT:
        if pim:
            raise KeyFault(Fault.KDF, "PIM")
        return (Derivation("ripemd160", 2000), Derivation("sha512", 1000), Derivation("whirlpool", 1000))
    if not 0 <= pim <= MAX_PIM:
        raise KeyFault(Fault.KDF, "PIM")
    many = 15000 + 1000 * pim if pim else 500_000
    passes, memory = (3 + (pim - 1) // 3, 64 + 32 * (pim - 1)) if pim <= 31 else (pim - 18, 1024)
    if not pim:
        passes, memory = 6, 416
    return (
        *(Derivation(name, many) for name in ("sha512", "sha256", "blake2s")),
        Derivation("ripemd160", many if pim else 655_331),
        Derivation("whirlpool", many),
        Derivation("streebog512", many),
        Derivation("argon2id", passes, memory << 10),
    )


def mixed(kind: Kind, password: bytes, keyfiles: Sequence[bytes]) -> bytes:
    """Return a password with key files mixed into it. Raises KeyFault (SECRET_TOO_LONG)."""
    if len(password) > (MAX_LONG_PASSWORD if kind is Kind.VERACRYPT else MAX_PASSWORD):
        raise KeyFault(Fault.SECRET_TOO_LONG)
    if not keyfiles:
        return password
    pool = bytearray(POOL[len(password) > MAX_PASSWORD])
    for data in keyfiles:
        _mix(pool, data)
    for place, byte in enumerate(password):
        pool[place] = (pool[place] + byte) & 0xFF
    return bytes(pool)


def _mix(pool: bytearray, data: bytes) -> None:
    """Add the running CRC-32 of a key file to the pool, four bytes for each of its."""
    crc, at = 0, 0
    for place in range(len(data)):
        crc = zlib.crc32(data[place : place + 1], crc)
        for byte in (crc ^ 0xFFFFFFFF).to_bytes(4, "big"):
            pool[at] = (pool[at] + byte) & 0xFF
            at += 1
        at %= len(pool)


def describe(kind: Kind) -> Description:
    """Tell what there is to tell: nothing on such a volume says what it is."""
    return Description(kind, 0, "", 0, UNIT)


@dataclass(frozen=True, slots=True)
class Header:
    """A decrypted header that is right. `place`: where it was. Sizes and offsets in bytes."""

    place: int
    cascade: tuple[str, ...]
    version: int
    hidden_size: int
    volume_size: int
    offset: int
    size: int
    flags: int
    sector: int
    keys: bytes


def unlock(volume: Volume, kind: Kind, hidden: bool, secret: bytes, pim: int, budget: Budget) -> Unlocked:
    """Return what a secret (`mixed`) opens, `hidden`: of the inner volume. Raises KeyFault."""
    header = _found(volume, kind, hidden, secret, pim, budget)
    ciphers = len(header.cascade)
    key = b"".join(xts_key(header.keys, ciphers, number) for number in range(ciphers))
    return Unlocked(layout(header, volume.size, hidden), key)


def layout(header: Header, size: int, hidden: bool) -> Layout:
    """Return the plaintext's layout in a volume of `size` bytes. Raises KeyFault (DAMAGED, CUT_OFF)."""
    if header.sector not in SECTORS:
        raise KeyFault(Fault.DAMAGED, "sector size")
    offset, length = _place(header, size, hidden)
    # The header's sectors are what the file system sees; what is encrypted at once is always 512 bytes.
    length = length // UNIT * UNIT
    segment = Segment(0, length, SegmentKind.CRYPT, offset, offset // UNIT)
    cipher = Cipher("-".join(header.cascade) + XTS)
    return Layout(cipher, 64 * len(header.cascade), UNIT, UNIT, length, (segment,))


def _place(header: Header, size: int, hidden: bool) -> tuple[int, int]:
    """Return where the ciphertext is, and how long. Raises KeyFault (DAMAGED, CUT_OFF)."""
    length = header.hidden_size if hidden else header.volume_size
    offset = header.offset
    if header.version < 3:  # TrueCrypt 4
        offset, length = UNIT, size - UNIT
    elif header.version == 3 and hidden:  # TrueCrypt 5 has its hidden volume at the end
        offset = size - length - 1536
    length = min(length, header.size) if header.size else length
    if offset <= 0 or offset % UNIT or length < UNIT:
        raise KeyFault(Fault.DAMAGED, "place")
    if offset + length > size:
        raise KeyFault(Fault.CUT_OFF)
    return offset, length


def xts_key(keys: bytes, ciphers: int, number: int) -> bytes:
    """Return both keys of a cipher: first come all those of the data, then all those of the tweaks."""
    return keys[32 * number : 32 * (number + 1)] + keys[32 * (ciphers + number) : 32 * (ciphers + number + 1)]


def _found(volume: Volume, kind: Kind, hidden: bool, secret: bytes, pim: int, budget: Budget) -> Header:
    """Return the first header that makes sense, of all places and derivations. Raises KeyFault."""

    def attempt(what: tuple[int, Derivation, int]) -> Header | KeyFault | None:
        place, derivation, size = what
        raw = volume.take(place, HEADER_BYTES)
        try:
            # Nothing here is the volume's choice but the PIM, so what one takes is no matter of the others.
            key = derivation.key(replace(budget, seconds=4 * budget.seconds), secret, raw[:SALT], size)
        except KeyFault as fault:
            return fault
        return _decrypted(raw[SALT:], key, kind, place)

    kept: KeyFault | None = None
    attempts = list(_attempts(volume.size, kind, hidden, derivations(kind, pim)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # both libraries let other threads run
        try:
            for found in pool.map(attempt, attempts):
                if isinstance(found, Header):
                    return found
                kept = kept or found
        finally:
            pool.shutdown(cancel_futures=True)
    raise kept or KeyFault(Fault.WRONG_KEY)


def _attempts(size: int, kind: Kind, hidden: bool, ways: Sequence[Derivation]) -> Iterator[tuple[int, Derivation, int]]:
    """Yield what to try, the likeliest first: one cipher, then several; in a copy at the end, one.

    Raises KeyFault (CUT_OFF) if there is no place for a header.
    """
    places = list(_places(size, kind, hidden))
    if not places:
        raise KeyFault(Fault.CUT_OFF)
    first, *copies = places
    usual, rare = [way for way in ways if way.hash not in RARE], [way for way in ways if way.hash in RARE]
    yield from ((first, way, ONE_CIPHER) for way in usual)
    yield from ((first, way, KEY_BYTES) for way in usual)
    yield from ((first, way, KEY_BYTES) for way in rare)
    for place in copies:
        yield from ((place, way, ONE_CIPHER) for way in ways)


def _places(size: int, kind: Kind, hidden: bool) -> Iterator[int]:
    """Yield where a header may be: the copy at the end too, for one whose first sectors were overwritten."""
    places: tuple[int, ...] = HIDDEN if hidden else NORMAL
    if hidden and kind is Kind.TRUECRYPT:
        places = (*places, -1536)
    for place in places:
        where = place if place >= 0 else size + place
        if 0 <= where <= size - HEADER_BYTES:
            yield where


def _decrypted(sealed: bytes, key: bytes, kind: Kind, place: int) -> Header | None:
    for names in CASCADES:
        plain = sealed
        if len(key) < ONE_CIPHER * len(names):
            continue
        for number in reversed(range(len(names))):
            with gcrypt.opened(names[number], Mode.XTS, xts_key(key, len(names), number)) as cipher:
                plain = cipher.decrypt(plain, bytes(16))
        header = parsed(plain, names, kind, place)
        if header is not None:
            return header
    return None


def parsed(plain: bytes, cascade: tuple[str, ...], kind: Kind, place: int) -> Header | None:
    """Return a header of its decrypted 448 bytes; None if its magic or a checksum is wrong."""
    magic, version, _, key_sum, hidden, size, offset, length, flags, sector = FIELDS.unpack_from(plain)
    keys = plain[KEYS:]
    if magic != MAGICS[kind] or zlib.crc32(keys) != key_sum:
        return None
    if version > 3 and zlib.crc32(plain[:CHECKED]) != int.from_bytes(plain[CHECKED:KEYS], "big"):
        return None
    return Header(place, cascade, version, hidden, size, offset or UNIT, length, flags, sector or UNIT, keys)
