"""AES, and other ciphers of 128-bit blocks, by libgcrypt, in place: one call for all blocks, or one for each sector.

Python's bindings make an object for each sector, which takes ten times as long as decrypting it; OpenSSL's take two
calls for each, and twice as long. Only what libgcrypt's manual describes is called
(https://gnupg.org/documentation/manuals/gcrypt/); every length is that of a buffer which is held meanwhile.

Decrypting 512 bytes takes less time than converting five arguments to C. So they are converted once, by `from_param`,
and each call takes them as they are.
"""

import ctypes
from itertools import chain, repeat
from typing import Any

from mountsafe.medium.libgcrypt import Mode, begun, cipher_number

# Not CDLL, which lets other threads run meanwhile: with a call for each sector that takes as long as the call.
_gcrypt = begun(ctypes.PyDLL)
_POINTER, _INT, _SIZE, _ERROR = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint
BLOCK = 16
CHUNK = 128 << 10  # bytes at a time: they stay in the processor's cache
MOST_KEPT = 1 << 20  # bytes of a buffer whose places are kept; the kernel asks for no more at a time


class CryptoError(Exception):
    """libgcrypt does not do what it is documented to do, or has not what is needed of it."""


def _bound(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_gcrypt, name)
    function.restype, function.argtypes = result, arguments or None
    return function


_open = _bound("gcry_cipher_open", _ERROR, _POINTER, _INT, _INT, _INT)
_close = _bound("gcry_cipher_close", None, _POINTER)
_setkey = _bound("gcry_cipher_setkey", _ERROR, _POINTER, _POINTER, _SIZE)
# These are called for each sector, with objects of these types: to convert would take longer than to decrypt.
_setiv = _bound("gcry_cipher_setiv", _ERROR)
_encrypt = _bound("gcry_cipher_encrypt", _ERROR)
_decrypt = _bound("gcry_cipher_decrypt", _ERROR)


class BlockCipher:
    """A mode of a cipher with its key. One thread at a time. libgcrypt wipes its copy of the key with the object."""

    _handle = None

    def __init__(self, name: str, mode: Mode, key: bytes | bytearray, encrypt: bool = False) -> None:
        """Raise CryptoError if there is no such cipher."""
        handle = _POINTER()
        number = cipher_number(name, mode, len(key))
        if number is None or _open(ctypes.addressof(handle), number, mode, 0):
            raise CryptoError(f"no {name} with a key of {len(key)} bytes")
        self._handle = handle
        held = (ctypes.c_char * len(key)).from_buffer_copy(key)
        failed = _setkey(handle, ctypes.addressof(held), len(key))
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
        held, started = (ctypes.c_char * len(data)).from_buffer(data), ctypes.create_string_buffer(vector or b"", BLOCK)
        failed = vector is not None and _setiv(self._handle, _POINTER(ctypes.addressof(started)), _SIZE(BLOCK))
        if failed or self._work(self._handle, _POINTER(ctypes.addressof(held)), _SIZE(len(data)), None, _SIZE(0)):
            raise CryptoError("the cipher failed")


class Aes(BlockCipher):
    """A mode of AES with its key."""

    def __init__(self, mode: Mode, key: bytes | bytearray, encrypt: bool = False) -> None:
        """Raise CryptoError if there is no such cipher."""
        super().__init__("aes", mode, key, encrypt)


class _Places:
    """Arguments for calls: addresses that are `step` bytes apart, as many as were needed so far."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.address = 0
        self._made: list[Any] = []

    def begin(self, address: int) -> None:
        """Begin at another address."""
        self.address, self._made = address, []

    def upto(self, count: int) -> list[Any]:
        """Return the first `count` of them, or more."""
        more = range(len(self._made), count)
        self._made += [_POINTER.from_param(self.address + number * self._step) for number in more]
        return self._made


class Sectors:
    """Works on sectors of `size` bytes by one of the above. One thread at a time.

    Who reads into the same buffer each time has its sectors worked on where they lie. All others are copied to memory
    whose places are known, and back, which takes less time than to make an argument of each place.
    """

    def __init__(self, cipher: BlockCipher, size: int) -> None:
        self._cipher = cipher
        self._size = size
        self._most = CHUNK // size
        self._data, data = _memory(CHUNK)
        self._vectors, vectors = _memory(self._most * BLOCK)
        self._own, self._kept, self._vector_places = _Places(size), _Places(size), _Places(BLOCK)
        self._own.begin(data)
        self._vector_places.begin(vectors)
        # The cipher has been given these values as they are, so they are its handle and three sizes.
        self._handle = _POINTER.from_param(cipher._handle.value if cipher._handle else None)
        self._sizes = [_SIZE.from_param(size) for size in (BLOCK, size, 0)]

    def run(self, data: memoryview, vectors: bytearray) -> None:
        """Work on sectors, in place. `vectors`: of each, or, by XTS, of the first; then they count on."""
        count = len(data) // self._size
        if len(data) % self._size or len(vectors) not in (BLOCK, count * BLOCK):
            raise ValueError("no whole sectors")
        if not count:
            return
        each = len(vectors) == count * BLOCK
        held = ctypes.c_char.from_buffer(data)
        places = self._places_from(ctypes.addressof(held), count)
        for first in range(0, count, self._most):
            many = min(self._most, count - first)
            given = vectors[first * BLOCK : (first + many) * BLOCK] if each else b"" if first else vectors
            self._vectors[: len(given)] = given
            if places:
                self._run(places[first : first + many], len(given) // BLOCK)
                continue
            part = data[first * self._size : (first + many) * self._size]
            self._data[: len(part)] = part
            self._run(self._own.upto(many)[:many], len(given) // BLOCK)
            part[:] = self._data[: len(part)]

    def _places_from(self, address: int, count: int) -> list[Any]:
        """Return the places of sectors from an address on, if it is the one of last time and they are not too many."""
        if address != self._kept.address:
            self._kept.begin(address)
            return []
        return self._kept.upto(count) if count * self._size <= MOST_KEPT else []

    def _run(self, places: list[Any], vectors: int) -> None:
        handle, block, size, nothing = map(repeat, (self._handle, *self._sizes))
        # The loop is map's, which is faster than one of Python's. A call returns 0, or what went wrong.
        begun = map(_setiv, handle, self._vector_places.upto(vectors)[:vectors], block)
        done = map(self._cipher._work, handle, places, size, repeat(None), nothing)
        steps = chain.from_iterable(zip(begun, done, strict=True)) if vectors == len(places) else chain(begun, done)
        if any(steps):
            raise CryptoError("the cipher failed")


def _memory(size: int) -> tuple[memoryview, int]:
    """Return memory that stays where it is, and its address."""
    made = ctypes.create_string_buffer(size)
    return memoryview(made).cast("B"), ctypes.addressof(made)
