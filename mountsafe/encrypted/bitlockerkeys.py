"""What opens a BitLocker volume: a password, a recovery key, a startup key's file, or a key that lies there clear.

Each opens a copy of the volume master key, and that the key of the sectors, both by AES-CCM: a wrong one is known by
its tag. Source: libbde's "BitLocker Drive Encryption (BDE) format specification".
"""

import hashlib
import re
import struct
import time
import uuid

from mountsafe.encrypted import gcrypt
from mountsafe.encrypted.bitlocker import ITERATIONS, PROTECTIONS, RECOVERY, Metadata, Protector, Type, entries, layout
from mountsafe.encrypted.description import Form
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.unlocking import Unlocked, first_that_opens
from mountsafe.medium.encryption import Cipher
from mountsafe.medium.libgcrypt import Mode

NONCE, TAG = 12, 16
KEY_HEADER = 12  # of a decrypted key: its size with this, two numbers, and the method
MAX_KEY = 512
MAX_PASSWORD = 4096  # bytes; Windows takes 256 characters
TRIED = 4096  # iterations that tell how fast this machine is
BEK_HEADER = 48
RECOVERY_KEY = re.compile(rb"\s*(\d{6})" + rb"[-\s]?(\d{6})" * 7 + rb"\s*")


def unlock(metadata: Metadata, size: int, form: Form, secret: bytes, budget: Budget) -> Unlocked:
    """Return what `secret` opens in a volume of `size` bytes. Raises KeyFault."""
    cipher, key_size = metadata.cipher()
    made = layout(metadata, size)  # before the time for a key is spent
    master = _with_any(metadata, _forms(metadata, form, secret), secret, budget)
    if metadata.volume_key is None:
        raise KeyFault(Fault.DAMAGED, "volume key")
    key = _opened(metadata.volume_key, master)
    if key is None:
        raise KeyFault(Fault.DAMAGED, "volume key")
    return Unlocked(made, _cut(key, cipher, key_size))


def _forms(metadata: Metadata, form: Form, secret: bytes) -> list[Form]:
    """Return what a secret may be: a recovery key is often typed where a password is asked for."""
    if form not in (Form.PASSPHRASE, Form.KEY_FILE):
        return [form]
    has_recovery = any(each.protection == RECOVERY for each in metadata.protectors)
    if has_recovery and RECOVERY_KEY.fullmatch(secret):
        return [Form.RECOVERY_KEY, Form.PASSPHRASE]
    return [Form.PASSPHRASE]


def _with_any(metadata: Metadata, forms: list[Form], secret: bytes, budget: Budget) -> bytes:
    """Return the master key that a secret opens as one of its forms. Raises the KeyFault of the last."""
    *others, last = forms
    for form in others:
        try:
            return _with(metadata, form, secret, budget)
        except KeyFault:
            continue
    return _with(metadata, last, secret, budget)


def _with(metadata: Metadata, form: Form, secret: bytes, budget: Budget) -> bytes:
    start = _start_key(form, secret)
    fitting = [each for each in metadata.protectors if PROTECTIONS.get(each.protection, ("", None))[1] is form]
    if form is Form.BEK_FILE:
        start, wanted = _bek(secret)
        fitting = [each for each in fitting if each.id == wanted] or fitting
    return first_that_opens(fitting, lambda each: _master(each, form, start, budget))


def _cut(key: bytes, cipher: Cipher, key_size: int) -> bytes:
    """Return the key as dm-crypt takes it: the tweak's of the diffuser lies 32 bytes behind the sectors'."""
    if cipher is Cipher.AES_ELEPHANT and len(key) == 64:
        half = key_size // 2
        return key[:half] + key[32 : 32 + half]
    if len(key) < key_size:
        raise KeyFault(Fault.DAMAGED, "volume key")
    return key[:key_size]


def _start_key(form: Form, secret: bytes) -> bytes:
    """Return what is stretched, of a password or recovery key; b"" for others. Raises KeyFault."""
    if form is Form.PASSPHRASE:
        if len(secret) > MAX_PASSWORD:
            raise KeyFault(Fault.SECRET_TOO_LONG)
        try:
            text = secret.decode("utf-8").encode("utf-16-le")
        except UnicodeError as error:
            raise KeyFault(Fault.NOT_TEXT) from error
        return hashlib.sha256(hashlib.sha256(text).digest()).digest()
    if form is Form.RECOVERY_KEY:
        return hashlib.sha256(recovery(secret)).digest()
    return b""


