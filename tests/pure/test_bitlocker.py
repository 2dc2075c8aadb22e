"""BitLocker's metadata, made by other code than what reads it: what opens it, what it says, and what is refused."""

import hashlib
import random
import struct
from contextlib import suppress

import pytest

from mountsafe.encrypted import bitlocker, bitlockerkeys, volumes
from mountsafe.encrypted.description import Form, Note
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.unlocking import Unlocked
from mountsafe.medium.encryption import Cipher, SegmentKind, check
from tests import encrypted
from tests.encrypted import AREAS, BITLOCKER_SIZE, MOVED, PASSWORD, RECOVERY_KEY, budget, volume

MASTER, KEY = b"M" * 32, bytes(range(64))
CLEAR = encrypted.clear_protector(MASTER)
STARTUP = encrypted.startup_protector(MASTER)
TPM = encrypted.protector(3, 0x0100, b"")
RAW = encrypted.metadata(CLEAR + STARTUP + TPM, KEY[:32], MASTER)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretch by one round: the million are tested once."""
    monkeypatch.setattr(
        bitlockerkeys,
        "stretched",
        lambda start, salt, budget: bytes(a ^ b for a, b in zip(start, salt * 2, strict=True)),
    )


def unlock(data: bytes, form: Form = Form.CLEAR_KEY, secret: bytes = b"", least: Budget | None = None) -> Unlocked:
    given = volumes.Secret(form, secret)
    opened = volumes.unlock(volume(data), None, None, given, least or budget())
    check(opened.layout, len(data))
    assert len(opened.key) == opened.layout.key_size
    return opened


def fault_of(data: bytes, form: Form = Form.CLEAR_KEY, secret: bytes = b"", least: Budget | None = None) -> Fault:
    with pytest.raises(KeyFault) as failure:
        unlock(data, form, secret, least)
    return failure.value.fault


def stretched(protection: int, start: bytes) -> bytes:
    """A protector of a password or recovery key, by `quick`'s derivation."""
    salt = b"0123456789abcdef"
    key = bytes(a ^ b for a, b in zip(start, salt * 2, strict=True))
    stretch = encrypted.entry(0, 3, bytes(4) + salt)
    return encrypted.protector(5, protection, stretch + encrypted.sealed(key, MASTER))


def of_password(password: str) -> bytes:
    text = password.encode("utf-16-le")
    return stretched(0x2000, hashlib.sha256(hashlib.sha256(text).digest()).digest())


def of_recovery_key() -> bytes:
    packed = struct.pack("<8H", *(number // 11 for number in encrypted.NUMBERS))
    return stretched(0x0800, hashlib.sha256(packed).digest())


@pytest.mark.parametrize(
    ("method", "cipher", "size", "key"),
    [
        (0x8000, Cipher.AES_ELEPHANT, 64, KEY[:16] + KEY[32:48]),
        (0x8001, Cipher.AES_ELEPHANT, 64, KEY),
        (0x8002, Cipher.AES_CBC_EBOIV, 16, KEY[:16]),
        (0x8003, Cipher.AES_CBC_EBOIV, 32, KEY[:32]),
        (0x8004, Cipher.AES_XTS, 32, KEY[:32]),
        (0x8005, Cipher.AES_XTS, 64, KEY),
    ],
)
def test_each_method_has_its_cipher(method: int, cipher: Cipher, size: int, key: bytes) -> None:
    opened = unlock(encrypted.bitlocker(encrypted.metadata(CLEAR, KEY[:size], MASTER, method)))
    assert (opened.layout.cipher, opened.key) == (cipher, key)


def test_the_derivation_takes_a_million_rounds() -> None:
    start, salt = bytes(range(32)), bytes(range(16))
    assert bitlockerkeys.stretched(start, salt, budget()) == encrypted.stretched(start, salt)
    with pytest.raises(KeyFault) as failure:
        bitlockerkeys.stretched(start, salt, budget(seconds=0.001))
    assert failure.value.fault is Fault.TOO_COSTLY


@pytest.mark.usefixtures("quick")
def test_a_password_is_utf_16() -> None:
    data = encrypted.bitlocker(encrypted.metadata(of_password(PASSWORD.decode()), KEY[:32], MASTER))
    assert unlock(data, Form.PASSPHRASE, PASSWORD).key == KEY[:32]
    assert unlock(data, Form.KEY_FILE, PASSWORD).key == KEY[:32]
    assert fault_of(data, Form.PASSPHRASE, b"wrong") is Fault.WRONG_KEY
    assert fault_of(data, Form.PASSPHRASE, b"") is Fault.WRONG_KEY
    assert fault_of(data, Form.PASSPHRASE, PASSWORD.decode().encode("latin-1")) is Fault.NOT_TEXT
    assert fault_of(data, Form.PASSPHRASE, b"\xed\xa0\x80") is Fault.NOT_TEXT  # a surrogate
    assert fault_of(data, Form.PASSPHRASE, b"x" * 5000) is Fault.SECRET_TOO_LONG
    assert fault_of(data, Form.RECOVERY_KEY, RECOVERY_KEY) is Fault.NO_SLOT


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "typed", [RECOVERY_KEY, RECOVERY_KEY.replace(b"-", b""), b" " + RECOVERY_KEY.replace(b"-", b" ")]
)
def test_a_recovery_key_is_eight_numbers(typed: bytes) -> None:
    data = encrypted.bitlocker(encrypted.metadata(of_recovery_key(), KEY[:32], MASTER))
    assert unlock(data, Form.RECOVERY_KEY, typed).key == KEY[:32]
    assert unlock(data, Form.PASSPHRASE, typed).key == KEY[:32]  # where a password is asked for


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "typed",
    [b"", b"hello", RECOVERY_KEY[:-1], RECOVERY_KEY + b"0", b"235819" + RECOVERY_KEY[6:], b"999999" + RECOVERY_KEY[6:]],
)
def test_what_is_no_recovery_key_is_said(typed: bytes) -> None:
    data = encrypted.bitlocker(encrypted.metadata(of_recovery_key(), KEY[:32], MASTER))
    assert fault_of(data, Form.RECOVERY_KEY, typed) is Fault.NOT_A_RECOVERY_KEY


