"""Why a volume was not unlocked, as codes: a boxed process says one of them, and the host has the words."""

from enum import StrEnum

from mountsafe.errors import MountsafeError


class Fault(StrEnum):
    """What speaks against unlocking; nothing of the volume's own text is in it."""

    WRONG_KEY = "wrong-key"
    NO_MEMORY = "no-memory"
    TOO_COSTLY = "too-costly"  # more time or memory than is allowed
    NOT_ENCRYPTED = "not-encrypted"  # no header of the kind that was asked for
    DAMAGED = "damaged"
    CUT_OFF = "cut-off"  # what a header speaks of lies behind the end of the volume
    NO_SLOT = "no-slot"  # no key slot that this form of key could open
    CIPHER = "cipher"
    KDF = "kdf"
    VERSION = "version"
    REQUIREMENT = "requirement"  # re-encryption in progress, or what only newer programs know
    INTEGRITY = "integrity"
    NOT_TEXT = "not-text"  # a passphrase that must be UTF-8 and is not
    NOT_A_RECOVERY_KEY = "not-a-recovery-key"
    NOT_A_KEY_FILE = "not-a-key-file"  # a .BEK file that is none
    SECRET_TOO_LONG = "secret-too-long"
    UNREADABLE = "unreadable"  # the medium


class KeyFault(MountsafeError):
    """A volume cannot be unlocked: `fault` says why, `detail` names what (untrusted text of the header's)."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault}: {detail}" if detail else str(fault))
        self.fault = fault
        self.detail = detail
