"""Decrypts many sectors a call. AES by OpenSSL for all of them at once; what differs by sector, by numpy.

XTS is AES between two additions of a tweak; each sector's first tweak is AES of its number, and the next ones are
multiples of it (IEEE 1619). CBC of many sectors is CBC of one, and then each first block is put right. Numbers and
initialization vectors are those of dm-crypt (drivers/md/dm-crypt.c): plain64, essiv, eboiv, and elephant, which are
BitLocker's (Ferguson, "AES-CBC + Elephant diffuser", 2006).
"""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher as Aes
from cryptography.hazmat.primitives.ciphers import CipherContext, algorithms, modes
from numpy.typing import NDArray

from mountsafe.medium.encryption import Cipher, Layout
from mountsafe.medium.stacked import Decryptor

Words = NDArray[np.uint64]
BLOCK = 16
CHUNK = 128 << 10  # bytes at a time, which stay in the processor's cache with their tweaks


def decryptor(layout: Layout, key: bytearray) -> Decryptor:
    """Return what decrypts the sectors of a layout that was checked. `key` is not kept: OpenSSL has a copy."""
    if layout.cipher is Cipher.AES_XTS:
        return Xts(layout, key)
    if layout.cipher is Cipher.AES_ELEPHANT:
        return Elephant(layout, key)
    return Cbc(layout, key)


def _ecb(key: bytes | bytearray) -> CipherContext:
    return Aes(algorithms.AES(bytes(key)), modes.ECB()).encryptor()


class _Numbers:
    """The numbers of sectors that follow each other, as blocks of AES: 64 bits, little-endian, then zeros."""

    def __init__(self, step: int, factor: int = 1) -> None:
        self._step = np.uint64(step)
        self._factor = np.uint64(factor)

    def blocks(self, first: int, count: int) -> bytes:
        made = np.zeros((count, 2), "<u8")
        made[:, 0] = (np.arange(count, dtype=np.uint64) * self._step + np.uint64(first)) * self._factor
        return made.tobytes()


class Xts:
    """AES-XTS: a tweak for each block, of the sector's number and the block's place in it."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        half = len(key) // 2
        self._sector = layout.sector
        self._numbers = _Numbers(layout.sector // layout.iv_unit)
        self._tweak = _ecb(key[half:])
        self._data = Aes(algorithms.AES(bytes(key[:half])), modes.ECB()).decryptor()
        self._most = CHUNK // layout.sector  # sectors at a time
        self._low = np.empty((layout.sector // BLOCK, self._most), np.uint64)
        self._high = np.empty_like(self._low)
        self._spare = np.empty((32, self._most), np.uint64)
        self._tweaks = np.empty((self._most, layout.sector // BLOCK, 2), np.uint64)
        self._plain = bytearray(CHUNK + BLOCK)

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place."""
        step = CHUNK // self._sector * int(self._numbers._step)
        for at in range(0, len(data), CHUNK):
            self._decrypt(data[at : at + CHUNK], iv)
            iv += step

    def _decrypt(self, data: memoryview, iv: int) -> None:
        count = len(data) // self._sector
        tweaks = self._made(iv, count)
        words = np.frombuffer(data, np.uint64)
        words ^= tweaks
        self._data.update_into(data, self._plain)  # type: ignore[arg-type]
        np.bitwise_xor(np.frombuffer(self._plain, np.uint64, len(words)), tweaks, words)

    def _made(self, iv: int, count: int) -> Words:
        first = np.frombuffer(self._tweak.update(self._numbers.blocks(iv, count)), "<u8").reshape(count, 2)
        low, high = self._low[:, :count], self._high[:, :count]
        low[0], high[0] = first[:, 0], first[:, 1]
        done, blocks = 1, len(low)
        while done < blocks:
            more = min(done, 32)
            self._multiply(low, high, done, more)
            done += more
        made = self._tweaks[:count]
        made[:, :, 0], made[:, :, 1] = low.T, high.T
        return made.reshape(-1)

    def _multiply(self, low: Words, high: Words, done: int, by: int) -> None:
        """Make the next `by` rows: the last ones times x to the power of `by`, modulo x^128 + x^7 + x^2 + x + 1."""
        last, new = slice(done - by, done), slice(done, done + by)
        left, right = np.uint64(by), np.uint64(64 - by)
        spare = self._spare[:by, : low.shape[1]]
        np.left_shift(high[last], left, out=high[new])
        np.right_shift(low[last], right, out=spare)
        high[new] |= spare
        over = high[last] >> right
        np.left_shift(low[last], left, out=low[new])
        low[new] ^= over
        for shift in (1, 2, 7):
            np.left_shift(over, np.uint64(shift), out=spare)
            low[new] ^= spare


