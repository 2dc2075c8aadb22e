"""Encrypted volumes for tests: what cryptsetup makes of LUKS, and BitLocker's and VeraCrypt's headers made here.

Their ciphers are python3-cryptography's, which the code under test does not use.
"""

import hashlib
import json
import re
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.volume import Volume

SECRET = b"correct horse"
FAST = ("--pbkdf-force-iterations", "1000")
LUKS2 = ("--type", "luks2", "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "1m", "--offset", "4096")
FAST2 = (*LUKS2, "--pbkdf", "pbkdf2", *FAST)
SMALL = ("--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024", "--pbkdf-parallel", "1")


def volume(data: bytes | bytearray) -> Volume:
    """A volume of these bytes."""
    return Volume(lambda offset, length: bytes(data[offset : offset + length]), len(data))


def budget(memory: int = 64 << 10, seconds: float = 60.0) -> Budget:
    """What an unlocking in a test may take."""
    return Budget(memory, seconds)


# --- LUKS ------------------------------------------------------------------------------------------------------------
def cryptsetup(*arguments: str | Path, secret: bytes = SECRET) -> str:
    """Run cryptsetup with a secret on its standard input; return what it says."""
    command = ["cryptsetup", "-q", *map(str, arguments), "--key-file", "-"]
    return subprocess.run(command, input=secret, capture_output=True, check=True).stdout.decode()


def luks(path: Path, *options: str | Path, size: int = 3 << 20, secret: bytes = SECRET) -> Path:
    """Make a LUKS volume. `options` as of luksFormat."""
    with path.open("wb") as file:
        file.truncate(size)
    cryptsetup("luksFormat", *options, path, secret=secret)
    return path


def volume_key(path: Path, secret: bytes = SECRET) -> bytes:
    """Return the volume key that cryptsetup finds."""
    said = cryptsetup("luksDump", "--dump-master-key", path, secret=secret)
    return bytes.fromhex(re.sub(r"\s", "", said.partition("MK dump:")[2]))


def with_json(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return a LUKS2 volume whose JSON was changed in both copies; their checksums are right."""
    size = struct.unpack_from(">Q", data, 8)[0]
    told = json.loads(data[4096:size].partition(b"\0")[0])
    change(told)
    return with_text(data, json.dumps(told).encode())


def with_text(data: bytes, text: bytes, copies: Sequence[int] = (0, 1)) -> bytes:
    """Return a LUKS2 volume with another text in place of its JSON."""
    made = bytearray(data)
    size = struct.unpack_from(">Q", data, 8)[0]
    for copy in copies:
        start = copy * size
        made[start + 4096 : start + size] = text[: size - 4096].ljust(size - 4096, b"\0")
        made[start + 448 : start + 512] = bytes(64)
        made[start + 448 : start + 480] = hashlib.sha256(made[start : start + size]).digest()
    return bytes(made)


# --- BitLocker -------------------------------------------------------------------------------------------------------
NUMBERS = (235818, 357951, 253979, 13365, 241120, 245575, 342914, 591910)  # each 11 times another
RECOVERY_KEY = "-".join(f"{number:06}" for number in NUMBERS).encode()
PASSWORD = "Grüße £".encode()
STARTUP_ID = uuid.UUID(int=7)
AREAS, MOVED = (1 << 16, 4 << 16, 8 << 16), (2 << 16, 8192)
BITLOCKER_SIZE = 1 << 20


def entry(type_: int, kind: int, data: bytes) -> bytes:
    """An entry of BitLocker's metadata."""
    return struct.pack("<HHHH", 8 + len(data), type_, kind, 1) + data


def sealed(key: bytes, plain: bytes) -> bytes:
    """A key that is encrypted with another."""
    nonce = hashlib.sha256(key + plain).digest()[:12]
    blob = struct.pack("<IIHH", 12 + len(plain), 1, 0x2003, 0) + plain
    made = AESCCM(key, 16).encrypt(nonce, blob, None)
    return entry(0, 5, nonce + made[-16:] + made[:-16])


def stretched(start: bytes, salt: bytes) -> bytes:
    """BitLocker's derivation, from what it starts with."""
    last = bytes(32)
    for count in range(1 << 20):
        last = hashlib.sha256(last + start + salt + struct.pack("<Q", count)).digest()
    return last


def protector(number: int, protection: int, inside: bytes) -> bytes:
    """An entry with a copy of the master key."""
    return entry(2, 8, uuid.UUID(int=number).bytes_le + bytes(10) + struct.pack("<H", protection) + inside)


def clear_protector(master: bytes) -> bytes:
    """The protector whose key lies beside it."""
    return protector(1, 0, entry(0, 1, bytes(4) + b"c" * 32) + sealed(b"c" * 32, master))


def password_protector(master: bytes) -> bytes:
    """The protector that PASSWORD opens."""
    salt = b"0123456789abcdef"
    text = PASSWORD.decode().encode("utf-16-le")
    key = stretched(hashlib.sha256(hashlib.sha256(text).digest()).digest(), salt)
    return protector(6, 0x2000, entry(0, 3, bytes(4) + salt) + sealed(key, master))


def startup_protector(master: bytes) -> bytes:
    """The protector that `bek` opens."""
    return protector(STARTUP_ID.int, 0x0200, sealed(b"s" * 32, master))


def bek() -> bytes:
    """A startup key's file."""
    inside = entry(6, 9, STARTUP_ID.bytes_le + bytes(8) + entry(0, 1, bytes(4) + b"s" * 32))
    return struct.pack("<4I16s16x", 48 + len(inside), 1, 48, 48 + len(inside), STARTUP_ID.bytes_le) + inside


def metadata(
    protectors: bytes, key: bytes, master: bytes, method: int = 0x8004, state: int = 4, encrypted: int = BITLOCKER_SIZE
) -> bytes:
    """One copy of the metadata, with its checksum."""
    volume_key_entry = struct.pack("<HHHH", len(sealed(master, key)), 3, 5, 1) + sealed(master, key)[8:]
    entries = protectors + volume_key_entry + entry(7, 2, "PC C: \x1b[2J".encode("utf-16-le"))
    entries += entry(15, 15, struct.pack("<2Q", *MOVED))
    size = 48 + len(entries)
    units = -(-(64 + size) // 16)
    block = struct.pack("<8sHHHHQII3QQ", b"-FVE-FS-", units, 2, state, state, encrypted, 0, 16, *AREAS, MOVED[0])
    header = struct.pack("<IIII16sIHHQ", size, 1, 48, size, uuid.UUID(int=9).bytes_le, 0, method, 0, 133 * 10**15)
    return with_sum(block + header + entries)


def with_sum(raw: bytes) -> bytes:
    """Return a copy of the metadata with the checksum that its header's size asks for."""
    end = struct.unpack_from("<H", raw, 8)[0] * 16
    raw = raw.ljust(end, b"\0")[:end]
    return (raw + struct.pack("<HHI", 8, 1, zlib.crc32(raw))).ljust(65536, b"\0")


def bitlocker(
    raw: bytes,
    copies: Sequence[int] = (0, 1, 2),
    sector: int = 512,
    identifier: str = "4967d63b-2e29-4ad8-8399-f6a339e3d001",
) -> bytes:
    """A volume with these metadata, in some of the three places."""
    made = bytearray(BITLOCKER_SIZE)
    made[:13] = b"\xeb\x58\x90-FVE-FS-" + struct.pack("<H", sector)
    made[160:200] = uuid.UUID(identifier).bytes_le + struct.pack("<3Q", *AREAS)
    for copy in copies:
        made[AREAS[copy] : AREAS[copy] + len(raw)] = raw
    return bytes(made)


# --- VeraCrypt and TrueCrypt -----------------------------------------------------------------------------------------
TCRYPT_SIZE = 512 << 10


def xts(key: bytes, data: bytes, sector: int = 0) -> bytes:
    """AES-XTS, one sector of any size."""
    encryptor = Cipher(algorithms.AES(key), modes.XTS(sector.to_bytes(16, "little"))).encryptor()
    return encryptor.update(data)


def tcrypt_plain(
    keys: bytes, magic: bytes = b"VERA", version: int = 5, hidden: int = 0, offset: int = 131072, size: int = 128 << 10
) -> bytes:
    """The 448 bytes of a header before they are encrypted."""
    fixed = keys.ljust(256, b"\0")
    told = struct.pack(
        ">4sHHI16xQQQQII", magic, version, 0x10B, zlib.crc32(fixed), hidden, size, offset, size, 0, 512
    ).ljust(188, b"\0")
    return told + struct.pack(">I", zlib.crc32(told)) + fixed


def tcrypt_header(plain: bytes, secret: bytes, digest: str, iterations: int) -> bytes:
    """A header of 512 bytes."""
    salt = hashlib.sha512(secret + plain).digest()
    return salt + xts(hashlib.pbkdf2_hmac(digest, secret, salt, iterations, 64), plain)


def veracrypt(plain: bytes, secret: bytes, pim: int) -> bytes:
    """A volume whose plaintext is `plain`, as VeraCrypt makes one with AES and SHA-512."""
    keys = bytes(range(64))
    header = tcrypt_header(tcrypt_plain(keys, size=len(plain)), secret, "sha512", 15000 + 1000 * pim)
    sectors = (xts(keys, plain[at : at + 512], (131072 + at) // 512) for at in range(0, len(plain), 512))
    return (header + header).ljust(131072, b"\0") + b"".join(sectors) + header.ljust(131072, b"\0")


def tcrypt(headers: dict[int, bytes]) -> bytes:
    """A volume with these headers, by their places; negative ones are counted from the end."""
    made = bytearray(hashlib.shake_128(b"noise").digest(TCRYPT_SIZE))
    for place, header in headers.items():
        where = place % TCRYPT_SIZE
        made[where : where + 512] = header
    return bytes(made)
