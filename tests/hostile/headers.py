"""Headers of encrypted volumes that are damaged, and a key that was right before: what the host makes of both.

Each is described and unlocked in the key process's box; what opens all the same is served by the boxed server, and read
as a session reads it. There is no virtual machine in that: it is the host's own parsers that are tried.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import trio

from mountsafe.encrypted.description import Form
from mountsafe.encrypted.keys import KeyProcess, Secret, key_memory
from mountsafe.encrypted.serving import Plaintext
from mountsafe.errors import ExitCode
from mountsafe.medium.encryption import Layer, Layout, Stack
from mountsafe.medium.stacked import open_blocking
from tests import encrypted
from tests.hostile import mutations
from tests.hostile.mutations import Edit, Map, Spot

PIM = 1
KEYS = bytes(range(64))
MASTER = b"M" * 32
LUKS2_HEADER = 16 << 10  # bytes of each of its two copies, the JSON included
LUKS2_JSON = 4096  # where that begins
CRCS_RIGHT = 0.9
STATED = {ExitCode.SOURCE, ExitCode.LOCKED, ExitCode.DEPENDENCY}  # what a header, or a key that is not its, may come to
READ = 64 << 10  # bytes at the beginning and at the end of what was unlocked


@dataclass(frozen=True, slots=True)
class Lock:
    """What opens a base: a form of key and the secret; `fstype` and `pim` if it has no signature. `file`: of a key."""

    form: Form
    secret: bytes
    fstype: str | None = None
    pim: int = 0
    file: bool = False


LOCKS = {
    "luks1": Lock(Form.KEY_FILE, encrypted.SECRET, file=True),
    "luks2-pbkdf2": Lock(Form.KEY_FILE, encrypted.SECRET, file=True),
    "luks2-argon2id": Lock(Form.KEY_FILE, encrypted.SECRET, file=True),
    "bitlocker-password": Lock(Form.PASSPHRASE, encrypted.PASSWORD),
    "bitlocker-startup": Lock(Form.BEK_FILE, encrypted.bek(), file=True),
    "bitlocker-suspended": Lock(Form.CLEAR_KEY, b"", file=True),
    "veracrypt": Lock(Form.PASSPHRASE, encrypted.SECRET, "VeraCrypt", PIM),
    "truecrypt": Lock(Form.PASSPHRASE, encrypted.SECRET, "TrueCrypt"),
}
PREFIX = "headers/"  # of their names as bases


# --- bases -----------------------------------------------------------------------------------------------------------
def make(name: str, path: Path) -> None:
    """Write a volume that its lock opens."""
    match name:
        case "luks1":
            encrypted.luks(path, "--type", "luks1", *encrypted.FAST)
        case "luks2-pbkdf2":
            encrypted.luks(path, *encrypted.FAST2)
        case "luks2-argon2id":
            encrypted.luks(path, *encrypted.LUKS2, "--pbkdf", "argon2id", *encrypted.SMALL)
        case "veracrypt" | "truecrypt":
            path.write_bytes(encrypted.tcrypt({0: _tcrypt_header(name, _tcrypt_plain(name))}))
        case _:
            kind = {"bitlocker-suspended": encrypted.clear_protector, "bitlocker-startup": encrypted.startup_protector}
            protector = kind.get(name, encrypted.password_protector)
            path.write_bytes(encrypted.bitlocker(encrypted.metadata(protector(MASTER), KEYS[:32], MASTER), (0,)))


def _tcrypt_plain(name: str) -> bytes:
    return encrypted.tcrypt_plain(KEYS, *((b"VERA", 5) if name == "veracrypt" else (b"TRUE", 4)))


def _tcrypt_header(name: str, plain: bytes) -> bytes:
    iterations = 15_000 + 1_000 * PIM if name == "veracrypt" else 1_000
    return encrypted.tcrypt_header(plain, encrypted.SECRET, "sha512", iterations)


def words(source: str, path: Path) -> list[str]:
    """Return what a command line that mounts an image says, of a base or not, to have it unlocked."""
    lock = LOCKS.get(source.removeprefix(PREFIX))
    if lock is None or not lock.secret:
        return []
    path.write_bytes(lock.secret)
    path.chmod(0o644)
    return ["--key-file", str(path)]


# --- damage ----------------------------------------------------------------------------------------------------------
def mutate(name: str, data: mutations.Image, rng: Random) -> tuple[Edit, ...]:
    """Return damage to the header of a base, most of it with checksums that are right again."""
    if name in ("veracrypt", "truecrypt"):
        return (Edit(0, _tcrypt_header(name, _damaged_tcrypt(_tcrypt_plain(name), rng))),)
    if name.startswith("luks2") and rng.random() < 0.6:
        return _damaged_json(data, rng)
    found = _map(name, data)
    return tuple(mutations.sealed(data, found, mutations.mutate(data, found, rng)))


def _map(name: str, data: mutations.Image) -> Map:
    if name == "luks1":
        return Map([[Spot(0, 208)], [Spot(208, 48)], [Spot(4096, 512)]])
    if name.startswith("luks2"):
        text = data[LUKS2_JSON:LUKS2_HEADER].find(b"\0")
        copies = [Spot(start, LUKS2_HEADER, _seal_luks2) for start in (0, LUKS2_HEADER)]
        inside = [[Spot(start, 136), Spot(start + LUKS2_JSON, text)] for start in (0, LUKS2_HEADER)]
        return Map([copies, *inside])
    area = encrypted.AREAS[0]
    return Map([[Spot(0, 512)], [Spot(area, 65536, encrypted.with_sum)], [Spot(area, 112)], [Spot(area + 112, 256)]])


def _seal_luks2(data: bytes) -> bytes:
    sealed = bytearray(data)
    sealed[448:512] = bytes(64)
    sealed[448:480] = hashlib.sha256(sealed).digest()
    return bytes(sealed)


_WORDS = (
    "",
    "0",
    "-1",
    "1e9",
    "18446744073709551615",
    "99999999999999999999",
    "aes-xts-plain64",
    "cipher_null-ecb",
    "\0",
)
_NUMBERS = (0, -1, 1, 2**31, 2**32, 2**63, 2**64, 4096, 512, 10**30, 0.5)


def _damaged_json(data: mutations.Image, rng: Random) -> tuple[Edit, ...]:
    """Other values in the text of both copies, most of them of the type that belongs there, or none."""
    told = json.loads(bytes(data[LUKS2_JSON:LUKS2_HEADER]).partition(b"\0")[0])
    for _ in range(rng.randint(1, 3)):
        if not (places := list(_places(told))):
            break
        holder, key = rng.choice(places)
        if rng.random() < 0.1 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = _other(holder[key], rng)
    changed = encrypted.with_text(bytes(data), json.dumps(told).encode())
    return (Edit(0, changed[: 2 * LUKS2_HEADER]),)


def _other(old: Any, rng: Random) -> Any:
    if rng.random() < 0.2:
        return rng.choice((rng.choice(_WORDS), rng.choice(_NUMBERS), None, [], {}, [old], [[]] * 2000))
    if isinstance(old, str) and not old.isdecimal():
        cut = rng.randrange(len(old) + 1)
        return rng.choice((rng.choice(_WORDS), old[:cut], old[:cut] + "-" + old[cut:]))
    number = rng.choice((rng.choice(_NUMBERS), int(old) + rng.choice((-512, -1, 1, 512)) if _is_number(old) else 1))
    return str(number) if isinstance(old, str) else number


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.isdecimal())


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _damaged_tcrypt(plain: bytes, rng: Random) -> bytes:
    """What somebody writes who has the passphrase."""
    made = bytearray(plain)
    for edit in mutations.mutate(plain, Map([[Spot(0, 64)], [Spot(64, 124)], [Spot(192, 256)]]), rng):
        made[edit.offset : edit.offset + len(edit.data)] = edit.data
    del made[len(plain) :]
    if rng.random() < CRCS_RIGHT:
        struct.pack_into(">I", made, 8, zlib.crc32(made[192:]))
        struct.pack_into(">I", made, 188, zlib.crc32(made[:188]))
    return bytes(made)


# --- unlocking -------------------------------------------------------------------------------------------------------
async def attempt(path: Path, lock: Lock) -> None:
    """Describe and unlock a volume, and read what that gives. Raises MountsafeError: why not."""
    with ExitStack() as kept:
        disk, key = os.open(path, os.O_RDONLY | os.O_CLOEXEC), key_memory()
        size = os.fstat(disk).st_size
        stack = Stack(True, size, 0, size)
        kept.callback(os.close, disk)
        kept.callback(os.close, key)
        secret = [] if lock.form is Form.CLEAR_KEY else [os.memfd_create("secret", os.MFD_CLOEXEC)]
        for fd in secret:
            kept.callback(os.close, fd)
            os.pwrite(fd, lock.secret, 0)
        layout = await _unlocked(KeyProcess.start(stack, [disk], lock.fstype), lock, secret, key)
        layer = Layer(((0, 0, size),), size, layout)
        await _read(replace(stack, layers=(layer,)), disk, key)


async def _unlocked(process: KeyProcess, lock: Lock, secret: list[int], key: int) -> Layout:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.log_words)
            await process.describe()
            layout = await process.unlock(Secret(lock.form, pim=lock.pim), secret, key)
            nursery.cancel_scope.cancel()
        return layout
    finally:
        with trio.CancelScope(shield=True):
            await process.stop()


async def _read(stack: Stack, disk: int, key: int) -> None:
    """Read the beginning and the end as a session does, and have it served as it is to a virtual machine."""
    opened = open_blocking(stack, [disk, os.dup(key)])
    length = min(READ, opened.size)
    for offset in (0, opened.size - length):
        opened.read(offset, length)
    server = Plaintext.start(stack, disk, [key])
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.log_words)
            await server.opened()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await server.stop()
