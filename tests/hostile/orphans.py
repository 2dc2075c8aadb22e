"""Kill who starts a box at a random moment, over and over: how many processes of its box are left, and wait for ever?

`python -m tests.hostile.orphans --kills 2000`, from the checkout. The victims: bubblewrap's launcher alone, as others
might; the launcher by `Child.stop`; the whole process that keeps the box, as a supervisor or `mountsafe inspect` is.
"""

import argparse
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import trio

from mountsafe import sandbox, trios
from mountsafe.process import Child, adopt, children

SPREAD = 0.03  # seconds after its start within which a box is hit; it is complete after about 10 ms
PATIENCE = 10.0  # seconds for what dies to be dead
BOX = sandbox.Box(1 << 20, 1 << 30, 64)
VICTIMS = ("launcher", "stop", "keeper")


def started() -> Child:
    """A box that would live for longer than any test."""
    return Child(BOX.command(["sleep", "3600"], sandbox.outer_uid()), [], "box", lambda line: None)


def living(pid: int) -> list[int]:
    """Every process below one that has not ended; parents first."""
    found = []
    for child in children(pid):
        if _state(child) not in ("", "Z", "X"):
            found.append(child)
        found += living(child)
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


async def _end_a_launcher(by_stop: bool) -> None:
    box = started()
    await trio.sleep(random.uniform(0, SPREAD))
    if by_stop:
        await box.stop()
    else:
        os.kill(box.pid, signal.SIGKILL)
        with trio.move_on_after(PATIENCE):
            await box.wait()
    async with trio.open_nursery() as nursery:  # the pipe of its words
        nursery.start_soon(box.log_words)
        nursery.cancel_scope.cancel()


def _end_a_keeper() -> None:
    reading, writing = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.write(writing, b"x")
        started()
        time.sleep(3600)
    os.read(reading, 1)
    time.sleep(random.uniform(0, SPREAD))
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    os.close(reading)
    os.close(writing)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def left(victim: str, kills: int) -> int:
    """Kill so often; return how many processes are left. What is left is ended."""
    if victim == "keeper":
        for _ in range(kills):
            _end_a_keeper()
            _reap()
    else:
        for _ in range(kills):
            trios.run(_end_a_launcher, victim == "stop")
    end = time.monotonic() + PATIENCE
    while (found := [pid for pid in living(os.getpid()) if _name(pid) != "/bin/sh"]) and time.monotonic() < end:
        time.sleep(0.05)
        if victim == "keeper":
            _reap()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def main() -> int:
    """Say what is left; end with 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--victim", choices=VICTIMS, action="append")
    given = parser.parse_args()
    adopt()  # what a killed keeper leaves comes to us, and is counted
    worst = 0
    for victim in given.victim or VICTIMS:
        found = left(victim, given.kills)
        print(f"{victim}: {given.kills} kills, {found} left", flush=True)
        worst = max(worst, found)
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
