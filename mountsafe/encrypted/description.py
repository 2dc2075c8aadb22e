"""What is known of an encrypted volume without a key, and what opens it. Shared by both ends; stdlib only."""

from dataclasses import dataclass
from enum import StrEnum

MAX_SLOTS = 32  # LUKS2's own bound; BitLocker has a handful
MAX_TEXT = 512  # characters of any text of the header's
MAX_WORDS = 64  # detail words, of which BitLocker's description of a drive is one


class Kind(StrEnum):
    """A kind of encryption, as blkid(8) names the type; the last two have no signature and are known by the user."""

    LUKS = "crypto_LUKS"
    BITLOCKER = "BitLocker"
    VERACRYPT = "VeraCrypt"
    TRUECRYPT = "TrueCrypt"


class Form(StrEnum):
    """What somebody unlocks with. The bytes of a key file are exact; a last newline of the others is not part."""

    PASSPHRASE = "passphrase"
    KEY_FILE = "key-file"
    RECOVERY_KEY = "recovery-key"  # BitLocker's 48 digits
    BEK_FILE = "bek-file"  # BitLocker's startup key
    CLEAR_KEY = "clear-key"  # lies on the volume itself: protection is suspended


class Note(StrEnum):
    """What somebody who looks at a volume should know of it."""

    FIRST_HEADER_DAMAGED = "first-header-damaged"
    SECOND_HEADER_DAMAGED = "second-header-damaged"
    HEADERS_DIFFER = "headers-differ"
    PARTLY_ENCRYPTED = "partly-encrypted"
    CUT_OFF = "cut-off"  # it is smaller than its header says
    DETACHED_HEADER = "detached-header"
    UNSUPPORTED_CIPHER = "unsupported-cipher"
    UNSUPPORTED_REQUIREMENT = "unsupported-requirement"
    INTEGRITY = "integrity"
    CLEAR_KEY = "clear-key"  # nobody needs a key to open it


@dataclass(frozen=True, slots=True)
class Slot:
    """A way to the volume key. `name`: its number, or BitLocker's id of the protector.

    `opens`: with what it is opened, None if with something that is not known here (a TPM, a smart card). `kdf`, with
    its cost: `iterations`, and for argon2 `memory` in KiB and `threads`; zeros where it has none.
    """

    name: str
    opens: Form | None
    kdf: str
    iterations: int = 0
    memory: int = 0
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Description:
    """An encrypted volume. Every text is the header's, and untrusted until `keys.believed` has been at it.

    `cipher`: as dm-crypt names it; `key_bits`: of the volume key, 0 if that is not known. `words`: pairs of a name and
    what the header says (a token, a subsystem, when it was made).
    """

    kind: Kind
    version: int
    cipher: str
    key_bits: int
    sector: int
    slots: tuple[Slot, ...] = ()
    label: str = ""
    uuid: str = ""
    notes: tuple[Note, ...] = ()
    words: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"LUKS{self.version}" if self.kind is Kind.LUKS else str(self.kind)

    @property
    def hint(self) -> str:
        """What helps to find the key: the ids of BitLocker's recovery keys, which their papers and accounts name."""
        keys = [slot.name.upper() for slot in self.slots if slot.opens is Form.RECOVERY_KEY]
        return f"recovery key ID {', '.join(keys)}" if keys else ""


def words(about: Description) -> list[str]:
    """Return lines that tell of a volume to a person: what it is, how it is opened, what is worth knowing."""
    key = f", {about.key_bits}-bit key" if about.key_bits else ""
    lines = [f"{about.title}, {about.cipher or 'cipher not known'}{key}, sectors of {about.sector} bytes"]
    lines += [f"key slot {slot.name}: {_way(slot)}" for slot in about.slots]
    lines += [f"{name}: {word}" for name, word in about.words]
    return lines + [note.value.replace("-", " ") for note in about.notes]


def _way(slot: Slot) -> str:
    cost = [f"{slot.iterations} iterations"] if slot.iterations else []
    cost += [f"{slot.memory >> 10} MiB"] if slot.memory else []
    kdf = f"{slot.kdf} ({', '.join(cost)})" if cost else slot.kdf
    opens = slot.opens.value.replace("-", " ") if slot.opens else "something that mountsafe cannot use"
    return f"{opens}, {kdf}" if slot.kdf else opens
