"""How fast sectors are decrypted, and what that is of a read which is not encrypted: bench/decryption.py [--help].

MiB in a second of one processor's time, which others that compute meanwhile make less of, but not by as much as by the
clock. Reads are those of a session: from the page cache, into the same memory each time.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mountsafe.medium.block import BlockReader, Disk
from mountsafe.medium.ciphers import decryptor
from mountsafe.medium.decrypted import open_disk
from mountsafe.medium.encryption import KEY_SIZES, SECTORS, UNIT, Cipher, Layer, Layout, Segment, SegmentKind, Stack

MIB = 1 << 20
READS = (MIB, 128 << 10, 4 << 10)  # bytes
SPAN = 32 * MIB  # of the medium that is read
LEAST, TIMES = 0.02, 7  # seconds of one measurement; the best of so many counts


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes at best."""
    number, took = 1, 0.0
    best = float("inf")
    for _ in range(TIMES):
        while True:
            began = time.process_time()
            for _ in range(number):
                work()
            took = time.process_time() - began
            if took >= LEAST:
                break
            number *= 2
        best = min(best, took / number)
    return best


def shown(name: str, rates: list[float], unit: str = "MiB/s") -> None:
    """Print a line."""
    print(f"{name:36}" + "".join(f"{rate:10,.2f}      " if not unit else f"{rate:10,.0f} {unit}" for rate in rates))


def ciphers(found: dict[str, list[float]]) -> None:
    """Measure decryption alone."""
    print(f"{'cipher, bytes of key and sector':36}{'1 MiB':>16}{'128 KiB':>16}{'4 KiB':>16}")
    for cipher in Cipher:
        for sector in SECTORS[:: len(SECTORS) - 1]:
            size = KEY_SIZES[cipher][-1]
            work = decryptor(Layout(cipher, size, sector, UNIT, sector, ()), bytearray(os.urandom(size)))
            buffers = [memoryview(bytearray(os.urandom(length))) for length in READS]
            rates = [len(data) / MIB / seconds(partial(work.decrypt, data, 5)) for data in buffers]
            name = f"{cipher}, {size}, {sector}"
            found[name] = rates
            shown(name, rates)


def reader(disk: Disk, length: int) -> Callable[[], object]:
    """Return what reads the next bytes of a disk, around and around."""
    at = 0

    def read() -> object:
        nonlocal at
        at = (at + length) % SPAN
        found = disk.read_now(at, length)
        assert found is not None
        return found

    return read


def reads(found: dict[str, list[float]], path: Path) -> None:
    """Compare reads of an encrypted disk with those of one that is not."""
    path.write_bytes(os.urandom(SPAN))
    with path.open("rb") as file:
        plain = [seconds(reader(BlockReader(file.fileno(), SPAN), length)) for length in READS]
        found["not encrypted"] = [length / MIB / took for length, took in zip(READS, plain, strict=True)]
        shown("not encrypted", found["not encrypted"])
        for sector in SECTORS[:: len(SECTORS) - 1]:
            disk = encrypted(file.fileno(), sector)
            took = [seconds(reader(disk, length)) for length in READS]
            name = f"aes-xts-plain64, 64, {sector}, read"
            found[name] = [length / MIB / each for length, each in zip(READS, took, strict=True)]
            shown(name, found[name])
            shown("  of that which is not encrypted", [one / other for one, other in zip(plain, took, strict=True)], "")


def encrypted(medium: int, sector: int) -> Disk:
    """Return a disk of which every byte is encrypted."""
    key = os.memfd_create("key")
    os.write(key, os.urandom(64))
    layout = Layout(Cipher.AES_XTS, 64, sector, UNIT, SPAN, (Segment(0, SPAN, SegmentKind.CRYPT, 0, 0),))
    stack = Stack(True, SPAN, 0, SPAN, (Layer(((0, 0, SPAN),), SPAN, layout),))
    return open_disk(stack, BlockReader(medium, SPAN), [key])


def main() -> int:
    """Run with the command line's words."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {}
    ciphers(found)
    with tempfile.TemporaryDirectory(prefix="mountsafe-decryption-", dir="/var/tmp") as name:
        reads(found, Path(name, "medium"))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
