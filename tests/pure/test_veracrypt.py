"""VeraCrypt's and TrueCrypt's headers, made by other code than what reads them."""

import random
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest

from mountsafe.encrypted import gcrypt, tcrypt, volumes
from mountsafe.encrypted.description import Form, Kind
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.unlocking import Unlocked
from mountsafe.medium.encryption import Cipher, Layout, Segment, SegmentKind, check
from mountsafe.medium.libgcrypt import Mode
from tests import encrypted
from tests.encrypted import SECRET, TCRYPT_SIZE, budget, volume

KEYS = bytes(range(64))
PIM = 1  # 16,000 iterations; of argon2id, 3 passes over 64 MiB
FILES = (b"a key file", bytes(range(256)) * 9)


def header(digest: str = "sha512", secret: bytes = SECRET, iterations: int = 16_000, **how: Any) -> bytes:
    return encrypted.tcrypt_header(encrypted.tcrypt_plain(KEYS, **how), secret, digest, iterations)


def unlock(data: bytes, kind: Kind = Kind.VERACRYPT, secret: bytes = SECRET, **how: Any) -> Unlocked:
    given = volumes.Secret(Form.PASSPHRASE, secret, **({"pim": PIM} if kind is Kind.VERACRYPT else {}) | how)
    opened = volumes.unlock(volume(data), None, kind, given, budget(memory=1 << 20))
    check(opened.layout, len(data))
    return opened


def fault_of(data: bytes, **how: Any) -> Fault:
    with pytest.raises(KeyFault) as failure:
        unlock(data, **how)
    return failure.value.fault


def layout(offset: int, size: int) -> Layout:
    segment = Segment(0, size, SegmentKind.CRYPT, offset, offset // 512)
    return Layout(Cipher.AES_XTS, 64, 512, 512, size, (segment,))


@pytest.mark.parametrize("digest", ["sha512", "sha256", "blake2s"])
def test_each_digest_opens(digest: str) -> None:
    opened = unlock(encrypted.tcrypt({0: header(digest)}))
    assert opened.key == KEYS
    assert opened.layout == layout(131072, 128 << 10)


def test_a_wrong_key_is_told() -> None:
    """Every digest was tried at both places, argon2id too."""
    data = encrypted.tcrypt({0: header()})
    assert fault_of(data, secret=b"wrong") is Fault.WRONG_KEY
    assert fault_of(data, kind=Kind.TRUECRYPT) is Fault.WRONG_KEY


def test_the_copy_at_the_end_does_where_the_first_is_gone() -> None:
    assert unlock(encrypted.tcrypt({-131072: header()})).key == KEYS


def test_a_hidden_volume_has_its_own_header_and_copy() -> None:
    inner = header(secret=b"inner", hidden=65536, offset=300 << 10, size=65536)
    for place in (65536, -65536):
        data = encrypted.tcrypt({0: header(), place: inner})
        assert unlock(data).layout == layout(131072, 128 << 10)
        assert unlock(data, secret=b"inner", hidden=True).layout == layout(300 << 10, 65536)
    assert fault_of(encrypted.tcrypt({0: header()}), hidden=True) is Fault.WRONG_KEY


@pytest.mark.parametrize(("digest", "iterations"), [("ripemd160", 2000), ("sha512", 1000)])
def test_truecrypt_has_other_words_and_fewer_iterations(digest: str, iterations: int) -> None:
    data = encrypted.tcrypt({0: header(digest, iterations=iterations, magic=b"TRUE")})
    assert unlock(data, Kind.TRUECRYPT).key == KEYS
    assert fault_of(data, kind=Kind.TRUECRYPT, pim=5) is Fault.KDF


def test_key_files_are_mixed_in_whatever_their_order() -> None:
    for password in (SECRET, b"", b"p" * 72):
        mixed = tcrypt.mixed(Kind.VERACRYPT, password, FILES)
        assert len(mixed) == (128 if len(password) > 64 else 64)
        data = encrypted.tcrypt({0: header(secret=mixed)})
        assert unlock(data, secret=password, keyfiles=FILES).key == KEYS
        assert unlock(data, secret=password, keyfiles=FILES[::-1]).key == KEYS
    assert tcrypt.mixed(Kind.VERACRYPT, b"", [b"\0"]) == b"\x2d\xfd\x10\x72".ljust(64, b"\0")


def test_a_password_has_a_bound() -> None:
    data = encrypted.tcrypt({0: header()})
    assert fault_of(data, secret=b"x" * 129) is Fault.SECRET_TOO_LONG
    assert fault_of(data, kind=Kind.TRUECRYPT, secret=b"x" * 65) is Fault.SECRET_TOO_LONG
    assert fault_of(data, pim=1 << 40) is Fault.KDF


@pytest.mark.parametrize("names", tcrypt.CASCADES)
def test_each_cascade_has_its_keys(names: tuple[str, ...]) -> None:
    """All keys of the data come first in a header, and then all those of the tweaks."""
    many = len(names)
    keys = bytes(range(64 * many))
    key = tcrypt.Derivation("sha512", 16_000).key(budget(), SECRET, bytes(64), 192)
    sealed = bytearray(encrypted.tcrypt_plain(keys))
    for number, name in enumerate(names):
        with gcrypt.opened(name, Mode.XTS, tcrypt.xts_key(key, many, number)) as cipher:
            sealed[:] = cipher.encrypt(bytes(sealed), bytes(16))
    opened = unlock(encrypted.tcrypt({0: bytes(64) + sealed}))
    assert opened.layout.cipher == f"{'-'.join(names)}-xts-plain64"
    parts = [keys[at : at + 32] for at in range(0, len(keys), 32)]
    assert opened.key == b"".join(parts[number] + parts[many + number] for number in range(many))


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ({"offset": TCRYPT_SIZE}, Fault.CUT_OFF),
        ({"size": 1 << 40}, Fault.CUT_OFF),
        ({"offset": 1 << 63}, Fault.CUT_OFF),
        ({"offset": 131073}, Fault.DAMAGED),
        ({"size": 0}, Fault.DAMAGED),
    ],
)
def test_a_header_that_lies_is_refused(how: dict[str, Any], fault: Fault) -> None:
    assert fault_of(encrypted.tcrypt({0: header(**how)})) is fault


def test_a_volume_without_room_for_a_header() -> None:
    with pytest.raises(KeyFault) as failure:
        unlock(b"x" * 100)
    assert failure.value.fault is Fault.CUT_OFF


def test_nothing_is_known_without_a_key() -> None:
    said = volumes.describe(volume(encrypted.tcrypt({0: header()})), None, Kind.VERACRYPT)
    assert (said.title, said.cipher, said.slots) == ("VeraCrypt", "", ())


def test_mutated_headers_lie_inside_or_are_refused() -> None:
    """Whoever knows the password may write any header, with right checksums."""
    chance = random.Random("mountsafe tcrypt")
    believed = 0
    for _ in range(3000):
        plain = bytearray(encrypted.tcrypt_plain(KEYS, version=chance.choice([2, 3, 4, 5]), hidden=65536))
        for at in chance.choices(range(28, 68), k=3):
            plain[at] = chance.choice([0, 0, 1, 2, 0x7F, 0xFF])
        struct.pack_into(">I", plain, 188, zlib.crc32(plain[:188]))
        found = tcrypt.parsed(bytes(plain), ("aes",), Kind.VERACRYPT, 0)
        assert found is not None
        for hidden in (False, True):
            with suppress(KeyFault):
                check(tcrypt.layout(found, TCRYPT_SIZE, hidden), TCRYPT_SIZE)
                believed += 1
    assert believed > 100
