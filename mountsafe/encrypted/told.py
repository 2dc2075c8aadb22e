"""What the key process says, in words for people: the codes are its, the sentences are ours."""

import signal
from dataclasses import replace

from mountsafe.encrypted.description import MAX_SLOTS, MAX_TEXT, MAX_WORDS, Description, Kind
from mountsafe.encrypted.faults import Fault
from mountsafe.encrypted.messages import MAX_KEYFILES
from mountsafe.errors import ExitCode, ProtocolFault, UserError
from mountsafe.text import printable

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
_SHOWN = 100  # characters of what the header names
_LOCKED, _SOURCE = ExitCode.LOCKED, ExitCode.SOURCE
# The sentence ({} is what the header names, in brackets), the hint, and the exit code.
WORDS: dict[Fault, tuple[str, str, ExitCode]] = {
    Fault.WRONG_KEY: ("the passphrase or key does not open it", "", _LOCKED),
    Fault.NO_MEMORY: (
        "its key cannot be derived{}: there is not enough memory",
        "Close other programs, or unlock it on a machine with more.",
        ExitCode.DEPENDENCY,
    ),
    Fault.TOO_COSTLY: (
        "its key slots ask for more than is allowed{}",
        "A header can ask for any amount. --big-memory allows 4 GiB, if the medium is yours.",
        _SOURCE,
    ),
    Fault.NOT_ENCRYPTED: ("there is no header of an encrypted volume", "", _SOURCE),
    Fault.DAMAGED: ("its header is damaged{}", "A backup of the header may help: --header FILE.", _SOURCE),
    Fault.CUT_OFF: ("it is cut off: its header speaks of more than there is", "Is the image complete?", _SOURCE),
    Fault.NO_SLOT: ("none of its key slots can be opened with this form of key", "", _LOCKED),
    Fault.CIPHER: ("its cipher is not supported{}", "", _SOURCE),
    Fault.KDF: ("the way its key is derived is not supported{}", "", _SOURCE),
    Fault.VERSION: ("its kind or version is not supported{}", "", _SOURCE),
    Fault.REQUIREMENT: (
        "it is in a state that is not supported{}",
        "If its encryption is being changed, finish that on the machine where it began.",
        _SOURCE,
    ),
    Fault.INTEGRITY: ("its sectors have checksums (dm-integrity), which is not supported", "", _SOURCE),
    Fault.NOT_TEXT: ("the passphrase is not text in UTF-8, as this kind of encryption needs it", "", _LOCKED),
    Fault.NOT_A_RECOVERY_KEY: (
        "that is no recovery key",
        "It has eight groups of six digits; one of them may be mistyped.",
        _LOCKED,
    ),
    Fault.NOT_A_KEY_FILE: ("that is no startup key of BitLocker", "Its name ends in .BEK.", _LOCKED),
    Fault.SECRET_TOO_LONG: ("the passphrase or key file is too long", "", _LOCKED),
    Fault.UNREADABLE: ("the medium cannot be read{}", "", _SOURCE),
}

# Of these nobody can tell a wrong key from what is not known here.
WRONG: dict[Kind | None, str] = {
    Kind.VERACRYPT: "PIM and key files must be right as well, and --hidden opens the inner volume. Volumes with"
    " Kuznyechik, and of an encrypted system, are not known.",
    Kind.TRUECRYPT: "Key files must be right as well, and --hidden opens the inner volume. Volumes of TrueCrypt before"
    " 5.0 are not known.",
}


def refusal(fault: Fault, untrusted_detail: str, kind: Kind | None = None) -> UserError:
    """Return what a user is told of a volume that was taken for a `kind`."""
    sentence, hint, code = WORDS[fault]
    if fault is Fault.WRONG_KEY and kind in WRONG:
        hint = WRONG[kind]
    detail = printable(untrusted_detail, _SHOWN)
    return UserError(sentence.format(f" ({detail})" if detail else ""), hint, code)


def no_memory() -> UserError:
    """Return what a user is told whose machine ended the process for want of memory."""
    return refusal(Fault.NO_MEMORY, "")


def too_many_keyfiles() -> UserError:
    """Return what a user is told who gives more key files than can be handed on."""
    return UserError(f"more than {MAX_KEYFILES} key files", "", ExitCode.USAGE)


def believed(untrusted: Description) -> Description:
    """Return a description whose texts can be shown. Raises ProtocolFault for one without bounds."""
    if len(untrusted.slots) > MAX_SLOTS or len(untrusted.words) > MAX_WORDS or len(untrusted.notes) > MAX_WORDS:
        raise ProtocolFault("a description of an encrypted volume without end")
    slots = tuple(replace(slot, name=_shown(slot.name), kdf=_shown(slot.kdf)) for slot in untrusted.slots)
    for numbers in (*((slot.iterations, slot.memory, slot.threads) for slot in slots), (untrusted.key_bits,)):
        if min(numbers) < 0:
            raise ProtocolFault("a negative cost of an encrypted volume")
    return replace(
        untrusted,
        cipher=_shown(untrusted.cipher),
        slots=slots,
        label=_shown(untrusted.label),
        uuid=_shown(untrusted.uuid),
        words=tuple((_shown(name), _shown(word)) for name, word in untrusted.words),
    )


def _shown(untrusted_text: str) -> str:
    return printable(untrusted_text, MAX_TEXT)
