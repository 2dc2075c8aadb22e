"""How mountsafe's cost grows with the number of files: sudo ./dev bench growth [--help].

For each size an ext4 image with so many empty files in folders of 1,000 is mounted with mountsafe's defaults, and
walked by find -ls; meanwhile the memory of the process that keeps the tree is read every second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from measure import run
from mounters import LoopMount, Mountsafe, MountsafeMounted

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
FOLDER = 1000
SERVER = b"mountsafe.session.server"


def make(image: Path, scratch: Path, count: int) -> None:
    """Make an image with `count` entries."""
    with image.open("wb") as file:
        file.truncate((64 << 20) + count * 1024)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-N", str(count + 1000), image)
    mounted = LoopMount(image, "ext4", scratch, "rw")
    try:
        for folder in range(count // FOLDER):
            path = scratch / f"{folder:04}"
            path.mkdir()
            fd = os.open(path, os.O_RDONLY)
            for number in range(FOLDER - 1):
                os.mknod(f"{number:04}", 0o100644, dir_fd=fd)
            os.close(fd)
    finally:
        mounted.unmount()


def session_mib(mounted: MountsafeMounted) -> float:
    """Memory of the process that keeps the tree."""
    pids = [pid for pid in mounted.processes() if SERVER in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return measure.pss(pids[-1:])


def walk(mounted: MountsafeMounted) -> tuple[float, float]:
    """Return seconds of a whole walk, and the most memory seen in MiB."""
    most = session_mib(mounted)
    began = time.perf_counter()
    with subprocess.Popen(["find", mounted.folder, "-ls"], stdout=subprocess.DEVNULL) as find:
        while find.poll() is None:
            time.sleep(min(1.0, 0.05 + (time.perf_counter() - began) / 20))
            most = max(most, session_mib(mounted))
    if find.returncode:
        raise measure.BenchError(f"find failed with {find.returncode}")
    return time.perf_counter() - began, most


def main() -> int:
    """Run with the command line's words."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--most", type=int, default=COUNTS[-1], metavar="N", help="of entries; 1,000,000")
    arguments = parser.parse_args()
    mountsafe = Mountsafe(Path(sys.executable).with_name("mountsafe"))
    mountsafe.build()
    found = []
    print(f"{'entries':>9}  {'first find -ls':>16}  {'per entry':>10}  {'again':>8}  {'memory of the tree':>18}")
    with tempfile.TemporaryDirectory(prefix="mountsafe-growth-", dir="/var/tmp") as name:
        scratch, image = Path(name, "mnt"), Path(name, "image")
        scratch.mkdir()
        for count in (count for count in COUNTS if count <= arguments.most):
            make(image, scratch, count)
            measure.empty_caches(image)
            mounted = mountsafe.mount(image, "ext4", scratch)
            try:
                first, most = walk(mounted)
                again, later = walk(mounted)
            finally:
                mounted.unmount()
            figures = {"entries": count, "first": first, "again": again, "mib": max(most, later)}
            found.append(figures)
            per_entry, memory = first / count * 1e6, max(most, later)
            print(f"{count:9,}  {first:14.2f} s  {per_entry:7.0f} us  {again:6.2f} s  {memory:14.0f} MiB", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
