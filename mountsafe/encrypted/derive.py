"""The key process: reads an encrypted volume's header, and makes its key of a secret. No trio.

It has the disk to read, no file and no network, and gives away two things: what a header says, and a layout. The key
goes into memory that the host made; the secret comes on a descriptor of its own. It ends when the parent closes the
channel, and whoever starts it ends it as soon as the key is there.
"""

import json
import os
import socket
import sys

from mountsafe import channel, codec, landlock
from mountsafe.encrypted import gcrypt, secrecy, volumes
from mountsafe.encrypted.description import MAX_TEXT, Form, Kind
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.messages import (
    ANSWERS,
    REQUESTS,
    Answer,
    Describe,
    Described,
    Failed,
    Opened,
    Settings,
    Unlock,
)
from mountsafe.encrypted.volume import Volume
from mountsafe.errors import ProtocolFault
from mountsafe.limits import MAX_SECRET
from mountsafe.medium.encryption import Stack

KEYFILE_BYTES = 1 << 20  # of a key file of VeraCrypt's: the rest does not count


def _disk(stack: Stack, fds: tuple[int, ...]) -> Volume:
    return Volume(lambda offset, length: os.pread(fds[0], length, stack.offset + offset), stack.size)


def _header(fd: int | None) -> Volume | None:
    if fd is None:
        return None
    return Volume(lambda offset, length: os.pread(fd, length, offset), os.lseek(fd, 0, os.SEEK_END))


def _available_memory() -> int | None:
    """Return the KiB that are left without swapping (proc(5)); None if the kernel does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("MemAvailable:")), None)
    except OSError:
        return None


def _secret(request: Unlock, fds: list[int]) -> volumes.Secret:
    """Read what came. Raises KeyFault; no descriptor stays open."""
    waiting = list(fds)
    try:
        secret = b"" if request.form is Form.CLEAR_KEY else secrecy.taken(waiting.pop(0), MAX_SECRET)
        keyfiles = []
        while waiting:
            keyfiles.append(secrecy.taken(waiting.pop(0), KEYFILE_BYTES, whole=False))
    finally:
        channel.close(waiting)
    exact = request.form is Form.BEK_FILE or (request.form is Form.KEY_FILE and request.kind in (None, Kind.LUKS))
    if not exact and secret.endswith(b"\n"):
        secret = secret[:-1]
    return volumes.Secret(request.form, secret, request.pim, request.hidden, tuple(keyfiles))


class KeyMaker:
    """The volume, and the answers to what is asked of it."""

    def __init__(self, volume: Volume, header: Volume | None, memory: int, available: int | None) -> None:
        self._volume = volume
        self._header = header
        self._memory = memory >> 10
        self._available = available

    def answer(self, untrusted: channel.Message, fds: list[int]) -> Answer:
        """Return the answer to a request; the descriptors that came with it are closed."""
        request = REQUESTS.read(untrusted)
        try:
            if isinstance(request, Describe):
                channel.close(fds)
                return Described(volumes.describe(self._volume, self._header, request.kind))
            return self._unlock(request, fds)
        except KeyFault as fault:
            return Failed(fault.fault, fault.detail[:MAX_TEXT])
        except MemoryError:
            return Failed(Fault.NO_MEMORY, "")
        except OSError as error:
            return Failed(Fault.UNREADABLE, os.strerror(error.errno or 0))

    def _unlock(self, request: Unlock, fds: list[int]) -> Answer:
        if len(fds) != 1 + (request.form is not Form.CLEAR_KEY) + request.keyfiles:
            channel.close(fds)
            raise ProtocolFault(f"{len(fds)} descriptors came with a request to unlock")
        memory, *others = fds
        try:
            secret = _secret(request, others)
            budget = Budget(self._memory, available=self._available)
            try:
                opened = volumes.unlock(self._volume, self._header, request.kind, secret, budget)
            finally:
                for each in (secret.secret, *secret.keyfiles):
                    secrecy.wipe(each)
            secrecy.lock(opened.key)
            if os.pwrite(memory, opened.key, 0) != len(opened.key):
                raise OSError("the key does not fit")
            secrecy.wipe(opened.key)
        finally:
            os.close(memory)
        return Opened(opened.layout)


def main() -> None:
    """Run with one argument, the `Settings` as JSON."""
    settings = codec.read(Settings, json.loads(sys.argv[1]))
    secrecy.undumpable()
    control = socket.socket(fileno=settings.control)
    control.set_inheritable(False)
    gcrypt.load()
    available = _available_memory()
    landlock.enclose()
    header = _header(settings.header)
    maker = KeyMaker(_disk(settings.stack, settings.fds), header, settings.memory, available)
    while (received := channel.receive(control)) is not None:
        channel.send(control, ANSWERS.told(maker.answer(*received)))
