"""Bulk decryption: the standard's vectors, and at random the same as another library makes, one sector at a time."""

import hashlib
import os
import random
import struct

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as Theirs
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from mountsafe.medium import aes, ciphers
from mountsafe.medium.aes import Aes, BlockCipher, CryptoError
from mountsafe.medium.ciphers import decryptor
from mountsafe.medium.encrypting import both_ways
from mountsafe.medium.encryption import KEY_SIZES, SECTORS, UNIT, Cipher, Layout, cascade
from mountsafe.medium.libgcrypt import Mode

WORD = 0xFFFFFFFF
AES = [cipher for cipher in Cipher if cascade(cipher) in ((), ("aes",))]  # the other library has XTS of no other


def layout(cipher: Cipher, key: bytes, sector: int = 512, iv_unit: int = 512) -> Layout:
    return Layout(cipher, len(key), sector, iv_unit, sector, ())


def decrypted(made: Layout, key: bytes, data: bytes, iv: int) -> bytes:
    buffer = bytearray(data)
    decryptor(made, bytearray(key)).decrypt(memoryview(buffer), iv)
    return bytes(buffer)


# --- what others say -------------------------------------------------------------------------------------------------
def ecb(key: bytes, block: bytes) -> bytes:
    return Theirs(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def diffused(data: bytes, key: bytes, place: int) -> bytes:
    """Undo Elephant as its paper has it, a word at a time."""
    words = list(struct.unpack(f"<{len(data) // 4}I", data))
    n = len(words)
    for cycles, two, five, rotations in ((3, 2, 5, (0, 10, 0, 25)), (5, -2, -5, (9, 0, 13, 0))):
        for i in range(cycles * n):
            other, by = words[(i + five) % n], rotations[i % 4]
            rotated = (other << by | other >> (32 - by)) & WORD
            words[i % n] = (words[i % n] + (words[(i + two) % n] ^ rotated)) & WORD
    number = struct.pack("<QQ", place, 0)
    sector_key = ecb(key, number) + ecb(key, number[:15] + b"\x80")
    mask = sector_key * (len(data) // 32)
    return bytes(one ^ other for one, other in zip(struct.pack(f"<{n}I", *words), mask, strict=True))


def one_sector(cipher: Cipher, key: bytes, data: bytes, iv: int) -> bytes:
    number = iv.to_bytes(16, "little")
    place = iv * len(data) % (1 << 64)
    if cipher is Cipher.AES_ECB:
        return Theirs(algorithms.AES(key), modes.ECB()).decryptor().update(data)
    if cipher is Cipher.AES_XTS:
        return Theirs(algorithms.AES(key), modes.XTS(number)).decryptor().update(data)
    if cipher is Cipher.AES_ELEPHANT:
        half = len(key) // 2
        return diffused(one_sector(Cipher.AES_CBC_EBOIV, key[:half], data, iv), key[half:], place)
    if cipher is Cipher.AES_CBC_ESSIV:
        number = ecb(hashlib.sha256(key).digest(), number)
    if cipher is Cipher.AES_CBC_EBOIV:
        number = ecb(key, place.to_bytes(16, "little"))
    return Theirs(algorithms.AES(key), modes.CBC(number)).decryptor().update(data)


def by_sector(made: Layout, key: bytes, data: bytes, iv: int) -> bytes:
    step = made.sector // made.iv_unit
    places = range(0, len(data), made.sector)
    return b"".join(
        one_sector(made.cipher, key, data[at : at + made.sector], iv + number * step)
        for number, at in enumerate(places)
    )


# --- vectors ---------------------------------------------------------------------------------------------------------
PLAIN = bytes(range(256)) * 2
# IEEE 1619-2007, annex B: vectors 4 and 10.
XTS_128 = (
    bytes.fromhex("2718281828459045235360287471352631415926535897932384626433832795"),
    0,
    "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f560000",
    "05279fa5d8b5e4ad40e736ddb4d35412328063fd2aab53e5ea1e0a9f332500a5df9487d07a5c92cc512c8866c7e860ce",
)
XTS_256 = (
    bytes.fromhex(
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592"
    ),
    0xFF,
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44",
    "680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0",
)


@pytest.mark.parametrize(("key", "number", "begin", "more"), [XTS_128, XTS_256], ids=["aes-128", "aes-256"])
def test_vectors_of_the_standard(key: bytes, number: int, begin: str, more: str) -> None:
    """A vector's plaintext is what its ciphertext gives: as much of it as stands here, at the sector's begin.

    Three times in the same buffer, which is then worked on otherwise than one that is new.
    """
    told = bytes.fromhex(begin + more)
    using = decryptor(layout(Cipher.AES_XTS, key), bytearray(key))
    buffer = bytearray(512)
    for _ in range(3):
        buffer[: len(told)] = told
        using.decrypt(memoryview(buffer), number)
        assert buffer[: len(told)] == PLAIN[: len(told)]


def test_cbc_of_nist() -> None:
    """SP 800-38A, F.2.6, of which the vector is the initialization vector's: by plain64 it would be the number."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    data = bytearray.fromhex("f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d")
    Aes(Mode.CBC, key).run(data, bytes(range(16)))
    assert data.hex() == "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"


# --- at random -------------------------------------------------------------------------------------------------------
SHAPES = [(cipher, size, sector) for cipher in AES for size in KEY_SIZES[cipher] for sector in SECTORS]


@pytest.mark.parametrize(("cipher", "size", "sector"), SHAPES)
def test_many_sectors_are_what_each_of_them_is(cipher: Cipher, size: int, sector: int) -> None:
    chance = random.Random(f"{cipher} {size} {sector}")
    for iv_unit in sorted({UNIT, sector}):
        key = chance.randbytes(size)
        made = layout(cipher, key, sector, iv_unit)
        for count in (1, ciphers.FEW, ciphers.FEW + 1, chance.randrange(10, 40)):
            if cipher is Cipher.AES_ELEPHANT and count * sector > 10_000:
                count = 10_000 // sector  # the other one is slow
            data = chance.randbytes(count * sector)
            iv = chance.choice([0, 1, chance.randrange(1 << 40), (1 << 63) - 1])
            assert decrypted(made, key, data, iv) == by_sector(made, key, data, iv)


@pytest.mark.parametrize("cipher", AES)
def test_a_key_serves_many_calls(cipher: Cipher) -> None:
    """Nothing of a call is left for the next one."""
    chance = random.Random(str(cipher))
    key = chance.randbytes(max(KEY_SIZES[cipher]))
    made = layout(cipher, key)
    using = decryptor(made, bytearray(key))
    for count in (20, 1, 3, 20, 2):
        data, iv = chance.randbytes(count * 512), chance.randrange(1 << 30)
        buffer = bytearray(data)
        using.decrypt(memoryview(buffer), iv)
        assert bytes(buffer) == by_sector(made, key, data, iv)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("cipher", [cipher for cipher in AES if cipher is not Cipher.AES_ELEPHANT])
def test_a_buffer_may_be_used_again(cipher: Cipher, sector: int) -> None:
    """With more and fewer sectors, with others of its places, and with a buffer of another place in between."""
    chance = random.Random(f"{cipher} {sector}")
    key = chance.randbytes(max(KEY_SIZES[cipher]))
    made = layout(cipher, key, sector)
    using = both_ways(made, bytearray(key))
    many = (aes.CHUNK + 40 * 4096) // sector
    held, other = bytearray(aes.MOST_KEPT + 4096), bytearray(sector * 3)
    for first, count in ((0, 3), (0, many), (0, 3), (0, many), (2, 9), (2, 12), (0, 5), (0, len(held) // sector)):
        data, iv = chance.randbytes(count * sector), chance.randrange(1 << 30)
        part = memoryview(held)[first * sector : (first + count) * sector]
        before = bytes(held[len(part) + first * sector :])
        part[:] = data
        using.decrypt(part, iv)
        plain = bytes(part)
        few = min(count, many) * sector  # the other library is slow
        assert plain[:few] == by_sector(made, key, data[:few], iv)
        assert held[len(part) + first * sector :] == before
        using.decrypt(memoryview(other), iv)
        using.encrypt(part, iv)
        assert bytes(part) == data
    for number in range(3):
        other[:] = bytes(len(other))
        using.decrypt(memoryview(other), number)
        assert other == by_sector(made, key, bytes(len(other)), number)


@pytest.mark.parametrize("cipher", AES)
def test_a_part_of_a_buffer_leaves_the_rest(cipher: Cipher) -> None:
    key = random.Random(1).randbytes(max(KEY_SIZES[cipher]))
    buffer = bytearray(os.urandom(20 * 512))
    before = bytes(buffer)
    decryptor(layout(cipher, key), bytearray(key)).decrypt(memoryview(buffer)[512 : 15 * 512], 7)
    assert buffer[:512] == before[:512]
    assert buffer[15 * 512 :] == before[15 * 512 :]
    assert buffer[512 : 15 * 512] == by_sector(layout(cipher, key), key, before[512 : 15 * 512], 7)


def test_a_key_may_be_wiped_when_it_is_taken() -> None:
    for cipher in AES:
        key = os.urandom(max(KEY_SIZES[cipher]))
        held = bytearray(key)
        using = decryptor(layout(cipher, key), held)
        held[:] = bytes(len(held))
        data = bytearray(512)
        using.decrypt(memoryview(data), 5)
        assert bytes(data) == by_sector(layout(cipher, key), key, bytes(512), 5)


def test_two_equal_halves_of_a_key_are_a_key() -> None:
    """What a header says is not ours to judge: its owner has data under it."""
    key = os.urandom(32) * 2
    using = decryptor(layout(Cipher.AES_XTS, key), bytearray(key))
    using.decrypt(memoryview(bytearray(512)), 0)


@pytest.mark.parametrize("length", [1, 511, 513, 1000])
@pytest.mark.parametrize("cipher", AES)
def test_no_half_of_a_sector(cipher: Cipher, length: int) -> None:
    """Whoever asks for one has a fault, and nothing beside the buffer is touched."""
    key = os.urandom(max(KEY_SIZES[cipher]))
    with pytest.raises((ValueError, CryptoError)):
        decryptor(layout(cipher, key), bytearray(key)).decrypt(memoryview(bytearray(length)), 0)


def test_what_is_read_only_is_not_written() -> None:
    key = os.urandom(64)
    with pytest.raises(TypeError):
        decryptor(layout(Cipher.AES_XTS, key), bytearray(key)).decrypt(memoryview(bytes(512)), 0)


@pytest.mark.parametrize("cipher", [cipher for cipher in Cipher if cipher not in AES])
def test_a_cascade_is_each_of_its_ciphers(cipher: Cipher) -> None:
    """What libgcrypt encrypts by one cipher after the other, the first being the innermost, is decrypted."""
    names, [*_, size] = cascade(cipher), KEY_SIZES[cipher]
    key, plain = random.Random(cipher).randbytes(size), random.Random(1).randbytes(4096)
    data = bytearray(plain)
    part = size // len(names)
    for number, name in enumerate(names):
        for sector in range(8):
            place = memoryview(data)[sector * 512 : (sector + 1) * 512]
            encrypt = BlockCipher(name, Mode.XTS, key[part * number : part * (number + 1)], encrypt=True)
            encrypt.run(place, (256 + sector).to_bytes(16, "little"))
    assert decrypted(layout(cipher, key), key, bytes(data), 256) == plain
    assert decrypted(layout(cipher, key), key, bytes(data[512:1024]), 257) == plain[512:1024]


def test_twofish_is_its_authors() -> None:
    """The first of the known answers that were published with it."""
    block = bytearray(16)
    BlockCipher("twofish", Mode.ECB, bytes(16), encrypt=True).run(block)
    assert block.hex() == "9f589f5cf6122c32b6bfec2f2ae8c35a"


# --- the other way ---------------------------------------------------------------------------------------------------
EVERY = [(cipher, size, sector) for cipher in Cipher for size in KEY_SIZES[cipher] for sector in SECTORS]


@pytest.mark.parametrize(("cipher", "size", "sector"), EVERY)
def test_what_is_encrypted_is_decrypted_to_the_same(cipher: Cipher, size: int, sector: int) -> None:
    """By ourselves, and where there is another library also by that."""
    chance = random.Random(f"{cipher} {size} {sector}")
    for iv_unit in sorted({UNIT, sector}):
        key = chance.randbytes(size)
        made = layout(cipher, key, sector, iv_unit)
        using = both_ways(made, bytearray(key))
        for count in (1, ciphers.FEW + 1):
            plain, iv = chance.randbytes(count * sector), chance.choice([0, chance.randrange(1 << 40), (1 << 63) - 1])
            data = bytearray(b"begin" + plain + b"end")
            using.encrypt(memoryview(data)[5:-3], iv)
            assert (data[:5], data[-3:]) == (b"begin", b"end")
            encrypted = bytes(data[5:-3])
            assert encrypted != plain
            assert decrypted(made, key, encrypted, iv) == plain
            if cipher in AES and (cipher is not Cipher.AES_ELEPHANT or count * sector <= 10_000):
                assert by_sector(made, key, encrypted, iv) == plain
            again = bytearray(encrypted)
            using.decrypt(memoryview(again), iv)
            using.encrypt(memoryview(again), iv)
            assert again == encrypted


@pytest.mark.parametrize("cipher", Cipher)
def test_no_half_of_a_sector_is_encrypted(cipher: Cipher) -> None:
    key = os.urandom(max(KEY_SIZES[cipher]))
    with pytest.raises((ValueError, CryptoError)):
        both_ways(layout(cipher, key), bytearray(key)).encrypt(memoryview(bytearray(513)), 0)
