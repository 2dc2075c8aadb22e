"""Headers of encrypted volumes, as functions of bytes: what they say is a layout inside the volume, or a KeyFault.

A checksum would keep a fuzzer out, so it is made right here, as whoever writes a hostile header does.
"""

import hashlib
import struct
import zlib
from contextlib import suppress

from mountsafe.encrypted import tcrypt, told, volumes
from mountsafe.encrypted.description import Form, Kind
from mountsafe.encrypted.faults import KeyFault
from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.volume import MAX_TAKEN, Volume
from mountsafe.medium.encryption import check
from tests import encrypted

SIZE = 4 << 20  # bytes of the volumes; zeros are behind what is given
# Iterations, and KiB, a second: told, so that no example waits for them to be measured.
SPEEDS = dict.fromkeys(["sha1", "sha256", "sha512", "ripemd160", "whirlpool", "argon2i", "argon2id"], 1e5)
SECONDS, MEMORY = 0.1, 1024


def _volume(data: bytes) -> Volume:
    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= SIZE - length
        assert 0 < length <= MAX_TAKEN
        return data[offset : offset + length].ljust(length, b"\0")

    return Volume(read, SIZE)


def _tried(data: bytes, kind: Kind | None, form: Form, secret: bytes) -> None:
    volume = _volume(data)
    with suppress(KeyFault):
        said = told.believed(volumes.describe(volume, None, kind))
        assert len(said.slots) <= 64
        assert said.title
    with suppress(KeyFault):
        budget = Budget(MEMORY, SECONDS, _speeds=dict(SPEEDS))
        opened = volumes.unlock(volume, None, kind, volumes.Secret(form, secret), budget)
        check(opened.layout, SIZE)
        assert len(opened.key) == opened.layout.key_size


def _luks2(text: bytes) -> bytes:
    """A LUKS2 header with a text for its JSON."""
    binary = struct.pack(
        ">6sHQQ48s32s64s40s48sQ184x64s",
        *(b"LUKS\xba\xbe", 2, 16384, 1, b"", b"sha256", b"", b"uuid", b"", 0, b""),
    )
    made = bytearray((binary + text[:12288]).ljust(16384, b"\0"))
    made[448:480] = hashlib.sha256(made).digest()
    return bytes(made)


def luks(data: bytes) -> None:
    """A header, or the JSON of one, is a layout inside the volume or a KeyFault; no time and memory is spent on it."""
    whole = _luks2(data[1:]) if data[:1] == b"\1" else data[1:]
    _tried(whole, Kind.LUKS, Form.PASSPHRASE, b"secret")


def bitlocker(data: bytes) -> None:
    """A boot sector, metadata or a startup key's file is a layout inside the volume or a KeyFault."""
    what, rest = data[:1], data[1:]
    if what == b"\1":
        _tried(encrypted.bitlocker(encrypted.with_sum(rest.ljust(128, b"\0"))), None, Form.CLEAR_KEY, b"")
    elif what == b"\2":
        _tried(encrypted.bitlocker(_METADATA), None, Form.BEK_FILE, rest)
    else:
        _tried(rest, Kind.BITLOCKER, Form.RECOVERY_KEY, rest)


def veracrypt(data: bytes) -> None:
    """A header that somebody with the password wrote lies inside the volume, or is refused."""
    plain = bytearray(data.ljust(448, b"\0")[:448])
    plain[:4] = b"VERA"
    struct.pack_into(">I", plain, 8, zlib.crc32(plain[192:]))
    struct.pack_into(">I", plain, 188, zlib.crc32(plain[:188]))
    found = tcrypt.parsed(bytes(plain), ("aes",), Kind.VERACRYPT, 0)
    assert found is not None
    for hidden in (False, True):
        with suppress(KeyFault):
            check(tcrypt.layout(found, SIZE, hidden), SIZE)


_METADATA = encrypted.metadata(
    encrypted.clear_protector(b"M" * 32) + encrypted.startup_protector(b"M" * 32), b"K" * 32, b"M" * 32
)
_END = _METADATA.rstrip(b"\0")
_JSON = (
    b'{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},'
    b'"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},'
    b'"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"c2FsdHNhbHRzYWx0"}}},"tokens":{},'
    b'"segments":{"0":{"type":"crypt","offset":"1048576","size":"dynamic","iv_tweak":"0",'
    b'"encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],'
    b'"segments":["0"],"hash":"sha256","iterations":1000,"salt":"c2FsdA==","digest":"ZGlnZXN0"}},'
    b'"config":{"json_size":"12288","keyslots_size":"1048576"}}'
)
_LUKS1 = struct.pack(
    ">6sH32s32s32sII20s32sI40s",
    *(b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 32, b"", b"", 1000, b"uuid"),
) + b"".join(
    struct.pack(">II32sII", 0x00AC71F3 if slot == 0 else 0xDEAD, 1000, b"salt", 8 + 256 * slot, 4000)
    for slot in range(8)
)

SEEDS: dict[str, list[bytes]] = {
    "luks": [
        b"\0" + _LUKS1,
        b"\1" + _JSON,
        b"\1"
        + _JSON.replace(b'"pbkdf2","hash":"sha256","iterations":1000,', b'"argon2id","time":4,"memory":512,"cpus":1,'),
        b"\0" + _luks2(_JSON)[:4200],
        b"\1" + b"[" * 5000,
    ],
    "bitlocker": [
        b"\0" + encrypted.bitlocker(b"")[:512],
        b"\1" + _END,
        b"\1"
        + encrypted.metadata(encrypted.clear_protector(b"M" * 32), b"K" * 64, b"M" * 32, 0x8000, 2, 99999).rstrip(
            b"\0"
        ),
        b"\2" + encrypted.bek(),
    ],
    "veracrypt": [
        encrypted.tcrypt_plain(bytes(range(64))),
        encrypted.tcrypt_plain(bytes(64), version=3, hidden=65536, offset=512),
    ],
}
TARGETS = {each.__name__: each for each in (luks, bitlocker, veracrypt)}