class Cbc:
    """AES-CBC, with what dm-crypt has for initialization vectors."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        self._sector = layout.sector
        self._aes = algorithms.AES(bytes(key))
        eboiv = layout.cipher in (Cipher.AES_CBC_EBOIV, Cipher.AES_ELEPHANT)
        self._numbers = _Numbers(layout.sector // layout.iv_unit, layout.sector if eboiv else 1)
        self._encrypted: CipherContext | None = None
        if eboiv:
            self._encrypted = _ecb(key)
        elif layout.cipher is Cipher.AES_CBC_ESSIV:
            self._encrypted = _ecb(hashlib.sha256(key).digest())
        self._plain = bytearray()

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place."""
        if len(self._plain) < len(data) + BLOCK:
            self._plain = bytearray(len(data) + BLOCK)
        count = len(data) // self._sector
        vectors = self._numbers.blocks(iv, count)
        if self._encrypted is not None:
            vectors = self._encrypted.update(vectors)
        wrong = np.frombuffer(vectors, np.uint64).reshape(count, 2).copy()
        sectors = np.frombuffer(data, np.uint64).reshape(count, -1)
        wrong[1:] ^= sectors[:-1, -2:]  # the last block of the sector before, in place of the vector
        Aes(self._aes, modes.CBC(bytes(BLOCK))).decryptor().update_into(data, self._plain)  # type: ignore[arg-type]
        sectors.reshape(-1)[:] = np.frombuffer(self._plain, np.uint64, sectors.size)
        sectors[:, :2] ^= wrong


class Elephant(Cbc):
    """AES-CBC, then two diffusers and a key for each sector. The second half of the key is for those."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        half = len(key) // 2
        super().__init__(layout, key[:half])
        self._sector_key = _ecb(key[half:])

    def decrypt(self, data: memoryview, iv: int) -> None:
        """Decrypt whole sectors, in place."""
        super().decrypt(data, iv)
        count = len(data) // self._sector
        sectors = np.frombuffer(data, "<u4").reshape(count, -1)
        words = np.ascontiguousarray(sectors.T)  # a row for each word of a sector: all sectors at once
        _undo_b(words)
        _undo_a(words)
        sectors[:] = words.T
        keys = np.frombuffer(self._keys(iv, count), "<u4").reshape(count, 1, 8)
        sectors.reshape(count, -1, 8)[:] ^= keys

    def _keys(self, iv: int, count: int) -> bytes:
        blocks = np.frombuffer(self._numbers.blocks(iv, count), np.uint8).reshape(count, BLOCK)
        both = np.stack([blocks, blocks], axis=1)
        both[:, 1, -1] = 0x80
        return self._sector_key.update(both.tobytes())


def _rotated(words: NDArray[np.uint32], by: int) -> NDArray[np.uint32]:
    return words << np.uint32(by) | words >> np.uint32(32 - by) if by else words


def _undo_a(d: NDArray[np.uint32]) -> None:
    """d[i] += d[i - 2] ^ (d[i - 5] <<< 9, 0, 13, 0), one after the other, five times."""
    for _ in range(5):
        for i in range(len(d)):
            d[i] += d[i - 2] ^ _rotated(d[i - 5], (9, 0, 13, 0)[i % 4])


def _undo_b(d: NDArray[np.uint32]) -> None:
    """d[i] += d[i + 2] ^ (d[i + 5] <<< 0, 10, 0, 25), one after the other, three times."""
    n = len(d)
    for _ in range(3):
        for i in range(n):
            d[i] += d[(i + 2) % n] ^ _rotated(d[(i + 5) % n], (0, 10, 0, 25)[i % 4])
