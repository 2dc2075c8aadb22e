"""AES by OpenSSL's libcrypto, which Python itself is linked to: many sectors a call, in place.

Bindings of Python's make an object for each sector, which takes ten times as long as to decrypt it. Only what OpenSSL
documents is called (EVP_EncryptInit(3)); all lengths and addresses are those of a buffer that is held meanwhile.
"""

import ctypes
from itertools import repeat
from operator import mul
from typing import Any

# Not CDLL, which lets other threads run meanwhile: with a call for each sector that takes as long as the call.
_libcrypto = ctypes.PyDLL("libcrypto.so.3")
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_TYPES: dict[str, tuple[Any, ...]] = {
    "EVP_CIPHER_CTX_new": (),
    "EVP_CIPHER_CTX_free": (_POINTER,),
    "EVP_CIPHER_CTX_set_padding": (_POINTER, _INT),
    "EVP_CIPHER_fetch": (_POINTER, ctypes.c_char_p, ctypes.c_char_p),
    "EVP_CIPHER_free": (_POINTER,),
    "EVP_CipherInit_ex": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT),
    "EVP_CipherUpdate": (_POINTER, _POINTER, _POINTER, _POINTER, _INT),
}
BLOCK = 16


def _bound(name: str) -> Any:
    function = getattr(_libcrypto, name)
    function.argtypes = _TYPES[name]
    if name.endswith(("_new", "_fetch")):
        function.restype = _POINTER
    return function


_new, _free, _set_padding, _fetch, _free_cipher, _init, _update = map(_bound, _TYPES)


class CryptoError(Exception):
    """libcrypto does not do what it is documented to do, or has not what is needed of it."""


class Aes:
    """A mode of AES with its key. One thread at a time. OpenSSL wipes its copy of the key with the object."""

    _context = None

    def __init__(self, mode: str, key: bytes | bytearray, encrypt: bool = False) -> None:
        """`mode`: "ECB", "CBC" or "XTS", whose key is twice as long. Raises CryptoError."""
        self._name = f"AES-{len(key) * (4 if mode == 'XTS' else 8)}-{mode}"
        self._written = ctypes.c_int(0)
        self._written_at = ctypes.addressof(self._written)
        cipher = _fetch(None, self._name.encode(), None)
        context = self._context = _new()
        held = ctypes.create_string_buffer(bytes(key), len(key))
        try:
            ready = cipher and context and _init(context, cipher, None, ctypes.addressof(held), None, int(encrypt)) == 1
            if not ready or _set_padding(context, 0) != 1:
                raise CryptoError(f"no {self._name}")
        finally:
            ctypes.memset(held, 0, len(held))
            _free_cipher(cipher)

    def __del__(self) -> None:
        if self._context is not None:
            _free(self._context)

    def run(self, data: bytearray | memoryview) -> None:
        """Work on whole blocks, in place: by ECB, or by CBC that begins after a block of zeros."""
        if len(data) % BLOCK:
            raise ValueError("no whole blocks")
        start, where = ctypes.create_string_buffer(BLOCK), _held(data)
        at = ctypes.addressof(where)
        begun = _init(self._context, None, None, None, ctypes.addressof(start), -1)
        if begun != 1 or _update(self._context, at, self._written_at, at, len(data)) != 1:
            raise CryptoError(f"{self._name} failed")

    def sectors(self, data: bytearray | memoryview, size: int, vectors: bytearray) -> None:
        """Work on sectors of `size` bytes, in place, each with a vector of its own."""
        count = len(data) // size
        if len(data) % size or size % BLOCK or len(vectors) != count * BLOCK:
            raise ValueError("no whole sectors")
        where, vectors_held = _held(data), _held(vectors)
        at, vector = ctypes.addressof(where), ctypes.addressof(vectors_held)
        every = repeat(self._context)
        nothing: repeat[None] = repeat(None)
        places = range(at, at + len(data), size)
        # The loop is map's, which is faster than one of Python's.
        begun = map(_init, every, nothing, nothing, nothing, range(vector, vector + len(vectors), BLOCK), repeat(-1))
        done = map(_update, every, places, repeat(self._written_at), places, repeat(size))
        if sum(map(mul, begun, done)) != count:
            raise CryptoError(f"{self._name} failed")


def _held(buffer: bytearray | memoryview) -> Any:
    """Return what keeps a buffer where it is, for ctypes.addressof."""
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)
