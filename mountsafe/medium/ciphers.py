"""Decrypts many sectors a call, in place. AES does OpenSSL; what differs by sector is done for all at once by numpy.

XTS is AES between two additions of a tweak; each sector's first tweak is AES of its number, and the next ones are
multiples of it (IEEE 1619). CBC of many sectors is CBC of one, and then each first block is put right. Numbers and
initialization vectors are those of dm-crypt (drivers/md/dm-crypt.c): plain64, essiv, eboiv, and elephant, which are
BitLocker's (Ferguson, "AES-CBC + Elephant diffuser", 2006).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from mountsafe.medium.aes import BLOCK, Aes
from mountsafe.medium.encryption import Cipher, Layout
from mountsafe.medium.stacked import Decryptor

Words = NDArray[np.uint64]
CHUNK = 512 << 10  # bytes at a time, which stay in the processor's cache with their tweaks
FEW = 24  # sectors: as many are done by a call for each before numpy has begun
BETWEEN = 8  # words
LARGE = 2048  # bytes: to do a sector of so many takes OpenSSL longer than to call it


def decryptor(layout: Layout, key: bytearray) -> Decryptor:
    """Return what decrypts the sectors of a layout that was checked. `key` may be wiped: OpenSSL has a copy."""
    if layout.cipher is Cipher.AES_XTS:
        return Xts(layout, key)
    if layout.cipher is Cipher.AES_ELEPHANT:
        return Elephant(layout, key)
    return Cbc(layout, key)


class _Numbers:
    """The numbers of sectors that follow each other, as blocks of AES: 64 bits, little-endian, then zeros."""

    def __init__(self, layout: Layout, factor: int = 1) -> None:
        self.step = layout.sector // layout.iv_unit
        self._factor = factor

    def blocks(self, first: int, count: int) -> bytearray:
        made = bytearray(count * BLOCK)
        numbers = np.arange(count, dtype=np.uint64) * np.uint64(self.step) + np.uint64(first)
        np.frombuffer(made, "<u8")[::2] = numbers * np.uint64(self._factor)
        return made


class Xts:
    """AES-XTS: a tweak for each block, of the sector's number and the block's place in it."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        half = len(key) // 2
        self._sector = layout.sector
        self._numbers = _Numbers(layout)
        self._whole = Aes("XTS", key)
        self._tweak = Aes("ECB", key[half:], encrypt=True)
        self._blocks = Aes("ECB", key[:half])
        self._tweaks = _Tweaks(CHUNK // layout.sector, layout.sector // BLOCK)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first."""
        count = len(data) // self._sector
        if count <= FEW or self._sector >= LARGE:
            self._whole.sectors(data, self._sector, self._numbers.blocks(iv, count))
            return
        for at in range(0, len(data), CHUNK):
            chunk = data[at : at + CHUNK]
            self._decrypt(chunk, iv)
            iv += len(chunk) // self._sector * self._numbers.step

    def _decrypt(self, data: memoryview, iv: int) -> None:
        first = self._numbers.blocks(iv, len(data) // self._sector)
        self._tweak.run(first)
        tweaks = self._tweaks.of(first)
        words = np.frombuffer(data, np.uint64)
        words ^= tweaks
        self._blocks.run(data)
        words ^= tweaks


class _Tweaks:
    """Memory for the tweaks of up to `sectors` sectors of `blocks` blocks, and how they are made.

    For that, the halves of all of them are in a row for each block, so one call does it for all sectors. The rows are
    no power of two apart, or they would be in each other's place in the processor's cache; what is between them is
    worked on too, as numpy is fastest where nothing is left out.
    """

    def __init__(self, sectors: int, blocks: int) -> None:
        self._blocks = blocks
        self._low, self._high, self._over, self._spare = np.zeros((4, blocks * (sectors + BETWEEN)), "<u8")
        self._made = np.empty((sectors, blocks, 2), "<u8")

    def of(self, first: bytearray) -> Words:
        """Return the tweaks of sectors whose first ones are given. They are valid until the next call."""
        firsts = np.frombuffer(first, "<u8").reshape(-1, 2)
        count, row = len(firsts), len(firsts) + BETWEEN
        self._low[:count], self._high[:count] = firsts[:, 0], firsts[:, 1]
        done = 1
        while done < self._blocks:
            more = min(done, 32)  # what overflows has to fit in a word when it is multiplied by x^7
            self._multiply(done * row, more * row, more)
            done += more
        made = self._made[:count]
        for lane, half in enumerate((self._low, self._high)):
            made[:, :, lane] = half[: done * row].reshape(done, row)[:, :count].T
        return made.reshape(-1)

    def _multiply(self, end: int, length: int, by: int) -> None:
        """Add the last `length` words before `end` times x to the power of `by`, modulo x^128 + x^7 + x^2 + x + 1."""
        left, right = np.uint64(by), np.uint64(64 - by)
        last, new = slice(end - length, end), slice(end, end + length)
        last_low, last_high, low, high = self._low[last], self._high[last], self._low[new], self._high[new]
        over, spare = self._over[:length], self._spare[:length]
        np.left_shift(last_high, left, high)
        np.bitwise_or(high, np.right_shift(last_low, right, spare), high)
        np.right_shift(last_high, right, over)
        np.bitwise_xor(np.left_shift(last_low, left, low), over, low)
        for shift in (1, 2, 7):
            np.bitwise_xor(low, np.left_shift(over, np.uint64(shift), spare), low)


class Cbc:
    """AES-CBC, with what dm-crypt has for initialization vectors."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        self._sector = layout.sector
        self._aes = Aes("CBC", key)
        eboiv = layout.cipher in (Cipher.AES_CBC_EBOIV, Cipher.AES_ELEPHANT)
        self._numbers = _Numbers(layout, layout.sector if eboiv else 1)
        self._encrypted: Aes | None = None
        if eboiv:
            self._encrypted = Aes("ECB", key, encrypt=True)
        elif layout.cipher is Cipher.AES_CBC_ESSIV:
            self._encrypted = Aes("ECB", hashlib.sha256(key).digest(), encrypt=True)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first."""
        count = len(data) // self._sector
        vectors = self._numbers.blocks(iv, count)
        if self._encrypted is not None:
            self._encrypted.run(vectors)
        if count <= FEW:
            self._aes.sectors(data, self._sector, vectors)
            return
        wrong = np.frombuffer(vectors, np.uint64).reshape(count, 2)
        sectors = np.frombuffer(data, np.uint64).reshape(count, -1)
        wrong[1:] ^= sectors[:-1, -2:]  # the last block of the sector before, in place of the vector
        self._aes.run(data)
        sectors[:, :2] ^= wrong


class Elephant(Cbc):
    """AES-CBC, then two diffusers and a key for each sector. The second half of the key is for those."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        half = len(key) // 2
        super().__init__(layout, key[:half])
        self._sector_key = Aes("ECB", key[half:], encrypt=True)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place. `iv`: the number of the first."""
        super().decrypt(data, iv)
        count = len(data) // self._sector
        sectors = np.frombuffer(data, "<u4").reshape(count, -1)
        words = np.ascontiguousarray(sectors.T)  # a row for each word of a sector: all sectors at once
        _undo_b(words)
        _undo_a(words)
        sectors[:] = words.T
        keys = np.frombuffer(self._keys(iv, count), "<u4").reshape(count, 1, 8)
        sectors.reshape(count, -1, 8)[:] ^= keys

    def _keys(self, iv: int, count: int) -> bytearray:
        blocks = np.frombuffer(self._numbers.blocks(iv, count), np.uint8).reshape(count, BLOCK)
        both = np.stack([blocks, blocks], axis=1)
        both[:, 1, -1] = 0x80
        keys = bytearray(both.tobytes())
        self._sector_key.run(keys)
        return keys


def _rotated(words: NDArray[np.uint32], by: int) -> NDArray[np.uint32]:
    return words << np.uint32(by) | words >> np.uint32(32 - by)


def _undo_a(d: NDArray[np.uint32]) -> None:
    """d[i] += d[i - 2] ^ (d[i - 5] <<< 9, 0, 13, 0), one after the other, five times. Two do not need each other."""
    n = len(d)
    for _ in range(5):
        for i in range(0, n, 2):
            before = (i - 2) % n
            other = d[before : before + 2].copy()
            other[0] ^= _rotated(d[i - 5], 13 if i % 4 else 9)
            other[1] ^= d[i - 4]
            d[i : i + 2] += other


def _undo_b(d: NDArray[np.uint32]) -> None:
    """d[i] += d[i + 2] ^ (d[i + 5] <<< 0, 10, 0, 25), one after the other, three times.

    What comes later is as it was, so all but the last five, which reach around the end, are done at once.
    """
    n = len(d)
    for _ in range(3):
        other = d[5:].copy()
        for rest, by in ((1, 10), (3, 25)):
            other[rest::4] = _rotated(other[rest::4], by)
        other ^= d[2:-3]
        d[:-5] += other
        for i in range(n - 5, n):
            by = (0, 10, 0, 25)[i % 4]
            other = d[i + 5 - n]
            d[i] += d[(i + 2) % n] ^ (_rotated(other, by) if by else other)