def recovery(secret: bytes) -> bytes:
    """Return the 16 bytes of a recovery key: eight numbers, each 11 times one of 16 bits. Raises KeyFault."""
    match = RECOVERY_KEY.fullmatch(secret)
    if match is None:
        raise KeyFault(Fault.NOT_A_RECOVERY_KEY)
    numbers = [int(group) for group in match.groups()]
    if any(number % 11 or number // 11 > 0xFFFF for number in numbers):
        raise KeyFault(Fault.NOT_A_RECOVERY_KEY)
    return struct.pack("<8H", *(number // 11 for number in numbers))


def _bek(secret: bytes) -> tuple[bytes, uuid.UUID]:
    """Return the key in a startup key's file, and the id of its protector. Raises KeyFault (NOT_A_KEY_FILE)."""
    try:
        size, version, header_size = struct.unpack_from("<III", secret)
        if (version, header_size) != (1, BEK_HEADER) or not BEK_HEADER <= size <= len(secret):
            raise KeyFault(Fault.NOT_A_KEY_FILE)
        for entry in entries(secret[BEK_HEADER:size]):
            if entry.type == Type.STARTUP_KEY and entry.kind == Type.EXTERNAL_KEY and len(entry.data) >= 24:
                for inside in entries(entry.data[24:]):
                    if inside.kind == Type.KEY and len(inside.data) == 4 + 32:
                        return inside.data[4:], uuid.UUID(bytes_le=entry.data[:16])
    except (struct.error, KeyFault) as error:
        raise KeyFault(Fault.NOT_A_KEY_FILE) from error
    raise KeyFault(Fault.NOT_A_KEY_FILE)


def _master(protector: Protector, form: Form, start: bytes, budget: Budget) -> bytes | None:
    key = start
    if form in (Form.PASSPHRASE, Form.RECOVERY_KEY):
        stretch = protector.first(Type.STRETCH_KEY)
        if stretch is None or len(stretch) < 20:
            raise KeyFault(Fault.DAMAGED, "protector")
        key = stretched(start, stretch[4:20], budget)
    elif form is Form.CLEAR_KEY:
        clear = protector.first(Type.KEY)
        if clear is None or len(clear) != 4 + 32:
            raise KeyFault(Fault.DAMAGED, "protector")
        key = clear[4:]
    sealed = protector.first(Type.ENCRYPTED_KEY)
    if sealed is None:
        raise KeyFault(Fault.DAMAGED, "protector")
    master = _opened(sealed, key)
    if master is not None and len(master) != 32:
        raise KeyFault(Fault.DAMAGED, "protector")
    return master


def _opened(sealed: bytes, key: bytes) -> bytes | None:
    """Return an encrypted key; None if `key` is not the one that it is encrypted with. Raises KeyFault (DAMAGED)."""
    nonce, tag, data = sealed[:NONCE], sealed[NONCE : NONCE + TAG], sealed[NONCE + TAG :]
    if not KEY_HEADER < len(data) <= MAX_KEY:
        raise KeyFault(Fault.DAMAGED, "encrypted key")
    with gcrypt.opened("aes", Mode.CCM, key) as cipher:
        plain = cipher.authentic(data, nonce, tag)
    if plain is None:
        return None
    if int.from_bytes(plain[:4], "little") != len(plain):
        raise KeyFault(Fault.DAMAGED, "encrypted key")
    return plain[KEY_HEADER:]


def stretched(start: bytes, salt: bytes, budget: Budget) -> bytes:
    """Return 2^20 rounds of SHA-256, each over the last digest, the first one, the salt and the round's number."""
    block = bytearray(32) + start + salt + bytes(8)
    begun = time.process_time()
    sha256 = hashlib.sha256
    for count in range(ITERATIONS):
        block[80:88] = count.to_bytes(8, "little")
        block[:32] = sha256(block).digest()
        if count == TRIED:
            budget.pay((time.process_time() - begun) * ITERATIONS / TRIED)
    return bytes(block[:32])
