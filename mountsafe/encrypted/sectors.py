"""Ciphers of header areas, by dm-crypt's names: "aes-xts-plain64" is the cipher, its mode, and how IVs are made.

Everything that libgcrypt has is read here; what a volume's plaintext is encrypted with is `medium.encryption.Cipher`,
which has less. Source: the kernel's Documentation/admin-guide/device-mapper/dm-crypt.rst.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mountsafe.encrypted import gcrypt
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.medium.encryption import KEY_SIZES, UNIT, Cipher
from mountsafe.medium.libgcrypt import Mode

MAX_SECTORS_OF_PLAIN = 1 << 32  # "plain" cuts the number to 32 bits: up to there it is "plain64"
_MODES = {"xts": Mode.XTS, "cbc": Mode.CBC, "ecb": Mode.ECB}
_PAYLOADS = (
    *(Cipher.AES_XTS, Cipher.SERPENT_XTS, Cipher.TWOFISH_XTS, Cipher.CAMELLIA_XTS),
    *(Cipher.AES_CBC_PLAIN, Cipher.AES_CBC_ESSIV, Cipher.AES_ECB),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """A cipher's name in its parts: "aes", "cbc", "essiv:sha256"."""

    cipher: str
    mode: str
    iv: str

    @classmethod
    def parse(cls, name: str) -> "Spec":
        """Read a name. Raises KeyFault (CIPHER)."""
        parts = name.split("-")
        if parts[1:] == ["ecb"]:
            parts.append("null")
        if len(parts) != 3 or not all(parts):
            raise KeyFault(Fault.CIPHER, name)
        return cls(*parts)

    @property
    def name(self) -> str:
        """The name."""
        return f"{self.cipher}-{self.mode}-{self.iv}"


def payload_cipher(name: str, key_size: int, size: int) -> Cipher:
    """Return the cipher of a plaintext of `size` bytes. Raises KeyFault (CIPHER) for one that is not decrypted here."""
    if name.endswith("-plain") and size // UNIT <= MAX_SECTORS_OF_PLAIN:
        name += "64"
    cipher = next((each for each in _PAYLOADS if each == name), None)
    if cipher is None or key_size not in KEY_SIZES[cipher]:
        raise KeyFault(Fault.CIPHER, f"{name}, {8 * key_size} bits")
    return cipher


def decrypt_area(spec: Spec, key: bytes, data: bytes) -> bytes:
    """Return whole sectors of 512 bytes, numbered from 0, decrypted. Raises KeyFault (CIPHER)."""
    try:
        with gcrypt.opened(spec.cipher, _mode(spec), key) as cipher:
            ivs = _ivs(spec, key)
            return b"".join(cipher.decrypt(data[at : at + UNIT], ivs(at // UNIT)) for at in range(0, len(data), UNIT))
    except gcrypt.GcryptError as error:
        raise KeyFault(Fault.CIPHER, spec.name) from error


def _mode(spec: Spec) -> Mode:
    if spec.mode not in _MODES:
        raise KeyFault(Fault.CIPHER, spec.name)
    return _MODES[spec.mode]


def _ivs(spec: Spec, key: bytes) -> Callable[[int], bytes | None]:
    kind, _, parameter = spec.iv.partition(":")
    if spec.mode == "ecb":
        return lambda _: None
    if kind == "plain64" or kind == "plain":  # no area has 2^32 sectors
        return lambda number: number.to_bytes(16, "little")
    if kind == "essiv":
        essiv_key = gcrypt.digest({"wp256": "whirlpool"}.get(parameter, parameter), key)
        if parameter == "wp256":
            essiv_key = essiv_key[:32]
        return lambda number: _ecb(spec.cipher, essiv_key, number.to_bytes(16, "little"))
    raise KeyFault(Fault.CIPHER, spec.name)


def _ecb(name: str, key: bytes, block: bytes) -> bytes:
    with gcrypt.opened(name, Mode.ECB, key) as cipher:
        return cipher.encrypt(block)
