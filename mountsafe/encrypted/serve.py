"""The plaintext server: nbdkit runs this as its script, in a box, and serves the disk that a stack makes, read-only.

With a `Settings.tally` it is the writing server: the disk is written to as well.

nbdkit speaks NBD, here is what it reads. Its parameter is settings=, with `Settings` as JSON. Of the stack and the keys
come descriptors, so neither is seen by who lists processes. It says {"event": "opened", "size": bytes of the disk}, or
{"failed": "open", "why"}. After that the requests are {"do": "connect"} with a socket, which this end connects. It ends
when the parent closes the channel, or when who serves the disk below has gone: it cannot be connected anew.

Once it has begun it opens no file, starts no program and makes no socket any more.
"""

import ctypes
import json
import os
import socket
import sys
import threading
from typing import NoReturn

sys.path.insert(0, "/app")  # `sandbox.INSIDE`, in the box alone

import nbdkit

from mountsafe import channel, codec, landlock
from mountsafe.encrypted.settings import SOCKET, Settings
from mountsafe.encrypted.tally import Tally
from mountsafe.errors import DiskGone, MediumError, MountsafeError, ProtocolFault
from mountsafe.medium.blocking import BlockingDisk
from mountsafe.medium.encryption import Stack
from mountsafe.medium.stacked import open_blocking
from mountsafe.medium.writable import WritableDisk, open_writable

API_VERSION = 2  # of nbdkit's Python scripts
PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h
WHY = 1000  # characters

_settings: Settings
_disk: BlockingDisk
_writable: tuple[WritableDisk, Tally] | None = None
_not_kept: MediumError | None = None  # why a flush failed


def config(key: str, value: str) -> None:
    """Take a parameter."""
    global _settings
    if key != "settings":
        raise ValueError("an unknown parameter")
    _settings = codec.read(Settings, json.loads(value))


def thread_model() -> int:
    """Let requests be served at the same time: one that waits for a bad sector is not waited for by others."""
    model: int = nbdkit.THREAD_MODEL_PARALLEL
    return model


def after_fork() -> None:
    """Open the disk, give up all paths, and say what became of it. The socket listens already."""
    control = socket.socket(fileno=_settings.control)
    try:
        if _settings.keys and ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            raise OSError("the memory cannot be kept from other processes")
        with open_file(_settings.stack) as file:
            stack = codec.read(Stack, json.load(file))
        _open(stack)
        landlock.enclose()
    except (MountsafeError, OSError, ValueError) as error:
        channel.send(control, {"failed": "open", "why": str(error)[:WHY]})
        _end(1)
    channel.send(control, {"event": "opened", "size": _disk.size})
    threading.Thread(target=_talk, args=(control,), daemon=True).start()


def _open(stack: Stack) -> None:
    global _disk, _writable
    if _settings.tally is None:
        _disk = open_blocking(stack, [_settings.disk, *_settings.keys])
    else:
        _writable = open_writable(stack, [_settings.disk, *_settings.keys]), Tally(_settings.tally)
        _disk = _writable[0]


open_file = open  # nbdkit has another use for the name


def _talk(control: socket.socket) -> None:
    try:
        while (received := channel.receive(control)) is not None:
            _connect(control, *received)
    except (MountsafeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        _end(1)
    _end(0)


def _connect(control: socket.socket, message: channel.Message, fds: list[int]) -> None:
    if message.get("do") != "connect" or len(fds) != 1:
        raise ProtocolFault(f"an unknown request, with {len(fds)} descriptors")
    try:
        with socket.socket(fileno=fds[0]) as theirs:
            theirs.connect(SOCKET)
    except OSError as error:
        channel.send(control, {"failed": "connect", "why": str(error)})
    else:
        channel.send(control, {"done": "connect"})


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


def open(readonly: bool) -> bool:
    """Take a client; return what the functions below get first."""
    return True


def get_size(client: bool) -> int:
    """Return the disk's size."""
    return _disk.size


def can_multi_conn(client: bool) -> bool:
    """Whether all clients see the same, and what one has written is flushed for all."""
    return True


def can_write(client: bool) -> bool:
    """Whether it may be written to."""
    return _writable is not None


def can_flush(client: bool) -> bool:
    """Whether it can be made sure that what was written stays."""
    return _writable is not None


def can_fua(client: bool) -> int:
    """Say what nbdkit does for a write that is to stay: it writes, and flushes."""
    emulated: int = nbdkit.FUA_EMULATE
    none: int = nbdkit.FUA_NONE
    return none if _writable is None else emulated


def pread(client: bool, buffer: memoryview, offset: int, flags: int) -> None:
    """Fill a client's buffer. What is raised is EIO for that request alone."""
    try:
        buffer[:] = _disk.read(offset, len(buffer))
    except DiskGone as error:
        sys.stderr.write(f"{error}\n")
        _end(1)


def pwrite(client: bool, buffer: memoryview, offset: int, flags: int) -> None:
    """Write what a client sent. What is raised is EIO for that request alone.

    Whatever it was: at a disk that is full, ENOSPC, QEMU would stop its virtual machine, and wait for somebody.
    """
    disk, tally = _for_writing()
    tally.wrote(len(buffer))
    try:
        disk.write(offset, memoryview(buffer))
    except MediumError as error:
        _failed(tally, error)


def flush(client: bool, flags: int) -> None:
    """Return when the medium has what was written. After one failure every later one is one.

    The kernel tells an error once, and then takes what it could not write for written; but a guest asks again, for QEMU
    tells it that its command was aborted.
    """
    global _not_kept  # nbdkit calls functions of a module
    disk, tally = _for_writing()
    if _not_kept is not None:
        raise _not_kept
    try:
        disk.flush()
    except MediumError as error:
        _not_kept = error
        _failed(tally, error)


def _for_writing() -> tuple[WritableDisk, Tally]:
    if _writable is None:
        raise MediumError("a write to what is only read")
    return _writable


def _failed(tally: Tally, error: MediumError) -> NoReturn:
    cause = error.__cause__
    tally.failed((cause.errno or 0) if isinstance(cause, OSError) else 0)
    sys.stderr.write(f"{error}\n")
    raise error
