"""libgcrypt by ctypes: ciphers, modes and digests of volumes that Python and its cryptography do not have together.

One library has AES, Serpent, Twofish, Camellia, XTS, CBC and CCM, and PBKDF2 over Whirlpool and Streebog, which OpenSSL
3 has in its legacy provider or not at all. systemd and GnuPG need it as well, so it is there. Keys and texts here are
headers and key slots, of some hundred KiB: speed is no matter, but for PBKDF2. Source: the manual of libgcrypt 1.10.
"""

import ctypes
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from mountsafe.medium.libgcrypt import Mode, begun, cipher_number

_PBKDF2 = 34  # enum gcry_kdf_algos
_CCM_LENGTHS = 69  # GCRYCTL_SET_CCM_LENGTHS
# enum gcry_md_algos, by the names of the kernel and of hashlib, with the size in bytes
DIGESTS = {
    "sha1": (2, 20),
    "ripemd160": (3, 20),
    "sha224": (11, 28),
    "sha256": (8, 32),
    "sha384": (9, 48),
    "sha512": (10, 64),
    "whirlpool": (305, 64),
    "streebog512": (310, 64),
    "blake2b": (318, 64),
    "blake2s": (322, 32),
}
_HASHLIB = ("sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "blake2s")


class GcryptError(Exception):
    """libgcrypt refused: a cipher, digest or size that it does not have, or a tag that is wrong."""


@cache
def _library() -> ctypes.CDLL:
    library = begun(ctypes.CDLL)
    for name in ("setkey", "setiv"):
        getattr(library, f"gcry_cipher_{name}").argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    for name in ("encrypt", "decrypt"):
        getattr(library, f"gcry_cipher_{name}").argtypes = [
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
        ]
    library.gcry_cipher_ctl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    library.gcry_cipher_checktag.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    library.gcry_cipher_close.argtypes = [ctypes.c_void_p]
    library.gcry_cipher_close.restype = None
    library.gcry_kdf_derive.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t),
        *(ctypes.c_ulong, ctypes.c_size_t, ctypes.c_char_p),
    ]
    library.gcry_md_hash_buffer.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    library.gcry_md_hash_buffer.restype = None
    return library


def load() -> None:
    """Load the library: before a process gives up its paths. Raises OSError if it is not there."""
    _library()


def _good(error: int) -> None:
    if error:
        raise GcryptError(f"libgcrypt: error {error & 0xFFFF}")


class Cipher:
    """A cipher with a key. Use `opened`, which closes it."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle

    def _run(self, name: str, data: bytes, iv: bytes | None) -> bytes:
        library = _library()
        if iv is not None:
            _good(library.gcry_cipher_setiv(self._handle, iv, len(iv)))
        made = ctypes.create_string_buffer(len(data))
        _good(getattr(library, f"gcry_cipher_{name}")(self._handle, made, len(data), data, len(data)))
        return made.raw

    def encrypt(self, data: bytes, iv: bytes | None = None) -> bytes:
        """Return whole blocks, encrypted."""
        return self._run("encrypt", data, iv)

    def decrypt(self, data: bytes, iv: bytes | None = None) -> bytes:
        """Return whole blocks, decrypted."""
        return self._run("decrypt", data, iv)

    def authentic(self, data: bytes, nonce: bytes, tag: bytes) -> bytes | None:
        """Return what CCM has encrypted; None if the tag is another."""
        library = _library()
        _good(library.gcry_cipher_setiv(self._handle, nonce, len(nonce)))
        lengths = (ctypes.c_uint64 * 3)(len(data), 0, len(tag))
        _good(library.gcry_cipher_ctl(self._handle, _CCM_LENGTHS, ctypes.cast(lengths, ctypes.c_char_p), 24))
        made = self._run("decrypt", data, None)
        return None if library.gcry_cipher_checktag(self._handle, tag, len(tag)) else made


@contextmanager
def opened(name: str, mode: Mode, key: bytes) -> Iterator[Cipher]:
    """Give a cipher by its name with its key, of XTS both. Raises GcryptError if there is none of that size."""
    number = cipher_number(name, mode, len(key))
    if number is None:
        raise GcryptError(f"no {name} with a key of {len(key)} bytes")
    library = _library()
    handle = ctypes.c_void_p()
    _good(library.gcry_cipher_open(ctypes.byref(handle), number, int(mode), 0))
    try:
        _good(library.gcry_cipher_setkey(handle, key, len(key)))
        yield Cipher(handle)
    finally:
        library.gcry_cipher_close(handle)


def digest(name: str, data: bytes) -> bytes:
    """Return a digest. Raises GcryptError if there is none of that name."""
    if name in _HASHLIB:
        return hashlib.new(name, data, usedforsecurity=True).digest()
    number, size = _digest(name)
    made = ctypes.create_string_buffer(size)
    _library().gcry_md_hash_buffer(number, made, data, len(data))
    return made.raw


def digest_size(name: str) -> int:
    """Return a digest's bytes. Raises GcryptError if there is none of that name."""
    return _digest(name)[1]


def _digest(name: str) -> tuple[int, int]:
    if name not in DIGESTS:
        raise GcryptError(f"no digest {name}")
    return DIGESTS[name]


def pbkdf2(name: str, secret: bytes, salt: bytes, iterations: int, size: int) -> bytes:
    """Return `size` bytes of PBKDF2 with HMAC of a digest; both libraries let other threads run meanwhile."""
    if name in _HASHLIB:  # twice as fast
        return hashlib.pbkdf2_hmac(name, secret, salt, iterations, size)
    made = ctypes.create_string_buffer(size)
    number = _digest(name)[0]
    _good(_library().gcry_kdf_derive(secret, len(secret), _PBKDF2, number, salt, len(salt), iterations, size, made))
    return made.raw
