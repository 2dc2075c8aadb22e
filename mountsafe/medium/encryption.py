"""Where the plaintext of an encrypted disk comes from: which bytes, under which cipher. It contains no key.

A boxed process makes it from a header that it parsed (`mountsafe.encrypted`), and is not trusted: `check` it first.
"""

from dataclasses import dataclass
from enum import StrEnum

from mountsafe.errors import ProtocolFault

SECTORS = (512, 1024, 2048, 4096)  # bytes that are encrypted at once
MAX_SEGMENTS = 64
UNIT = 512  # bytes: what a plaintext disk and its segments are multiples of


class Cipher(StrEnum):
    """What is decrypted on the host, named as dm-crypt names it."""

    AES_XTS = "aes-xts-plain64"
    AES_CBC_PLAIN = "aes-cbc-plain64"
    AES_CBC_ESSIV = "aes-cbc-essiv:sha256"
    AES_CBC_EBOIV = "aes-cbc-eboiv"
    AES_ELEPHANT = "aes-cbc-elephant"
    AES_ECB = "aes-ecb"
    SERPENT_XTS = "serpent-xts-plain64"
    TWOFISH_XTS = "twofish-xts-plain64"
    CAMELLIA_XTS = "camellia-xts-plain64"
    # VeraCrypt's cascades, by its names backwards: the plaintext is encrypted with the first, and that with the next.
    TWOFISH_AES = "twofish-aes-xts-plain64"
    SERPENT_TWOFISH_AES = "serpent-twofish-aes-xts-plain64"
    AES_SERPENT = "aes-serpent-xts-plain64"
    AES_TWOFISH_SERPENT = "aes-twofish-serpent-xts-plain64"
    SERPENT_TWOFISH = "serpent-twofish-xts-plain64"
    SERPENT_CAMELLIA = "serpent-camellia-xts-plain64"


XTS = "-xts-plain64"


def cascade(cipher: Cipher) -> tuple[str, ...]:
    """Return the names of a cipher's ciphers if its mode is XTS; none if it is another."""
    names, mode, rest = cipher.partition(XTS)
    return tuple(names.split("-")) if mode and not rest else ()


KEY_SIZES = {  # bytes
    **{cipher: (64 * len(cascade(cipher)),) for cipher in Cipher if cascade(cipher)},
    Cipher.AES_XTS: (32, 64),
    Cipher.SERPENT_XTS: (32, 64),
    Cipher.TWOFISH_XTS: (32, 64),
    Cipher.AES_ECB: (16, 24, 32),
    Cipher.AES_CBC_PLAIN: (16, 24, 32),
    Cipher.AES_CBC_ESSIV: (16, 24, 32),
    Cipher.AES_CBC_EBOIV: (16, 32),
    Cipher.AES_ELEPHANT: (32, 64),
}


class SegmentKind(StrEnum):
    """What a run of the plaintext disk is made of."""

    CRYPT = "crypt"  # decrypted
    PLAIN = "plain"  # as it is on the disk below
    ZERO = "zero"


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` bytes of the plaintext disk, from `logical` on, that lie at `physical` of the encrypted one.

    `iv`: the number of the first sector in it, which its cipher counts in units of `Layout.iv_unit` bytes.
    """

    logical: int
    length: int
    kind: SegmentKind
    physical: int
    iv: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A plaintext disk of `size` bytes. `sector`, `key_size`, in bytes; `segments` are sorted and cover all of it."""

    cipher: Cipher
    key_size: int
    sector: int
    iv_unit: int
    size: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A disk made of the one below it: first the volume at `places` (offset, physical, length), then its plaintext.

    `layout`: None for the volume as it is. A descriptor with the key comes with each layer that has one.
    """

    places: tuple[tuple[int, int, int], ...]
    size: int
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class Stack:
    """A medium's disk and what is made of it, the last layer being what is read.

    The first descriptor that comes with it is the medium if it is `raw`, else a socket at which a container process
    serves the disk by NBD. `reach`: what a reader must know of that, in bytes; of it `size` bytes from `offset` on are
    the disk.
    """

    raw: bool
    reach: int
    offset: int
    size: int
    layers: tuple[Layer, ...] = ()


def check(layout: Layout, within: int) -> None:
    """Raise ProtocolFault for a layout that no encrypted disk of `within` bytes can have."""
    if layout.sector not in SECTORS or layout.iv_unit not in (UNIT, layout.sector):
        raise ProtocolFault("impossible sectors of an encrypted disk")
    if layout.key_size not in KEY_SIZES[layout.cipher]:
        raise ProtocolFault(f"a key of {layout.key_size} bytes for {layout.cipher}")
    if not 0 < len(layout.segments) <= MAX_SEGMENTS or not 0 < layout.size <= within:
        raise ProtocolFault("an encrypted disk of impossible size")
    end = 0
    for segment in layout.segments:
        unit = layout.sector if segment.kind is SegmentKind.CRYPT else UNIT
        if segment.logical != end or segment.length <= 0 or segment.length % unit:
            raise ProtocolFault("segments of an encrypted disk that leave gaps, or overlap")
        end += segment.length
        zero = segment.kind is SegmentKind.ZERO
        if not zero and not 0 <= segment.physical <= within - segment.length:
            raise ProtocolFault("a segment outside of its encrypted disk")
        if not 0 <= segment.iv < 1 << 63:
            raise ProtocolFault("an impossible sector number")
    if end != layout.size:
        raise ProtocolFault("segments that are not the whole of an encrypted disk")
