"""The key process: reads an encrypted volume's header, and makes its key of a secret. No trio.

It has the disk to read, no file and no network, and gives away two things: what a header says, and a layout. The key
goes into memory that the host made; the secret comes on a descriptor of its own. It ends when the parent closes the
channel, and whoever starts it ends it as soon as the key is there.
"""

import codecs
import ctypes
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
from mountsafe.errors import MediumError, ProtocolFault
from mountsafe.limits import KEYFILE_BYTES, MAX_SECRET
from mountsafe.medium.stacked import open_blocking

THREADS = "libgcc_s.so.1"  # what the C library loads when the first thread of argon2's ends: too late here


def _header(fd: int) -> Volume:
    return Volume(lambda offset, length: os.pread(fd, length, offset), os.lseek(fd, 0, os.SEEK_END))


def _available_memory() -> int | None:
    """Return the KiB that are left without swapping (proc(5)); None if the kernel does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("MemAvailable:")), None)
    except OSError:
        return None


def _secret(request: Unlock, secret: bytes, keyfiles: tuple[bytes, ...]) -> volumes.Secret:
    exact = request.form is Form.BEK_FILE or (request.form is Form.KEY_FILE and request.kind in (None, Kind.LUKS))
    if not exact and secret.endswith(b"\n"):
        secret = secret[:-1]
    return volumes.Secret(request.form, secret, request.pim, request.hidden, keyfiles)


class KeyMaker:
    """The volume, and the answers to what is asked of it. `available`: KiB of memory, None if that is not known."""

    def __init__(self, volume: Volume, memory: int, available: int | None) -> None:
        self._volume = volume
        self._memory = memory >> 10
        self._available = available

    def answer(self, untrusted: channel.Message, fds: list[int]) -> Answer:
        """Return the answer to a request; the descriptors that came with it are closed. Raises ProtocolFault."""
        waiting = list(fds)
        try:
            request = REQUESTS.read(untrusted)
            if isinstance(request, Describe):
                return self._describe(request, waiting)
            return self._unlock(request, waiting)
        except KeyFault as fault:
            return Failed(fault.fault, fault.detail[:MAX_TEXT])
        except MemoryError:
            return Failed(Fault.NO_MEMORY, "")
        except (MediumError, OSError) as error:
            return Failed(Fault.UNREADABLE, str(error)[:MAX_TEXT])
        finally:
            channel.close(waiting)

    def _describe(self, request: Describe, fds: list[int]) -> Answer:
        _expect(len(fds) == request.header)
        return Described(volumes.describe(self._volume, _header(fds[0]) if fds else None, request.kind))

    def _unlock(self, request: Unlock, fds: list[int]) -> Answer:
        has_secret = request.form is not Form.CLEAR_KEY
        _expect(len(fds) == 1 + has_secret + request.header + request.keyfiles)
        secret = secrecy.taken(fds.pop(1), MAX_SECRET) if has_secret else b""
        header = _header(fds[1]) if request.header else None
        keyfiles = []
        while len(fds) > 1 + request.header:
            keyfiles.append(secrecy.taken(fds.pop(1 + request.header), KEYFILE_BYTES, whole=False))
        given = _secret(request, secret, tuple(keyfiles))
        budget = Budget(self._memory, available=self._available)
        try:
            opened = volumes.unlock(self._volume, header, request.kind, given, budget)
        finally:
            for each in (secret, given.secret, *keyfiles):
                secrecy.wipe(each)
        secrecy.lock(opened.key)
        os.lseek(fds[0], 0, os.SEEK_SET)
        if os.write(fds[0], opened.key) != len(opened.key):
            raise ProtocolFault("the memory for the key takes less")
        secrecy.wipe(opened.key)
        return Opened(opened.layout)


def _expect(descriptors_fit: bool) -> None:
    if not descriptors_fit:
        raise ProtocolFault("another number of descriptors came with a request")


def main() -> None:
    """Run with one argument, the `Settings` as JSON."""
    settings = codec.read(Settings, json.loads(sys.argv[1]))
    secrecy.undumpable()
    control = socket.socket(fileno=settings.control)
    control.set_inheritable(False)
    gcrypt.load()
    ctypes.CDLL(THREADS)
    codecs.lookup("utf-16-le")  # BitLocker's
    available = _available_memory()
    disk = open_blocking(settings.stack, settings.fds)
    landlock.enclose()
    maker = KeyMaker(Volume(disk.read, disk.size), settings.memory, available)
    while (received := channel.receive(control)) is not None:
        channel.send(control, ANSWERS.told(maker.answer(*received)))
