"""Encrypted images for tests: cryptsetup(8) makes the header, and the plaintext is encrypted here, without a device."""

import re
import struct
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PASSPHRASE = b"correct horse"
QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")  # what is derived is not what is tested


def luks(
    plain: bytes,
    path: Path,
    *options: str,
    passphrase: bytes = PASSPHRASE,
    version: int = 2,
    sector: int = 512,
) -> Path:
    """Write an image whose plaintext is `plain`. `options`: of luksFormat, QUICK if none is given."""
    whole = -(-len(plain) // sector) * sector
    with path.open("wb") as file:
        file.truncate((16 << 20) + whole)
    size = ("--sector-size", str(sector)) if version == 2 else ()
    command = ["cryptsetup", "luksFormat", "-q", "--type", f"luks{version}", *(options or QUICK), *size]
    subprocess.run([*command, "--key-file", "-", path], input=passphrase, check=True, timeout=120)
    key, payload = volume_key(path, passphrase)
    with path.open("r+b") as file:
        file.truncate(payload + whole)
        file.seek(payload)
        file.write(encrypted(plain.ljust(whole, b"\0"), key, sector))
    return path


def volume_key(path: Path, passphrase: bytes = PASSPHRASE) -> tuple[bytes, int]:
    """Return the volume key, as cryptsetup has it, and where the payload begins, in bytes."""
    command = ["cryptsetup", "luksDump", "-q", "--dump-volume-key", "--key-file", "-", str(path)]
    told = subprocess.run(command, input=passphrase, check=True, capture_output=True, timeout=120).stdout.decode()
    key = bytes.fromhex(re.sub(r"\s", "", told[told.index("MK dump:") + 8 :]))
    at = re.search(r"Payload offset:\s*(\d+)", told)
    assert at is not None
    return key, int(at[1]) * 512


def encrypted(plain: bytes, key: bytes, sector: int, start: int = 0) -> bytes:
    """Return what aes-xts-plain64 makes of whole sectors, which it counts in 512 bytes; `start`: where they begin."""
    made = bytearray()
    for at in range(0, len(plain), sector):
        made += _cipher(key, start + at).encryptor().update(plain[at : at + sector])
    return bytes(made)


def decrypted(data: bytes, key: bytes, sector: int) -> bytes:
    """Return what whole sectors were encrypted from."""
    made = bytearray()
    for at in range(0, len(data), sector):
        made += _cipher(key, at).decryptor().update(data[at : at + sector])
    return bytes(made)


def _cipher(key: bytes, at: int) -> "Cipher[modes.XTS]":
    return Cipher(algorithms.AES(key), modes.XTS(struct.pack("<QQ", at // 512, 0)))
