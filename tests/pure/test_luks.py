"""LUKS as cryptsetup makes it: the same key, the same layout, and words for what is damaged, too much or not known."""

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mountsafe.encrypted import luks2, volumes
from mountsafe.encrypted.description import Form, Note
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.told import believed
from mountsafe.encrypted.unlocking import Unlocked
from mountsafe.encrypted.volume import Volume
from mountsafe.medium.encryption import Cipher, check
from tests import encrypted
from tests.encrypted import FAST, FAST2, LUKS2, SECRET, SMALL, budget, volume

MUTATIONS = 150  # of each version
KINDS = {
    "luks1": ("--type", "luks1", *FAST),
    "luks1-sha1-128": ("--type", "luks1", "--hash", "sha1", "--key-size", "256", *FAST),
    "luks1-cbc": ("--type", "luks1", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", *FAST),
    "luks1-cbc-plain": ("--type", "luks1", "--cipher", "aes-cbc-plain", "--key-size", "256", *FAST),
    "luks1-whirlpool": ("--type", "luks1", "--hash", "whirlpool", *FAST),
    "luks2": FAST2,
    "luks2-4096": (*FAST2, "--sector-size", "4096"),
    "luks2-sha512": (*FAST2, "--hash", "sha512"),
    "luks2-cbc": (*FAST2, "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"),
    "luks2-argon2i": (*LUKS2, "--pbkdf", "argon2i", *SMALL),
    "luks2-argon2id": (*LUKS2, "--pbkdf", "argon2id", *SMALL),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Callable[[str], Path]:
    """A function that returns a volume of a kind, which nobody changes."""
    program("cryptsetup")
    folder = tmp_path_factory.mktemp("luks")

    def make(kind: str) -> Path:
        path = folder / kind
        return path if path.exists() else encrypted.luks(path, *KINDS[kind])

    return make


@pytest.fixture(scope="module")
def luks2_bytes(made: Callable[[str], Path]) -> bytes:
    return made("luks2").read_bytes()


def unlock(data: bytes, secret: bytes = SECRET, header: bytes | None = None, least: Budget | None = None) -> Unlocked:
    given = volumes.Secret(Form.PASSPHRASE, secret)
    opened = volumes.unlock(volume(data), volume(header) if header else None, None, given, least or budget())
    check(opened.layout, len(data))
    return opened


def fault_of(data: bytes, secret: bytes = SECRET, least: Budget | None = None) -> Fault:
    with pytest.raises(KeyFault) as failure:
        unlock(data, secret, least=least)
    return failure.value.fault


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_cryptsetups(made: Callable[[str], Path], kind: str) -> None:
    path = made(kind)
    opened = unlock(path.read_bytes())
    assert opened.key == encrypted.volume_key(path)
    assert len(opened.key) == opened.layout.key_size
    assert fault_of(path.read_bytes(), b"wrong") is Fault.WRONG_KEY
    assert fault_of(path.read_bytes(), b"") is Fault.WRONG_KEY


@pytest.mark.parametrize(
    ("kind", "sector", "cipher"),
    [
        ("luks1", 512, Cipher.AES_XTS),
        ("luks1-cbc-plain", 512, Cipher.AES_CBC_PLAIN),
        ("luks2-cbc", None, Cipher.AES_CBC_ESSIV),
        ("luks2-4096", 4096, Cipher.AES_XTS),
    ],
)
def test_the_layout_is_what_the_header_says(
    made: Callable[[str], Path], kind: str, sector: int | None, cipher: Cipher
) -> None:
    path = made(kind)
    layout = unlock(path.read_bytes()).layout
    [segment] = layout.segments
    assert layout.cipher is cipher
    assert sector in (None, layout.sector)
    assert layout.iv_unit == 512
    assert (segment.logical, segment.iv) == (0, 0)
    assert segment.physical + segment.length == path.stat().st_size
    said = encrypted.cryptsetup("luksDump", path)
    assert f"{segment.physical} [bytes]" in said or f"Payload offset:\t{segment.physical // 512}" in said


def test_what_is_known_without_a_key(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = encrypted.luks(tmp_path / "x", *LUKS2, "--label", "STICK", "--pbkdf", "argon2id", *SMALL)
    said = volumes.describe(volume(path.read_bytes()), None, None)
    [slot] = said.slots
    assert (said.title, said.label, said.cipher, said.key_bits) == ("LUKS2", "STICK", "aes-xts-plain64", 512)
    assert (slot.opens, slot.kdf, slot.iterations, slot.memory, slot.threads) == (
        *(Form.PASSPHRASE, "argon2id", 4, 1024, 1),
    )
    assert f"UUID:          \t{said.uuid}" in encrypted.cryptsetup("luksDump", path)
    old = volumes.describe(volume(made("luks1").read_bytes()), None, None)
    assert (old.title, old.slots[0].kdf, old.slots[0].iterations) == ("LUKS1", "pbkdf2-sha256", 1000)


@pytest.mark.parametrize("secret", [b"\0", b"with\nlines\n", "Grüße".encode("latin-1"), bytes(range(256)) * 256])
def test_a_key_file_is_exact(tmp_path: Path, program: Callable[[str], str], secret: bytes) -> None:
    """As cryptsetup takes it from --key-file: with zeros and newlines, and large."""
    program("cryptsetup")
    path = encrypted.luks(tmp_path / "x", *FAST2, secret=secret)
    given = volumes.Secret(Form.KEY_FILE, secret)
    opened = volumes.unlock(volume(path.read_bytes()), None, None, given, budget())
    assert opened.key == encrypted.volume_key(path, secret)


@pytest.mark.parametrize("kind", [("--type", "luks1", *FAST), ("--type", "luks2", "--pbkdf", "pbkdf2", *FAST)])
def test_a_header_that_lies_elsewhere(tmp_path: Path, program: Callable[[str], str], kind: tuple[str, ...]) -> None:
    program("cryptsetup")
    head = tmp_path / "header"
    path = encrypted.luks(tmp_path / "x", *kind, "--header", head, size=1 << 20)
    opened = unlock(path.read_bytes(), header=head.read_bytes())
    assert opened.key == encrypted.volume_key(head)
    assert (opened.layout.size, opened.layout.segments[0].physical) == (1 << 20, 0)
    said = volumes.describe(volume(path.read_bytes()), volume(head.read_bytes()), None)
    assert Note.DETACHED_HEADER in said.notes
    assert fault_of(path.read_bytes()) is Fault.NOT_ENCRYPTED


def test_every_key_slot_opens(tmp_path: Path, program: Callable[[str], str]) -> None:
    program("cryptsetup")
    path = encrypted.luks(tmp_path / "x", *FAST2)
    other = tmp_path / "other"
    other.write_bytes(b"another one")
    encrypted.cryptsetup("luksAddKey", "--pbkdf", "pbkdf2", *FAST, path, other)
    assert unlock(path.read_bytes(), b"another one").key == unlock(path.read_bytes()).key


# --- two copies ------------------------------------------------------------------------------------------------------
def test_the_second_header_does_where_the_first_is_damaged(luks2_bytes: bytes) -> None:
    damaged = bytearray(luks2_bytes)
    damaged[5000] ^= 1
    assert unlock(bytes(damaged)).key == unlock(luks2_bytes).key
    assert volumes.describe(volume(damaged), None, None).notes == (Note.FIRST_HEADER_DAMAGED,)
    damaged[:4096] = bytes(4096)  # nothing says where the second is
    assert unlock(bytes(damaged)).key == unlock(luks2_bytes).key


def test_a_damaged_second_header_is_told(luks2_bytes: bytes) -> None:
    damaged = bytearray(luks2_bytes)
    damaged[16384 + 5000] ^= 1
    assert unlock(bytes(damaged)).key == unlock(luks2_bytes).key
    assert volumes.describe(volume(damaged), None, None).notes == (Note.SECOND_HEADER_DAMAGED,)
    damaged[5000] ^= 1
    assert fault_of(bytes(damaged)) is Fault.DAMAGED


def test_the_newer_of_two_headers_counts_and_it_is_told(luks2_bytes: bytes) -> None:
    second = bytearray(luks2_bytes)
    second[16384 + 16 : 16384 + 24] = (1000).to_bytes(8, "big")
    text = luks2_bytes[4096:16384].rstrip(b"\0").replace(b"aes-xts-plain64", b"aes-xts-unknown")
    both = encrypted.with_text(bytes(second), text, copies=[1])
    assert Note.HEADERS_DIFFER in volumes.describe(volume(both), None, None).notes
    assert fault_of(both) is Fault.CIPHER
    assert volumes.describe(volume(luks2_bytes), None, None).notes == ()


# --- headers that ask for too much, or lie ---------------------------------------------------------------------------
def slot(**how: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the first key slot's parts: `kdf__iterations=5`."""

    def change(told: dict[str, Any]) -> None:
        for key, value in how.items():
            *parts, last = key.split("__")
            place = told["keyslots"]["0"]
            for part in parts:
                place = place[part]
            place[last] = value

    return change


def segment(**how: Any) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        told["segments"]["0"] |= how

    return change


def argon2(**how: Any) -> Callable[[dict[str, Any]], None]:
    kdf = {"type": "argon2id", "time": 4, "memory": 1024, "cpus": 1, "salt": "c2FsdHNhbHRzYWx0"}
    return slot(kdf=kdf | how)


def second_segment(told: dict[str, Any]) -> None:
    told["segments"]["1"] = told["segments"]["0"]


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], Fault]] = {
    "a-year": (slot(kdf__iterations=4_000_000_000), Fault.TOO_COSTLY),
    "16-GiB": (argon2(memory=16 << 20), Fault.TOO_COSTLY),
    "argon2-for-ever": (argon2(time=4_000_000_000), Fault.TOO_COSTLY),
    "digest-for-ever": (lambda told: told["digests"]["0"].update(iterations=4_000_000_000), Fault.TOO_COSTLY),
    "no-iterations": (slot(kdf__iterations=0), Fault.DAMAGED),
    "negative-iterations": (slot(kdf__iterations=-5), Fault.DAMAGED),
    "negative-memory": (argon2(memory=-1), Fault.DAMAGED),
    "negative-key": (slot(key_size=-64), Fault.DAMAGED),
    "threads": (argon2(cpus=1000), Fault.DAMAGED),
    "no-threads": (argon2(cpus=0), Fault.DAMAGED),
    "no-memory": (argon2(memory=0), Fault.DAMAGED),
    "salt": (argon2(salt="!!"), Fault.DAMAGED),
    "short-salt": (argon2(salt="AAAA"), Fault.DAMAGED),
    "kdf": (slot(kdf__type="scrypt"), Fault.KDF),
    "argon2d": (argon2(type="argon2d"), Fault.KDF),
    "hash": (slot(kdf__hash="md5"), Fault.KDF),
    "af-hash": (slot(af__hash="../../etc"), Fault.KDF),
    "stripes": (slot(af__stripes=1 << 30), Fault.DAMAGED),
    "no-stripes": (slot(af__stripes=0), Fault.DAMAGED),
    "key-size": (slot(key_size=1 << 40), Fault.CIPHER),
    "no-key": (slot(key_size=0), Fault.CIPHER),
    "area-in-header": (slot(area__offset="4096"), Fault.DAMAGED),
    "area-behind-end": (slot(area__offset=str(1 << 40)), Fault.CUT_OFF),
    "area-too-small": (slot(area__size="512"), Fault.DAMAGED),
    "area-no-number": (slot(area__offset="0x8000"), Fault.DAMAGED),
    "area-arabic": (slot(area__offset="٣٢٧٦٨"), Fault.DAMAGED),
    "area-cipher": (slot(area__encryption="rot13-ecb-null"), Fault.CIPHER),
    "area-key": (slot(area__key_size=7), Fault.DAMAGED),
    "slot-type": (slot(type="luks9"), Fault.NO_SLOT),
    "slot-text": (slot(key_size="64"), Fault.DAMAGED),
    "requirement": (lambda told: told["config"].update(requirements={"mandatory": ["x"]}), Fault.REQUIREMENT),
    "reencryption": (
        lambda told: told["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}),
        Fault.REQUIREMENT,
    ),
    "integrity": (segment(integrity={"type": "hmac(sha256)"}), Fault.INTEGRITY),
    "linear": (segment(type="linear"), Fault.VERSION),
    "flags": (segment(flags=["backup-final"]), Fault.REQUIREMENT),
    "two-segments": (second_segment, Fault.REQUIREMENT),
    "no-segment": (lambda told: told.update(segments={}), Fault.DAMAGED),
    "sector": (segment(sector_size=8192), Fault.DAMAGED),
    "segment-behind-end": (segment(offset=str(1 << 50)), Fault.CUT_OFF),
    "segment-too-long": (segment(size=str(1 << 50)), Fault.CUT_OFF),
    "segment-huge": (segment(size="9" * 5000), Fault.DAMAGED),
    "segment-odd": (segment(offset="2097153"), Fault.DAMAGED),
    "cascade": (segment(encryption="aes-serpent-xts-plain64"), Fault.CIPHER),
    "elephant": (segment(encryption="aes-cbc-elephant"), Fault.CIPHER),
    "iv": (segment(iv_tweak="-1"), Fault.DAMAGED),
    "cipher": (segment(encryption="aes-xts-essiv:wp256"), Fault.CIPHER),
    "capi": (segment(encryption="capi:xts(ecb(aes-generic))-plain64"), Fault.CIPHER),
    "null": (segment(encryption="cipher_null-ecb"), Fault.CIPHER),
    "digest-type": (lambda told: told["digests"]["0"].update(type="x"), Fault.KDF),
    "digest-no-slot": (lambda told: told["digests"]["0"].update(keyslots=[]), Fault.NO_SLOT),
    "digest-other": (lambda told: told["digests"]["0"].update(segments=["7"]), Fault.NO_SLOT),
    "no-digests": (lambda told: told.pop("digests"), Fault.DAMAGED),
    "many-slots": (
        lambda told: told.update(keyslots={str(n): told["keyslots"]["0"] for n in range(60)}),
        Fault.DAMAGED,
    ),
    "same-area": (lambda told: told["keyslots"].update({"1": told["keyslots"]["0"]}), Fault.DAMAGED),
    "left-out": (slot(priority=0), Fault.NO_SLOT),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_in_words(luks2_bytes: bytes, name: str) -> None:
    change, fault = HOSTILE[name]
    data = encrypted.with_json(luks2_bytes, change)
    assert fault_of(data) is fault
    volumes_describe(data)


def volumes_describe(data: bytes) -> None:
    """Describe, which may fail by a KeyFault alone, and says what the host believes."""
    with suppress(KeyFault):
        believed(volumes.describe(volume(data), None, None))


TEXTS = {
    "empty": b"",
    "list": b"[]",
    "deep": b"[" * 12000,
    "deep-objects": b'{"a":' * 2400,
    "huge-number": b'{"keyslots":' + b"9" * 9000 + b"}",
    "nan": b'{"keyslots":{},"segments":{},"digests":{},"config":NaN}',
    "utf-8": b'{"keyslots\xff":1}',
    "numbers": b'{"keyslots":{"x":{}},"segments":{},"digests":{},"config":{}}',
    "lists": b'{"keyslots":[],"segments":[],"digests":[],"config":[]}',
    "segments-text": b'{"keyslots":{},"segments":{"0":"integrity"},"digests":{},"config":{}}',
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_header_is_damaged(luks2_bytes: bytes, name: str) -> None:
    assert fault_of(encrypted.with_text(luks2_bytes, TEXTS[name])) is Fault.DAMAGED


def test_memory_is_weighed_before_it_is_taken(made: Callable[[str], Path]) -> None:
    data = made("luks2-argon2id").read_bytes()  # it asks for 1 MiB
    assert fault_of(data, least=Budget(1023)) is Fault.TOO_COSTLY
    assert fault_of(data, least=Budget(1024, available=1023)) is Fault.NO_MEMORY
    assert unlock(data, least=Budget(1024, available=1024)).key


def test_a_slot_that_could_not_be_tried_is_no_wrong_key(luks2_bytes: bytes) -> None:
    """The secret may be that of the slot that costs too much."""

    def two(told: dict[str, Any]) -> None:
        other = told["keyslots"]["0"] | {"kdf": told["keyslots"]["0"]["kdf"] | {"iterations": 4_000_000_000}}
        other["area"] = other["area"] | {"offset": str(int(other["area"]["offset"]) + (512 << 10))}
        told["keyslots"] = {"0": other, "1": told["keyslots"]["0"]}
        told["digests"]["0"]["keyslots"] = ["0", "1"]

    data = encrypted.with_json(luks2_bytes, two)
    assert fault_of(data, b"wrong") is Fault.TOO_COSTLY
    assert unlock(data).key


@pytest.mark.parametrize(
    ("size", "fault"),
    [(4, Fault.NOT_ENCRYPTED), (100, Fault.DAMAGED), (40000, Fault.CUT_OFF), (2 << 20, Fault.CUT_OFF)],
)
def test_a_volume_that_is_cut_off(luks2_bytes: bytes, size: int, fault: Fault) -> None:
    assert fault_of(luks2_bytes[:size]) is fault


def test_what_cannot_be_read_is_cut_off(luks2_bytes: bytes) -> None:
    shorter = Volume(lambda offset, length: luks2_bytes[offset : offset + length][:-1], len(luks2_bytes))
    with pytest.raises(KeyFault) as failure:
        luks2.read(shorter)
    assert failure.value.fault in (Fault.CUT_OFF, Fault.NOT_ENCRYPTED)


# --- LUKS1 -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("at", "form", "value", "fault"),
    [
        (104, ">I", 0, Fault.DAMAGED),  # payload on the header
        (104, ">I", 8, Fault.DAMAGED),  # payload on the key slots
        (104, ">I", 0xFFFFFFFF, Fault.CUT_OFF),
        (108, ">I", 0xFFFFFFFF, Fault.DAMAGED),  # bytes of the key
        (164, ">I", 0xFFFFFFFF, Fault.TOO_COSTLY),  # iterations of the digest
        (208, ">I", 5, Fault.DAMAGED),  # neither used nor free
        (208, ">I", 0xDEAD, Fault.NO_SLOT),
        (212, ">I", 0xFFFFFFFF, Fault.TOO_COSTLY),
        (248, ">I", 0, Fault.DAMAGED),  # a key slot on the header
        (248, ">I", 0xFFFFFFF0, Fault.DAMAGED),
        (252, ">I", 0xFFFFFFFF, Fault.DAMAGED),  # stripes
        (8, ">B", 0xFF, Fault.DAMAGED),  # cipher
        (72, ">B", 0x78, Fault.KDF),  # hash
        (40, ">B", 0x79, Fault.CIPHER),  # mode
        (6, ">H", 3, Fault.VERSION),  # version
    ],
)
def test_a_hostile_luks1_header(made: Callable[[str], Path], at: int, form: str, value: int, fault: Fault) -> None:
    data = bytearray(made("luks1").read_bytes())
    struct.pack_into(form, data, at, value)
    assert fault_of(bytes(data)) is fault
    volumes_describe(bytes(data))


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_mutated_headers_end_in_words(made: Callable[[str], Path], kind: str) -> None:
    sound = made(kind).read_bytes()
    chance = random.Random(f"mountsafe {kind}")
    text = sound[4096:16384].rstrip(b"\0")
    outcomes: set[Fault | None] = set()
    for _ in range(MUTATIONS):
        data = bytearray(sound if kind == "luks1" else text)
        for at in chance.choices(range(592 if kind == "luks1" else len(text)), k=chance.randrange(1, 4)):
            data[at] = chance.choice([0, 1, 0x30, 0x39, 0x7F, 0xFF, data[at] ^ 1])
        whole = bytes(data) if kind == "luks1" else encrypted.with_text(sound, bytes(data))
        volumes_describe(whole)
        try:
            unlock(whole, least=budget(seconds=0.5))
            outcomes.add(None)
        except KeyFault as fault:
            outcomes.add(fault.fault)
    assert len(outcomes) > 3
