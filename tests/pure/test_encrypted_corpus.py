"""Encrypted volumes that other projects made: each opens as its maker says, or is refused for the reason named here."""

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from functools import partial
from pathlib import Path

import pytest

from mountsafe.encrypted import volumes
from mountsafe.encrypted.description import Form, Kind
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.volume import Volume
from mountsafe.medium.blocking import RawDisk
from mountsafe.medium.encrypting import both_ways
from mountsafe.medium.encryption import Layer, Layout, SegmentKind, Stack, check
from mountsafe.medium.stacked import Plan, open_blocking
from mountsafe.medium.writable import WritableLayer
from tests.conftest import missing
from tests.cryptsetups import unpacked
from tests.vm import corpus

BITLOCKER_SECRETS = (
    (Form.PASSPHRASE, "pw"),
    (Form.RECOVERY_KEY, "rp"),
    (Form.RECOVERY_KEY, "rp2"),
    (Form.BEK_FILE, "sk_vmk_guid"),
    (Form.CLEAR_KEY, "clearkey_vmk_guid"),
)
BITLOCKER = (
    *("aes-cbc-128", "aes-cbc-256", "aes-xts-128", "aes-xts-256", "aes-cbc-elephant-128", "aes-cbc-elephant-256"),
    *("togo-aes-cbc-128", "togo-aes-xts-128", "aes-xts-128-new-entry"),
    *("aes-xts-128-smart-card", "aes-cbc-128-4k", "aes-xts-128-4k", "aes-xts-128-startup-key"),
    *("aes-xts-128-startup-key-win11", "aes-xts-128-two-recovery", "aes-xts-128-unicode", "aes-xts-128-crc"),
    *("aes-xts-128-clearkey-only", "aes-xts-128-first-recovery"),
)
ON_WRITE = ("aes-xts-128-eow", "partially-encrypted-aes-cbc-128")  # refused, as by cryptsetup
LUKS1: dict[str, Fault | None] = {
    "aes-cbc-essiv-sha256-sha1": None,
    "aes-xts-plain64-sha1": None,
    "aes-xts-plain64-sha256": None,
    "aes-xts-plain64-whirlpool": None,
    "aes-lrw-plain64-sha1": Fault.CIPHER,
    "aes-xts-essiv-wp256-whirlpool": Fault.CIPHER,
    **dict.fromkeys([f"{c}-xts-plain64-{h}" for c in ("serpent", "twofish") for h in ("sha1", "sha256", "whirlpool")]),
}
LUKS2_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
LUKS2_PASSPHRASE = b"Qx3qn46vq0v"
HOSTILE = {
    "evil_hdr-keyslot_overlap": Fault.DAMAGED,
    "evil_hdr-luks_hdr_damage": Fault.DAMAGED,
    "evil_hdr-payload_overwrite": Fault.DAMAGED,
    "evil_hdr-small_luks_device": Fault.CUT_OFF,
    "evil_hdr-stripes_payload_dmg": Fault.DAMAGED,
    "luks2_invalid_cipher.img": Fault.CIPHER,
    "luks2_valid_hdr.img": Fault.KDF,  # "argon2", of a draft
}
# Name: the kind, password, what else, and the serial of the FAT inside, or why not.
TCRYPT: dict[str, tuple[Kind, bytes, dict[str, int | bool], str | Fault]] = {
    "tc_4-sha512-xts-aes": (Kind.TRUECRYPT, b"a" * 12, {}, "deadbabe"),
    "tc_3-ripemd160-xts-aes": (Kind.TRUECRYPT, b"a" * 12, {}, "deadbabe"),
    "tc_5-whirlpool-xts-aes": (Kind.TRUECRYPT, b"a" * 12, {}, "deadbabe"),
    "tc_5-sha512-xts-aes-hidden": (Kind.TRUECRYPT, b"b" * 12, {"hidden": True}, "cafebabe"),
    "tc_3-sha512-xts-aes-hidden": (Kind.TRUECRYPT, b"b" * 12, {"hidden": True}, "cafebabe"),
    "tck_5-sha512-xts-aes": (Kind.TRUECRYPT, b"a" * 12, {"keyfiles": True}, "deadbabe"),
    "tc_5-sha512-xts-serpent-twofish-aes": (Kind.TRUECRYPT, b"a" * 12, {}, "deadbabe"),
    "vc_1-sha512-xts-aes": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
    "vc_1-sha256-xts-aes": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
    "vc_1-blake2s-xts-aes": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
    "vc_1-ripemd160-xts-aes": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
    "vc_1-whirlpool-xts-aes": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
    "vc_1-argon2id-xts-aes": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
    "vcpim_1_8-argon2id-xts-aes": (Kind.VERACRYPT, b"c" * 20, {"pim": 8}, "deadbabe"),
    "vc_1-sha512-xts-aes-hidden": (Kind.VERACRYPT, b"b" * 12, {"hidden": True}, "cafebabe"),
    "vck_1_nopw-sha512-xts-aes": (Kind.VERACRYPT, b"", {"keyfiles": True}, "deadbabe"),
    "vc_1-sha512-xts-camellia": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
    "vc_1-sha512-xts-serpent-twofish-aes": (Kind.VERACRYPT, b"a" * 12, {}, "deadbabe"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A function that returns an image of an archive of the corpus, or of a file of its own."""
    return partial(unpacked, tmp_path_factory.mktemp("corpus"))


def unlock(path: Path, kind: Kind | None, secret: volumes.Secret) -> Iterator[bytes]:
    """Yield the plaintext, MiB by MiB. Raises KeyFault."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        volume = Volume(lambda offset, length: os.pread(fd, length, offset), size)
        opened = volumes.unlock(volume, None, kind, secret, Budget(1 << 20))
        check(opened.layout, size)
        rewrite(fd, size, opened.layout, opened.key)
        key = os.memfd_create("key", os.MFD_CLOEXEC)
        os.write(key, opened.key)
        disk = open_blocking(Stack(True, size, 0, size, (Layer(((0, 0, size),), size, opened.layout),)), [fd, key])
        for at in range(0, disk.size, 1 << 20):
            yield disk.read(at, min(1 << 20, disk.size - at))
    finally:
        os.close(fd)


class Unchanged(RawDisk):
    """A medium to which is written what is there already."""

    written = 0

    def write(self, offset: int, data: memoryview) -> None:
        assert self.read(offset, len(data)) == data
        self.written += len(data)

    def flush(self) -> None:
        raise AssertionError


def rewrite(fd: int, size: int, layout: Layout, key: bytes) -> None:
    """Write the plaintext where it was read, in whole sectors and in parts of some: not a byte may become another."""
    below = Unchanged(fd, size)
    disk = WritableLayer(below, Plan(Layer(((0, 0, size),), size, layout)), both_ways(layout, bytearray(key)))
    for segment in layout.segments:
        if segment.kind is SegmentKind.ZERO:
            continue
        for skip, length in ((0, min(segment.length, 64 << 10)), (100, min(segment.length - 200, 5000))):
            plain = disk.read(segment.logical + skip, length)
            disk.write(segment.logical + skip, memoryview(plain))
    assert below.written


def fault_of(path: Path, kind: Kind | None, secret: volumes.Secret) -> Fault:
    with pytest.raises(KeyFault) as failure:
        next(unlock(path, kind, secret))
    return failure.value.fault


@pytest.mark.parametrize("name", BITLOCKER)
def test_bitlocker_has_the_published_sums(images: Callable[[str, str], Path], name: str) -> None:
    path = images("bitlk-images.tar.xz", f"bitlk-images/bitlk-{name}.img")
    config = RawConfigParser()
    config.read(path.parent / "images.conf")
    said = config[path.stem]
    opened = 0
    for form, key in BITLOCKER_SECRETS:
        if not said.get(key):
            continue
        secret = said[key].encode()
        if form is Form.BEK_FILE:
            secret = (path.parent / f"{said[key].upper()}.BEK").read_bytes()
        pieces = unlock(path, None, volumes.Secret(form, secret))
        first = next(pieces)
        assert first[3:11] in (b"NTFS    ", b"MSDOS5.0")
        if opened == 0 and said["sha256sum"]:
            digest = hashlib.sha256(first)
            for piece in pieces:
                digest.update(piece)
            assert digest.hexdigest() == said["sha256sum"]
        opened += 1
    assert opened


@pytest.mark.parametrize("name", ON_WRITE)
def test_bitlocker_that_is_encrypted_on_write_is_refused(images: Callable[[str, str], Path], name: str) -> None:
    path = images("bitlk-images.tar.xz", f"bitlk-images/bitlk-{name}.img")
    assert fault_of(path, None, volumes.Secret(Form.PASSPHRASE, b"anaconda")) is Fault.REQUIREMENT


@pytest.mark.parametrize("name", LUKS1)
def test_luks1(images: Callable[[str, str], Path], name: str) -> None:
    path = images("luks1-images.tar.xz", f"luks1-images/luks1_{name}.img")
    secret = volumes.Secret(Form.KEY_FILE, (path.parent / "keyfile1").read_bytes())
    fault = LUKS1[name]
    if fault is not None:
        assert fault_of(path, None, secret) is fault
        return
    first = next(unlock(path, None, secret))
    assert first[39:43][::-1].hex() == "deadbabe"


@pytest.mark.parametrize(
    ("name", "form", "secret", "first"),
    [
        ("luks1/sha1", Form.PASSPHRASE, b"password", None),  # in ECB; nothing but its key was kept
        ("bde/suspended", Form.CLEAR_KEY, b"", b"NTFS    "),
    ],
)
def test_dissect(tmp_path: Path, name: str, form: Form, secret: bytes, first: bytes | None) -> None:
    packed = corpus.folder() / "dissect" / "dissect.fve" / f"{name}.bin.gz"
    if not packed.exists():
        missing(f"the corpus (expected at {corpus.folder()}, or where MOUNTSAFE_CORPUS says)")
    path = tmp_path / "x"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    plain = next(unlock(path, None, volumes.Secret(form, secret)))
    assert first in (None, plain[3:11])


@pytest.mark.parametrize("size", LUKS2_SIZES)
def test_luks2_of_every_size(images: Callable[[str, str], Path], size: int) -> None:
    path = images("luks2_mda_images.tar.xz", f"test_image_{size}")
    assert len(next(unlock(path, None, volumes.Secret(Form.PASSPHRASE, LUKS2_PASSPHRASE)))) == 1 << 20
    assert fault_of(path, None, volumes.Secret(Form.PASSPHRASE, b"wrong")) is Fault.WRONG_KEY


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(images: Callable[[str, str], Path], name: str) -> None:
    path = images("", name)
    assert fault_of(path, None, volumes.Secret(Form.PASSPHRASE, b"x")) is HOSTILE[name]


def test_requirements_are_refused(images: Callable[[str, str], Path]) -> None:
    path = images("luks2_header_requirements.tar.xz", "luks2_header_requirements")
    assert fault_of(path, None, volumes.Secret(Form.PASSPHRASE, b"x")) is Fault.REQUIREMENT


@pytest.mark.parametrize("name", TCRYPT)
def test_veracrypt_has_the_published_serial(images: Callable[[str, str], Path], name: str) -> None:
    kind, password, how, expected = TCRYPT[name]
    path = images("tcrypt-images.tar.xz", f"tcrypt-images/{name}")
    files = tuple((path.parent / f"keyfile{number}").read_bytes() for number in (1, 2) if how.get("keyfiles"))
    secret = volumes.Secret(Form.PASSPHRASE, password, int(how.get("pim", 0)), bool(how.get("hidden")), files)
    if isinstance(expected, Fault):
        assert fault_of(path, kind, secret) is expected
        return
    assert next(unlock(path, kind, secret))[39:43][::-1].hex() == expected
