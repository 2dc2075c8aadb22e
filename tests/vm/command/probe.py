"""Runs inside a box, or outside as a control: tries what a box must not allow, and says what came of it.

The facts lie beside it (or are named by the argument), JSON: {"reads": [path], "writes": [folder], "port": int,
"abstract": name, "pid": int, "marker": text backwards, "scratch": bytes, "address_space": bytes, "processes": int}.
Prints a line for each attempt to stderr: PROBE [attempt, why it failed or ""]. Standard library only.
"""

import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
PTRACE_SEIZE = 0x4206
# arch/x86/entry/syscalls/syscall_64.tbl
SYS_SHMGET, SYS_IO_SETUP, SYS_INOTIFY_INIT1 = 29, 206, 294
SYS_ADD_KEY, SYS_KEYCTL, SYS_BPF, SYS_USERFAULTFD, SYS_IO_URING_SETUP = 248, 250, 321, 323, 425


def succeeded(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def in_child(attempt: Callable[[], object]) -> Callable[[], None]:
    """Make the attempt in a child process, so that what it changes does not outlive it; here, if none can be had."""

    def tried() -> None:
        reading, writing = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            attempt()
            return
        if pid == 0:
            try:
                attempt()
            except (OSError, ValueError, ctypes.ArgumentError) as error:
                os.write(writing, f"{type(error).__name__}: {error}"[:500].encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as file:
            why = file.read()
        os.waitpid(pid, 0)
        if why:
            raise OSError(why.decode())

    return tried


def read(path: str) -> None:
    if os.path.isdir(path):
        os.listdir(path)
    else:
        with open(path, "rb") as file:
            file.read(1)


def write(folder: str) -> None:
    path = Path(folder, "written-by-the-probe")
    path.write_bytes(b"x")
    path.unlink()


def other_interface() -> None:
    if not [name for _, name in socket.if_nameindex() if name != "lo"]:
        raise OSError("only lo")


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 5).close()


def connect_abstract(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{name}")


def see(marker: str) -> None:
    wanted = marker[::-1].encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if wanted in path.read_bytes():
                return
        except OSError:
            continue
    raise OSError("not seen")


def fill(size: int) -> None:
    path = Path("/tmp", f"filled-by-the-probe-{os.getpid()}")
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range((size >> 20) + 1):
                file.write(bytes(1 << 20))
            if file.tell() <= size:
                raise OSError("cut short")
    finally:
        path.unlink()


def allocate(size: int) -> None:
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000).close()  # MAP_NORESERVE


def multiply(count: int) -> None:
    pids = []
    try:
        for _ in range(count):
            if (pid := os.fork()) == 0:
                signal.pause()
            pids.append(pid)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def send_descriptors() -> None:
    """Have 800 on their way. The kernel counts a user's, and whoever may have fewer open can send none then."""
    pairs = [socket.socketpair() for _ in range(4)]
    for ours, _ in pairs:
        socket.send_fds(ours, [b"x"], [2] * 200)


def seize(pid: int) -> None:
    succeeded(libc.ptrace(PTRACE_SEIZE, pid, None, None))


def mount() -> None:
    succeeded(libc.mount(b"probe", b"/tmp", b"tmpfs", 0, None))
    succeeded(libc.umount2(b"/tmp", 2))


def capability() -> None:
    """Succeed if there is any capability, or a way to one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")):
        raise OSError("none")


def privileges_by_exec() -> None:
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        raise OSError("none")


def syscall(number: int, *arguments: Any) -> Callable[[], None]:
    return lambda: succeeded(libc.syscall(number, *arguments))


def tell(what: str, why: str) -> None:
    os.write(2, f"PROBE {json.dumps([what, why])}\n".encode())


def main() -> None:
    path = Path(sys.argv[1]) if __name__ == "__main__" else Path(__file__).with_suffix(".json")
    facts = json.loads(path.read_text())
    attempts: dict[str, Callable[[], object]] = {
        **{f"read {path}": lambda path=path: read(path) for path in facts["reads"]},  # type: ignore[misc]
        **{f"write {path}": lambda path=path: write(path) for path in facts["writes"]},  # type: ignore[misc]
        "connect to the host's loopback": lambda: connect(facts["port"]),
        "connect to an abstract socket": lambda: connect_abstract(facts["abstract"]),
        "see an interface": other_interface,
        "see a host process": lambda: see(facts["marker"]),
        "signal a host process": lambda: os.kill(facts["pid"], 0),
        "trace a host process": in_child(lambda: seize(facts["pid"])),
        "mount": in_child(mount),
        "unshare users": in_child(lambda: succeeded(libc.unshare(CLONE_NEWUSER))),
        "unshare mounts": in_child(lambda: succeeded(libc.unshare(CLONE_NEWNS))),
        "unshare network": in_child(lambda: succeeded(libc.unshare(CLONE_NEWNET))),
        "be root": in_child(lambda: os.setuid(0)),
        "have a capability": capability,
        "gain privileges by exec": privileges_by_exec,
        "fill the scratch space": lambda: fill(facts["scratch"]),
        "allocate beyond the limit": lambda: allocate(facts["address_space"]),
        "keep memory beside the address space": lambda: os.close(os.memfd_create("probe")),
        "keep memory that is shared": in_child(syscall(SYS_SHMGET, 0, 4096, 0o1600)),
        "take the machine's share of AIO": in_child(syscall(SYS_IO_SETUP, 1, ctypes.byref(ctypes.c_ulong(0)))),
        "take the user's share of inotify": in_child(syscall(SYS_INOTIFY_INIT1, 0)),
        "open more than 512 files": in_child(lambda: [os.dup(2) for _ in range(512)]),
        "take the user's share of descriptors on their way": in_child(send_descriptors),
        "fork beyond the limit": lambda: multiply(facts["processes"]),
        "use a keyring": in_child(syscall(SYS_ADD_KEY, b"user", b"mountsafe-probe", b"x", 1, -2)),
        "use the login's key": in_child(syscall(SYS_KEYCTL, 10, -3, b"user", b"mountsafe-login", 0)),
        "make a BPF map": in_child(syscall(SYS_BPF, 0, struct.pack("4I56x", 2, 4, 4, 1), 72)),
        "userfaultfd": in_child(syscall(SYS_USERFAULTFD, 0)),
        "io_uring": in_child(syscall(SYS_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))),
    }
    for what, attempt in attempts.items():
        why = ""
        try:
            attempt()
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
        tell(what, why)
    tell("the end", "")


if __name__ == "__main__":
    main()
