"""Reads a mount, or writes to it, and measures itself: a process of its own, so that neither the start of an
interpreter nor the mount's supervisor is in the figures.

    reader.py WHAT [ARG...]

It says "ready", waits for a line, works, and prints a line of JSON. Standard library only; run with -I -S.
"""

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable

MIB = 1 << 20


def sequential(path: str, start: str, length: str) -> dict[str, float]:
    """Read a part of a file in pieces of 1 MiB, as dd does."""
    buffer = bytearray(MIB)
    at, end = int(start), int(start) + int(length)
    began = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    while at < end and (count := os.preadv(fd, [memoryview(buffer)[: end - at]], at)):
        at += count
    os.close(fd)
    return {"seconds": time.perf_counter() - began, "bytes": at - int(start)}


def scattered(path: str, seed: str, count: str, size: str) -> dict[str, float]:
    """Read `count` pieces of `size` bytes, aligned, anywhere in a file."""
    piece = int(size)
    places = random.Random(int(seed))
    whole = os.stat(path).st_size // piece
    offsets = [places.randrange(whole) * piece for _ in range(int(count))]
    buffers = [bytearray(piece)]
    began = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    for offset in offsets:
        os.preadv(fd, buffers, offset)
    os.close(fd)
    return {"seconds": time.perf_counter() - began}


def overwritten(path: str, seed: str, count: str, size: str) -> dict[str, float]:
    """Write `count` pieces of `size` bytes, aligned, anywhere in a file, and have them on the medium."""
    piece, numbers = int(size), random.Random(int(seed))
    whole = os.stat(path).st_size // piece
    offsets = [numbers.randrange(whole) * piece for _ in range(int(count))]
    data = numbers.randbytes(piece)
    began = time.perf_counter()
    fd = os.open(path, os.O_RDWR)
    for offset in offsets:
        os.pwrite(fd, data, offset)
    os.fsync(fd)
    os.close(fd)
    return {"seconds": time.perf_counter() - began}


def status(base: str, names: str, seed: str) -> dict[str, float]:
    """lstat every path of a list, in random order."""
    with open(names, encoding="utf-8") as file:
        paths = [os.path.join(base, line.rstrip("\n")) for line in file]
    random.Random(int(seed)).shuffle(paths)
    began = time.perf_counter()
    for path in paths:
        os.lstat(path)
    return {"seconds": time.perf_counter() - began}


def samples(path: str, offsets: str, size: str) -> dict[str, str]:
    """Digest of the pieces of a file at the given offsets."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for offset in json.loads(offsets):
            digest.update(os.pread(file.fileno(), int(size), offset))
    return {"digest": digest.hexdigest()}


def digest(base: str, folder: str, with_data: str) -> dict[str, str]:
    """Digest of a folder: names, sizes, and with "data" the bytes."""
    found = [(folder, "folder")]
    for at, folders, files in os.walk(os.path.join(base, folder)):
        inside = os.path.relpath(at, base)
        found += [(f"{inside}/{name}", "folder") for name in folders]
        found += [(f"{inside}/{name}", str(os.lstat(os.path.join(at, name)).st_size)) for name in files]
    total = hashlib.sha256()
    for path, size in sorted(found):
        total.update(f"{path} {size}\n".encode())
        if with_data == "data" and size != "folder":
            with open(os.path.join(base, path), "rb") as file:
                total.update(file.read())
    return {"digest": total.hexdigest()}


KINDS: dict[str, Callable[..., dict[str, float] | dict[str, str]]] = {
    "sequential": sequential,
    "scattered": scattered,
    "overwritten": overwritten,
    "status": status,
    "samples": samples,
    "digest": digest,
}

if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(KINDS[sys.argv[1]](*sys.argv[2:])), flush=True)