def test_a_startup_key_opens() -> None:
    data = encrypted.bitlocker(RAW)
    assert unlock(data, Form.BEK_FILE, encrypted.bek()).key == KEY[:32]
    wrong = encrypted.bek().replace(b"s" * 32, b"t" * 32)
    assert fault_of(data, Form.BEK_FILE, wrong) is Fault.WRONG_KEY


@pytest.mark.parametrize("secret", [b"", b"x" * 100, encrypted.bek()[:-1], b"\0" + encrypted.bek()[1:], bytes(8 << 10)])
def test_what_is_no_startup_key_is_said(secret: bytes) -> None:
    assert fault_of(encrypted.bitlocker(RAW), Form.BEK_FILE, secret) is Fault.NOT_A_KEY_FILE


def test_the_plaintext_has_its_first_sectors_and_no_metadata() -> None:
    layout = unlock(encrypted.bitlocker(RAW)).layout
    told = [(each.kind, each.logical, each.length, each.physical, each.iv) for each in layout.segments]
    end = MOVED[0] + MOVED[1]
    crypt, zero = SegmentKind.CRYPT, SegmentKind.ZERO
    assert told == [
        (crypt, 0, 8192, MOVED[0], MOVED[0] // 512),
        (crypt, 8192, AREAS[0] - 8192, 8192, 16),
        (zero, AREAS[0], 65536, 0, 0),
        (zero, MOVED[0], 8192, 0, 0),
        (crypt, end, AREAS[1] - end, end, end // 512),
        (zero, AREAS[1], 65536, 0, 0),
        (crypt, AREAS[1] + 65536, AREAS[2] - AREAS[1] - 65536, AREAS[1] + 65536, (AREAS[1] + 65536) // 512),
        (zero, AREAS[2], 65536, 0, 0),
        (crypt, AREAS[2] + 65536, BITLOCKER_SIZE - AREAS[2] - 65536, AREAS[2] + 65536, (AREAS[2] + 65536) // 512),
    ]


def test_large_sectors_are_counted_whole() -> None:
    layout = unlock(encrypted.bitlocker(RAW, sector=4096)).layout
    assert (layout.sector, layout.iv_unit, layout.segments[0].iv) == (4096, 4096, MOVED[0] // 4096)


@pytest.mark.parametrize("border", [8192, 5 << 16, (6 << 16) + 512, 9 << 16])
def test_what_is_not_encrypted_yet_is_plain(border: int) -> None:
    raw = encrypted.metadata(CLEAR, KEY[:32], MASTER, state=2, encrypted=border)
    layout = unlock(encrypted.bitlocker(raw)).layout
    for segment in layout.segments[1:]:
        if segment.kind is not SegmentKind.ZERO:
            assert (segment.kind is SegmentKind.PLAIN) == (segment.logical >= border)
            assert segment.physical == segment.logical
    assert Note.PARTLY_ENCRYPTED in volumes.describe(volume(encrypted.bitlocker(raw)), None, None).notes


def test_what_is_encrypted_when_it_is_written_is_refused() -> None:
    """Taken for encrypted as a whole it would be noise where it is not."""
    data = encrypted.bitlocker(RAW, identifier="92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8")
    assert fault_of(data) is Fault.REQUIREMENT
    assert Note.UNSUPPORTED_REQUIREMENT in volumes.describe(volume(data), None, None).notes


def test_what_is_known_without_a_key() -> None:
    raw = encrypted.metadata(of_recovery_key() + TPM + CLEAR, KEY[:32], MASTER)
    said = volumes.describe(volume(encrypted.bitlocker(raw)), None, None)
    assert (said.title, said.cipher, said.key_bits, said.label) == (
        "BitLocker",
        "aes-xts-plain64",
        128,
        "PC C: \x1b[2J",
    )
    assert [slot.opens for slot in said.slots] == [Form.RECOVERY_KEY, None, Form.CLEAR_KEY]
    assert said.hint == "recovery key ID 00000000-0000-0000-0000-000000000005"
    assert said.notes == (Note.CLEAR_KEY,)
    assert ("created", "2022-06-18") in said.words


def test_a_damaged_copy_is_passed_over() -> None:
    whole = encrypted.bitlocker(RAW)
    damaged = bytearray(whole)
    damaged[AREAS[0] + 200] ^= 1
    assert unlock(bytes(damaged)).key == KEY[:32]
    assert Note.FIRST_HEADER_DAMAGED in volumes.describe(volume(damaged), None, None).notes
    assert Note.FIRST_HEADER_DAMAGED not in volumes.describe(volume(whole), None, None).notes
    assert unlock(encrypted.bitlocker(RAW, copies=[2])).key == KEY[:32]
    assert fault_of(encrypted.bitlocker(RAW, copies=[])) is Fault.DAMAGED


def test_a_volume_that_was_cut_short_has_what_is_left() -> None:
    data = encrypted.bitlocker(RAW)[: AREAS[1] + 100]
    layout = unlock(data).layout
    assert layout.size == AREAS[1]
    assert Note.CUT_OFF in volumes.describe(volume(data), None, None).notes
    assert fault_of(data[: MOVED[0] + 512]) is Fault.CUT_OFF


def changed(at: int, form: str, value: int) -> bytes:
    made = bytearray(RAW)
    struct.pack_into(form, made, at, value)
    return encrypted.bitlocker(encrypted.with_sum(bytes(made)))


@pytest.mark.parametrize(
    ("at", "form", "value", "fault"),
    [
        (10, "<H", 1, Fault.VERSION),
        (12, "<H", 1, Fault.REQUIREMENT),  # decrypted
        (64, "<I", 1 << 31, Fault.DAMAGED),
        (64, "<I", 0, Fault.DAMAGED),
        (72, "<I", 4096, Fault.VERSION),
        (100, "<H", 0x9000, Fault.CIPHER),
        (112, "<H", 0xFFFF, Fault.DAMAGED),  # an entry beyond the end
        (112, "<H", 3, Fault.DAMAGED),
        (112, "<H", 0, Fault.NO_SLOT),
    ],
)
def test_hostile_metadata_is_refused_in_words(at: int, form: str, value: int, fault: Fault) -> None:
    assert fault_of(changed(at, form, value)) is fault


def boot(at: int, value: bytes) -> bytes:
    made = bytearray(encrypted.bitlocker(RAW))
    made[at : at + len(value)] = value
    return bytes(made)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        pytest.param(boot(0, b"\xeb\x52"), Fault.VERSION, id="vista"),
        pytest.param(boot(160, bytes(16)), Fault.VERSION, id="identifier"),
        pytest.param(boot(11, b"\1\0"), Fault.DAMAGED, id="sector"),
        pytest.param(boot(176, b"\xff" * 24), Fault.CUT_OFF, id="offsets"),
        pytest.param(boot(3, b"NTFS    "), Fault.NOT_ENCRYPTED, id="ntfs"),
        pytest.param(b"", Fault.NOT_ENCRYPTED, id="empty"),
        pytest.param(encrypted.bitlocker(encrypted.metadata(TPM, KEY[:32], MASTER)), Fault.NO_SLOT, id="tpm"),
    ],
)
def test_a_hostile_boot_sector_is_refused_in_words(data: bytes, fault: Fault) -> None:
    assert fault_of(data) is fault


def test_mutated_metadata_ends_in_words() -> None:
    chance = random.Random("mountsafe bitlocker")
    outcomes: set[Fault | None] = set()
    for _ in range(400):
        made = bytearray(RAW)
        for at in chance.choices([*range(10, 120), *range(120, 500)], k=chance.randrange(1, 4)):
            made[at] = chance.choice([0, 1, 2, 0x7F, 0xFF, made[at] ^ 1])
        data = encrypted.bitlocker(encrypted.with_sum(bytes(made)))
        with suppress(KeyFault):
            volumes.describe(volume(data), None, None)
        for form, secret in ((Form.CLEAR_KEY, b""), (Form.BEK_FILE, encrypted.bek())):
            try:
                unlock(data, form, secret)
                outcomes.add(None)
            except KeyFault as fault:
                outcomes.add(fault.fault)
    assert len(outcomes) > 4


def test_entries_end() -> None:
    endless = encrypted.entry(1, 1, b"") * 100
    with pytest.raises(KeyFault):
        list(bitlocker.entries(endless))
