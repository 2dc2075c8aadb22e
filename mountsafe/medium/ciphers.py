"""Decrypts many sectors in one call, in place: blocks by libgcrypt, the rest by Python, for all sectors at once.

CBC of many sectors is CBC of one, after which each sector's first block is corrected. Numbers and initialization
vectors are those of dm-crypt (drivers/md/dm-crypt.c): plain64, essiv, eboiv, and elephant, which are BitLocker's
(Ferguson, "AES-CBC + Elephant diffuser", 2006).
"""

import hashlib
from array import array
from collections.abc import Iterable
from typing import Generic, TypeVar

from mountsafe.medium.aes import BLOCK, Aes, BlockCipher, Sectors
from mountsafe.medium.encryption import Cipher, Layout, cascade
from mountsafe.medium.libgcrypt import Mode
from mountsafe.medium.stacked import Decryptor

WORD, WORD_BITS = 8, (1 << 64) - 1
FEW = 8  # sectors: so many are done by a call for each before what all of them need has begun


def decryptor(layout: Layout, key: bytearray) -> Decryptor:
    """Return what decrypts the sectors of a layout that was checked. `key` may be wiped: libgcrypt has a copy."""
    if names := cascade(layout.cipher):
        return Xts(layout, key) if len(names) == 1 else XtsCascade(layout, key)
    if layout.cipher is Cipher.AES_ECB:
        return Ecb(layout, key)
    if layout.cipher is Cipher.AES_ELEPHANT:
        return Elephant(layout, key)
    return Cbc(layout, key)


class _Numbers:
    """The numbers of sectors that follow each other, as blocks of AES: 64 bits, little-endian, then zeros."""

    def __init__(self, layout: Layout, factor: int = 1) -> None:
        self.step = layout.sector // layout.iv_unit * factor
        self._factor = factor

    def blocks(self, first: int, count: int) -> bytearray:
        at = first * self._factor & WORD_BITS
        numbers: Iterable[int] = range(at, at + count * self.step, self.step)
        if at + count * self.step > WORD_BITS:
            numbers = (number & WORD_BITS for number in numbers)
        made = bytearray(count * BLOCK)
        memoryview(made).cast("Q")[::2] = memoryview(array("Q", numbers))
        return made


class Xts:
    """XTS with the sector's number for a tweak. `name`: of the cipher, if there is another than the layout's."""

    def __init__(self, layout: Layout, key: bytearray, name: str = "") -> None:
        self._sector = layout.sector
        self._numbers = _Numbers(layout)
        self._sectors = Sectors(BlockCipher(name or cascade(layout.cipher)[0], Mode.XTS, key), layout.sector)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first."""
        self._sectors.run(data, self._vectors(data, iv))

    def _vectors(self, data: memoryview, iv: int) -> bytearray:
        count = 1 if self._numbers.step == 1 else len(data) // self._sector  # libgcrypt counts by one
        return self._numbers.blocks(iv, count)


X = TypeVar("X", bound=Xts)


class Ecb:
    """AES, each block for itself."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        self._sector = layout.sector
        self._aes = Aes(Mode.ECB, key)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place, whatever their numbers."""
        if len(data) % self._sector:
            raise ValueError("no whole sectors")
        self._aes.run(data)


class Cascade(Generic[X]):
    """XTS by one cipher after the other, as VeraCrypt has it. The key has the keys of each, in the order of names."""

    one: type[X]

    def __init__(self, layout: Layout, key: bytearray) -> None:
        names = cascade(layout.cipher)
        part = len(key) // len(names)
        parts = [key[part * number : part * (number + 1)] for number in range(len(names))]
        self._each = [self.one(layout, part, name) for name, part in zip(names, parts, strict=True)][::-1]
        for each in parts:
            each[:] = bytes(part)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first."""
        for each in self._each:
            each.decrypt(data, iv)


class XtsCascade(Cascade[Xts]):
    """A cascade to read."""

    one = Xts


