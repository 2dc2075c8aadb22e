"""AES, and the other ciphers of 128-bit blocks, by libgcrypt, in place: a call for all blocks, or one for each sector.

Every Debian has it, because systemd and apt need it. Bindings of Python's make an object for each sector, which takes
ten times as long as to decrypt it; OpenSSL's takes two calls for each, and twice as long. Only what its manual says is
called (https://gnupg.org/documentation/manuals/gcrypt/); every length is that of a buffer which is held meanwhile.
"""

import ctypes
from enum import IntEnum
from itertools import chain, repeat
from typing import Any

# Not CDLL, which lets other threads run meanwhile: with a call for each sector that takes as long as the call.
_gcrypt = ctypes.PyDLL("libgcrypt.so.20")
_POINTER, _INT, _SIZE, _ERROR = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint
DISABLE_SECURE_MEMORY, INITIALIZATION_FINISHED = (
    37,
    38,
)  # gcrypt.h: it cannot be locked in a box, and nothing is swapped
CIPHERS = {  # gcrypt.h, by bytes of the key
    "aes": {16: 7, 24: 8, 32: 9},
    "serpent": {16: 304, 24: 305, 32: 306},
    "twofish": {16: 303, 32: 10},
    "camellia": {16: 310, 24: 311, 32: 312},
}
BLOCK = 16


class Mode(IntEnum):
    """How blocks depend on each other; the numbers are those of gcrypt.h."""

    ECB = 1
    CBC = 3
    XTS = 13  # its key is twice as long


class CryptoError(Exception):
    """libgcrypt does not do what it is documented to do, or has not what is needed of it."""


def _bound(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_gcrypt, name)
    function.restype, function.argtypes = result, arguments
    return function


_open = _bound("gcry_cipher_open", _ERROR, _POINTER, _INT, _INT, _INT)
_close = _bound("gcry_cipher_close", None, _POINTER)
_setkey = _bound("gcry_cipher_setkey", _ERROR, _POINTER, _POINTER, _SIZE)
_setiv = _bound("gcry_cipher_setiv", _ERROR, _POINTER, _POINTER, _SIZE)
_encrypt = _bound("gcry_cipher_encrypt", _ERROR, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE)
_decrypt = _bound("gcry_cipher_decrypt", _ERROR, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE)
_bound("gcry_check_version", ctypes.c_char_p, ctypes.c_char_p)(None)
_control = _bound("gcry_control", _ERROR, _INT, _INT)
_control(DISABLE_SECURE_MEMORY, 0)
_control(INITIALIZATION_FINISHED, 0)


class BlockCipher:
    """A mode of a cipher with its key. One thread at a time. libgcrypt wipes its copy of the key with the object."""

    _handle = None

    def __init__(self, name: str, mode: Mode, key: bytes | bytearray, encrypt: bool = False) -> None:
        """Raise CryptoError if there is no such cipher."""
        handle = _POINTER()
        size = len(key) // 2 if mode is Mode.XTS else len(key)
        number = CIPHERS[name].get(size)
        if number is None or _open(ctypes.addressof(handle), number, mode, 0):
            raise CryptoError(f"no {name} of {8 * size} bits")
        self._handle = handle.value
        held = (ctypes.c_char * len(key)).from_buffer_copy(key)
        failed = _setkey(self._handle, ctypes.addressof(held), len(key))
        ctypes.memset(held, 0, len(key))
        if failed:
            raise CryptoError("a key that is not taken")
        self._work = _encrypt if encrypt else _decrypt

    def __del__(self) -> None:
        if self._handle is not None:
            _close(self._handle)

    def run(self, data: bytearray | memoryview, vector: bytes | None = None) -> None:
        """Work on whole blocks, in place. `vector`: that of the first of them."""
        if len(data) % BLOCK or (vector is not None and len(vector) != BLOCK):
            raise ValueError("no whole blocks")
        held, started = _held(data), ctypes.create_string_buffer(vector or b"", BLOCK)
        failed = vector is not None and _setiv(self._handle, ctypes.addressof(started), BLOCK)
        if failed or self._work(self._handle, ctypes.addressof(held), len(data), None, 0):
            raise CryptoError("the cipher failed")

    def sectors(self, data: bytearray | memoryview, size: int, vectors: bytes | bytearray) -> None:
        """Work on sectors of `size` bytes, in place. `vectors`: of each, or by XTS of the first; then they count on."""
        count = len(data) // size
        if len(data) % size or size % BLOCK or len(vectors) not in (BLOCK, count * BLOCK):
            raise ValueError("no whole sectors")
        held, vectors_held = _held(data), (ctypes.c_char * len(vectors)).from_buffer_copy(vectors)
        at, vector = ctypes.addressof(held), ctypes.addressof(vectors_held)
        # The loop is map's, which is faster than one of Python's. A call returns 0, or what went wrong.
        handle = repeat(self._handle)
        starts = map(_setiv, handle, range(vector, vector + len(vectors), BLOCK), repeat(BLOCK))
        done = map(self._work, handle, range(at, at + len(data), size), repeat(size), repeat(None), repeat(0))
        steps = chain(starts, done) if len(vectors) == BLOCK else chain.from_iterable(zip(starts, done, strict=True))
        if any(steps):
            raise CryptoError("the cipher failed")


class Aes(BlockCipher):
    """A mode of AES with its key."""

    def __init__(self, mode: Mode, key: bytes | bytearray, encrypt: bool = False) -> None:
        """Raise CryptoError if there is no such cipher."""
        super().__init__("aes", mode, key, encrypt)


def _held(buffer: bytearray | memoryview) -> Any:
    """Return what keeps a buffer where it is, for ctypes.addressof."""
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)
