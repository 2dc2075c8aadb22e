"""libgcrypt: where it is, how it is initialised, and the numbers of gcrypt.h for the calls that are made.

Every Debian has it, because systemd and apt need it. Nothing is loaded before `begun` is called.
"""

import ctypes
from enum import IntEnum
from typing import TypeVar

LIBRARY = "libgcrypt.so.20"
# enum gcry_ctl_cmds. Secure memory cannot be locked in a box, and nothing is swapped.
_DISABLE_SECURE_MEMORY, _INITIALIZATION_FINISHED = 37, 38
Library = TypeVar("Library", bound=ctypes.CDLL)


class Mode(IntEnum):
    """How blocks depend on each other: enum gcry_cipher_modes."""

    ECB = 1
    CBC = 3
    CCM = 8
    XTS = 13  # its key is twice as long


# enum gcry_cipher_algos, by name and bytes of the key
CIPHERS = {
    ("aes", 16): 7,
    ("aes", 24): 8,
    ("aes", 32): 9,
    ("twofish", 16): 303,
    ("twofish", 32): 10,
    ("serpent", 16): 304,
    ("serpent", 24): 305,
    ("serpent", 32): 306,
    ("camellia", 16): 310,
    ("camellia", 24): 311,
    ("camellia", 32): 312,
}


def cipher_number(name: str, mode: Mode, key: int) -> int | None:
    """Return the number of a cipher with a key of so many bytes, of XTS both halves; None if there is none."""
    return CIPHERS.get((name, key // 2 if mode is Mode.XTS else key))


def begun(kind: type[Library]) -> Library:
    """Load the library as ctypes' CDLL or PyDLL, and begin with it. Raises OSError if it is not there, or too old."""
    library = kind(LIBRARY)
    library.gcry_check_version.restype = ctypes.c_char_p
    if not library.gcry_check_version(None):
        raise OSError(f"{LIBRARY} does not start")
    library.gcry_control(_DISABLE_SECURE_MEMORY, 0)
    library.gcry_control(_INITIALIZATION_FINISHED, 0)
    return library