class Cbc:
    """AES-CBC, with what dm-crypt has for initialization vectors."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        self._sector = layout.sector
        self._aes = Aes(Mode.CBC, key)
        self._sectors = Sectors(self._aes, layout.sector)
        eboiv = layout.cipher in (Cipher.AES_CBC_EBOIV, Cipher.AES_ELEPHANT)
        self._numbers = _Numbers(layout, layout.sector if eboiv else 1)
        self._encrypted: Aes | None = None
        if eboiv:
            self._encrypted = Aes(Mode.ECB, key, encrypt=True)
        elif layout.cipher is Cipher.AES_CBC_ESSIV:
            self._encrypted = Aes(Mode.ECB, hashlib.sha256(key).digest(), encrypt=True)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first."""
        count = len(data) // self._sector
        vectors = self._vectors(iv, count)
        if count <= FEW:
            self._sectors.run(data, vectors)
        else:
            self._at_once(data, vectors)

    def _vectors(self, iv: int, count: int) -> bytearray:
        vectors = self._numbers.blocks(iv, count)
        if self._encrypted is not None:
            self._encrypted.run(vectors)
        return vectors

    def _at_once(self, data: memoryview, vectors: bytearray) -> None:
        """Decrypt as if it were one sector: each first block then has the last one before it in place of its vector."""
        words, row = data.cast("B").cast("Q"), self._sector // WORD
        wanted = memoryview(vectors).cast("Q")
        wrong = [_number(wanted[lane + 2 :: 2]) ^ _number(words[row - 2 + lane : -row : row]) for lane in (0, 1)]
        self._aes.run(data, bytes(vectors[:BLOCK]))
        for lane in (0, 1):
            first = words[row + lane :: row]
            right = (_number(first) ^ wrong[lane]).to_bytes(len(first) * WORD, "little")
            first[:] = memoryview(right).cast("Q")


def _number(words: memoryview) -> int:
    return int.from_bytes(words.tobytes(), "little")


class Elephant(Cbc):
    """AES-CBC, then two diffusers and a key for each sector. The second half of the key is for those.

    The diffusers work on a sector's words one after the other. Here an integer has that word of all sectors, each in 64
    bits so that nothing carries into the next.
    """

    def __init__(self, layout: Layout, key: bytearray) -> None:
        half = len(key) // 2
        super().__init__(layout, key[:half])
        self._sector_key = Aes(Mode.ECB, key[half:], encrypt=True)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first."""
        super().decrypt(data, iv)
        count, row = len(data) // self._sector, self._sector // 4
        words = data.cast("B").cast("I")
        low = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * count, "little")
        columns = [spread(words[place::row]) for place in range(row)]
        _undo_b(columns, low)
        _undo_a(columns, low)
        keys = self._keys(iv, count)
        for place, column in enumerate(columns):
            done = (column ^ keys[place % 8]).to_bytes(8 * count, "little")
            words[place::row] = memoryview(done).cast("I")[::2]

    def _keys(self, iv: int, count: int) -> list[int]:
        """Return the eight words of each sector's key, spread."""
        numbers = self._numbers.blocks(iv, count)
        halves = []
        for last in (0, 0x80):
            numbers[BLOCK - 1 :: BLOCK] = bytes([last]) * count
            half = bytearray(numbers)
            self._sector_key.run(half)
            halves.append(memoryview(half).cast("I"))
        return [spread(half[place::4]) for half in halves for place in range(4)]


def spread(words: memoryview) -> int:
    """Return an integer with a word in each 64 bits."""
    made = bytearray(8 * len(words))
    memoryview(made).cast("I")[::2] = words
    return int.from_bytes(made, "little")


def _undo_a(d: list[int], low: int) -> None:
    """d[i] += d[i - 2] ^ (d[i - 5] <<< 9, 0, 13, 0), one after the other, five times."""
    for _ in range(5):
        for i in range(0, len(d), 2):
            by = 13 if i % 4 else 9
            other = d[i - 5]
            d[i] = d[i] + (d[i - 2] ^ (other << by | other >> 32 - by) & low) & low
            d[i + 1] = d[i + 1] + (d[i - 1] ^ d[i - 4]) & low


def _undo_b(d: list[int], low: int) -> None:
    """d[i] += d[i + 2] ^ (d[i + 5] <<< 0, 10, 0, 25), one after the other, three times."""
    n = len(d)
    for _ in range(3):
        for i in range(0, n, 2):
            by = 25 if i % 4 else 10
            d[i] = d[i] + (d[(i + 2) % n] ^ d[(i + 5) % n]) & low
            other = d[(i + 6) % n]
            d[i + 1] = d[i + 1] + (d[(i + 3) % n] ^ (other << by | other >> 32 - by) & low) & low
