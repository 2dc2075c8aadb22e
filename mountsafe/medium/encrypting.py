"""Encrypts what `mountsafe.medium.ciphers` decrypts, for writing: whole sectors, in place.

Fewer bytes are written than read, so one call for each sector is fast enough. The numbers are the same.
"""

from typing import Protocol

from mountsafe.medium.aes import Aes, BlockCipher, Sectors
from mountsafe.medium.ciphers import Cascade, Cbc, Ecb, Elephant, Xts, spread
from mountsafe.medium.encryption import Cipher, Layout, cascade
from mountsafe.medium.libgcrypt import Mode
from mountsafe.medium.stacked import Decryptor


class BothWays(Decryptor, Protocol):
    """A cipher with its key, to read and to write. One thread at a time."""

    def encrypt(self, data: memoryview, iv: int) -> None:
        """Encrypt whole sectors, in place. `iv`: the number of the first, in the layout's units."""


def both_ways(layout: Layout, key: bytearray) -> BothWays:
    """Return what decrypts and encrypts the sectors of a layout that was checked. `key` may be wiped."""
    if names := cascade(layout.cipher):
        return WritingXts(layout, key) if len(names) == 1 else WritingCascade(layout, key)
    if layout.cipher is Cipher.AES_ECB:
        return WritingEcb(layout, key)
    if layout.cipher is Cipher.AES_ELEPHANT:
        return WritingElephant(layout, key)
    return WritingCbc(layout, key)


class WritingXts(Xts):
    """XTS both ways."""

    def __init__(self, layout: Layout, key: bytearray, name: str = "") -> None:
        super().__init__(layout, key, name)
        cipher = BlockCipher(name or cascade(layout.cipher)[0], Mode.XTS, key, encrypt=True)
        self._encrypting = Sectors(cipher, layout.sector)

    def encrypt(self, data: memoryview, iv: int) -> None:
        """Encrypt whole sectors, in place. `iv`: the number of the first."""
        self._encrypting.run(data, self._vectors(data, iv))


class WritingEcb(Ecb):
    """AES, each block for itself, both ways."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        super().__init__(layout, key)
        self._encrypting = Aes(Mode.ECB, key, encrypt=True)

    def encrypt(self, data: memoryview, iv: int) -> None:
        """Encrypt whole sectors, in place, whatever their numbers."""
        if len(data) % self._sector:
            raise ValueError("no whole sectors")
        self._encrypting.run(data)


class WritingCascade(Cascade[WritingXts]):
    """XTS by one cipher after the other, both ways."""

    one = WritingXts

    def encrypt(self, data: memoryview, iv: int) -> None:
        """Encrypt whole sectors, in place. `iv`: the number of the first."""
        for each in reversed(self._each):
            each.encrypt(data, iv)


class WritingCbc(Cbc):
    """AES-CBC both ways."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        super().__init__(layout, key)
        self._encrypting = Sectors(Aes(Mode.CBC, key, encrypt=True), layout.sector)

    def encrypt(self, data: memoryview, iv: int) -> None:
        """Encrypt whole sectors, in place. `iv`: the number of the first."""
        self._encrypting.run(data, self._vectors(iv, len(data) // self._sector))


class WritingElephant(Elephant):
    """AES-CBC with its diffusers, both ways: the sector's key, the diffusers backwards, and CBC."""

    def __init__(self, layout: Layout, key: bytearray) -> None:
        super().__init__(layout, key)
        self._encrypting = Sectors(Aes(Mode.CBC, key[: len(key) // 2], encrypt=True), layout.sector)

    def encrypt(self, data: memoryview, iv: int) -> None:
        """Encrypt whole sectors, in place. `iv`: the number of the first."""
        count, row = len(data) // self._sector, self._sector // 4
        if len(data) % self._sector:
            raise ValueError("no whole sectors")
        words = data.cast("B").cast("I")
        keys = self._keys(iv, count)
        columns = [spread(words[place::row]) ^ keys[place % 8] for place in range(row)]
        low = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * count, "little")
        above = int.from_bytes(b"\0\0\0\0\1\0\0\0" * count, "little")
        _do_a(columns, low, above)
        _do_b(columns, low, above)
        for place, column in enumerate(columns):
            words[place::row] = memoryview(column.to_bytes(8 * count, "little")).cast("I")[::2]
        self._encrypting.run(data, self._vectors(iv, count))


def _undone(d: list[int], i: int, two: int, five: int, by: int, low: int, above: int) -> int:
    """Return the words d[i] - (d[two] ^ (d[five] <<< by)); `above`: a bit above each word, to be borrowed."""
    other = d[five]
    return d[i] + above - (d[two] ^ (other << by | other >> 32 - by) & low) & low


def _do_a(d: list[int], low: int, above: int) -> None:
    """d[i] -= d[i - 2] ^ (d[i - 5] <<< 9, 0, 13, 0), from the last one to the first, five times."""
    for i in [*reversed(range(len(d)))] * 5:
        d[i] = _undone(d, i, i - 2, i - 5, (9, 0, 13, 0)[i % 4], low, above)


def _do_b(d: list[int], low: int, above: int) -> None:
    """d[i] -= d[i + 2] ^ (d[i + 5] <<< 0, 10, 0, 25), from the last one to the first, three times."""
    n = len(d)
    for i in [*reversed(range(n))] * 3:
        d[i] = _undone(d, i, (i + 2) % n, (i + 5) % n, (0, 10, 0, 25)[i % 4], low, above)
