"""Programs at work on a mount while the virtual machine that writes is killed: they see a pause, and nothing else.

`sudo python -m tests.vm.kills COUNT [SEED]` kills so often, at random moments, also while another takes its place, and
says what came of it. `tests/vm/command/test_write_faults.py` does it at some fixed moments.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm import busy
from tests.vm.command.stage import DEADLINE, Person, Stage, build_stage, sh
from tests.vm.command.traces import Traces, command, descendants, state

MIB = 1 << 20
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "vfat": ("mkfs.vfat",),
    "exfat": ("mkfs.exfat",),
}
CHECK = {"ext4": ("e2fsck", "-fn"), "vfat": ("fsck.vfat", "-n"), "exfat": ("fsck.exfat", "-n")}
LINKS = frozenset({"ext4"})  # types that have links, modes and extended attributes
SIZE = 96 * MIB
# What programs do, one after the other, each in the folder $1, from the tree in $2. Each tells of each step in a line.
STEPS = {
    "cp": "cp -rv $COPY .; mv -v source copy",
    "tar": "mkdir tar; tar -xvf $TAR --no-same-owner $TAROPTIONS -C tar",
    "mv": "mkdir moved; mv -v copy/folder* moved/; for each in copy/file*; do mv -v $each moved/new-${each##*/}; done;"
    ' for each in moved/folder1/*; do mv -v "$each" "moved/folder2/new ${each##*/}"; done;'
    " for each in 1 2 3; do mv -v moved/new-file$each moved/new-file1$each; done; mv -v moved tree;"
    " mv -v tree/folder2 tree/last",
    "mixed": "mkdir mixed; python3 -I $BUSY mixed $SEED $OPERATIONS $LINKS",
    "rm": "rm -rfv tree/folder3 tree/last tree/new-file1* tar/source/folder1 tar/source/file*",
}
NEVER_CHANGED = "tar/"  # below it are files whose times were set


def source(folder: Path, links: bool) -> Path:
    """Make the tree that is copied, and an archive of it."""
    top, numbers = folder / "source", random.Random(1)
    for number in range(4):
        below = top / f"folder{number}/deeper"
        below.mkdir(parents=True)
        for each in range(8):
            (below / f"{each}.txt").write_bytes(numbers.randbytes(numbers.choice((0, 5, 3000, 70_000))))
            (below.parent / f"a longer name {number} {each}").write_bytes(numbers.randbytes(900))
    for each in range(16):
        (top / f"file{each}").write_bytes(numbers.randbytes(each * 20_000))
        if links:
            (top / f"file{each}").chmod(numbers.choice((0o600, 0o644, 0o755, 0o440)))
    (top / "file-large").write_bytes(numbers.randbytes(3 * MIB))
    if links:
        (top / "folder1/link").symlink_to("../file1")
        (top / "folder1/other name").hardlink_to(top / "file2")
    sh("tar", "-cf", folder / "source.tar", "-C", folder, "source")
    return top


LOOK = """
import hashlib, json, os, stat, sys
top, links = os.fsencode(sys.argv[1]), sys.argv[2] == "True"
seen = {}
for folder, folders, files in os.walk(top):
    if b"lost+found" in folders:
        folders.remove(b"lost+found")
    for name in folders + files:
        path = os.path.join(folder, name)
        st = os.lstat(path)
        told = [stat.S_IFMT(st.st_mode)]
        if stat.S_ISREG(st.st_mode):
            told += [st.st_size, hashlib.sha256(open(path, "rb").read()).hexdigest()]
        if stat.S_ISLNK(st.st_mode):
            told.append(os.readlink(path).decode())
        name = os.path.relpath(path, top).decode("utf-8", "surrogateescape")
        if links and not stat.S_ISLNK(st.st_mode):
            told.append(oct(st.st_mode & 0o777))
            told.append(st.st_nlink if stat.S_ISREG(st.st_mode) else 0)
            names = [each for each in os.listxattr(path) if each.startswith("user.")]
            told.append({each: os.getxattr(path, each).hex() for each in names})
        if name.startswith("tar/") and stat.S_ISREG(st.st_mode):
            told.append(int(st.st_mtime) // 2)
        seen[name] = told
print(json.dumps(seen))
"""


def looked(person: Person, top: Path, links: bool) -> dict[str, list[object]]:
    """What is in a tree, as a person sees it."""
    seen: dict[str, list[object]] = person.python(LOOK, top, str(links)).ok().json()
    return seen


def differences(seen: dict[str, list[object]], wanted: dict[str, list[object]]) -> list[str]:
    """Where two trees are not the same."""
    names = sorted(seen.keys() | wanted.keys())
    return [f"{name}: {seen.get(name)}, not {wanted.get(name)}" for name in names if seen.get(name) != wanted.get(name)]


@dataclass
class Step:
    """What a step came to: lines that it said, its words, and how often something was killed."""

    lines: int
    said: str
    code: int
    words: str
    killed: int


def step(
    person: Person, name: str, target: Path, given: dict[str, str], at: Callable[[int], int] = lambda line: 0
) -> Step:
    """Run a step. `at` is called after each line, with their number, kills or not, and returns how often it has."""
    lines, said, killed = 0, [], 0
    environment = {**given, "LC_ALL": "C.UTF-8"}
    shell = f"set -e; cd {target}; {STEPS[name]}"
    with tempfile.TemporaryFile("w+") as errors:
        process = person.start("-oL", "sh", "-c", shell, program=["stdbuf"], env=environment)
        with process:
            drain = threading.Thread(target=lambda: errors.write(process.stderr.read() if process.stderr else ""))
            drain.start()
            assert process.stdout is not None
            for line in process.stdout:
                lines += 1
                said.append(line)
                killed += at(lines)
            process.wait(DEADLINE)
            drain.join()
        errors.seek(0)
        return Step(lines, "".join(said), process.returncode, errors.read(), killed)


def writing_machines(supervisor: int, besides: Iterable[int]) -> list[int]:
    """The QEMUs of a supervisor, but for those in some boxes."""
    others = {pid for box in besides for pid in descendants(box)}
    return [pid for pid in descendants(supervisor) if pid not in others and "qemu-system" in command(pid)]


@dataclass
class Mounted:
    """An image on a mount, and a plain folder that the same is done to."""

    person: Person
    folder: Path
    fstype: str
    program: list[str]
    given: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, Step] = field(default_factory=dict)

    @property
    def links(self) -> bool:
        return self.fstype in LINKS

    @property
    def image(self) -> Path:
        return self.folder / f"{self.fstype}.img"

    @property
    def target(self) -> Path:
        return self.folder / "m"

    @property
    def plain(self) -> Path:
        return self.folder / "plain"

    def prepare(self, seed: int, operations: int) -> None:
        """Make what is needed, and do to the plain folder what will be done to the mount."""
        with self.image.open("wb") as file:
            file.truncate(SIZE)
        sh(*MAKE[self.fstype], self.image)
        top = source(self.folder, self.links)
        self.given = {
            "COPY": str(top),
            "TAR": f"{top}.tar",
            "TAROPTIONS": "" if self.links else "--no-same-permissions",
            "BUSY": busy.__file__,
            "SEED": str(seed),
            "OPERATIONS": str(operations),
            "LINKS": str(self.links),
        }
        self.plain.mkdir()
        for name in STEPS:
            done = step(self.person, name, self.plain, self.given)
            assert done.code == 0, done.words
            self.wanted[name] = done

    def mount(self) -> None:
        done = self.person.run("mount", "--write", "--json", self.image, self.target, program=self.program).ok()
        self.record = done.json()

    def kill(self) -> bool:
        """Kill what writes now; return whether there was one."""
        boxes = [self.record["virtual_machine"]] if self.record["virtual_machine"] else []
        found = writing_machines(self.record["supervisor"], boxes)
        for pid in found:
            if state(pid) not in ("", "Z", "X"):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def log(self) -> list[str]:
        """What the mount says of itself."""
        [log] = self.person.records.glob("*/log")
        return [line for line in log.read_text().splitlines() if "dmesg" not in line][-60:]

    def compare(self) -> list[str]:
        return differences(looked(self.person, self.target, self.links), looked(self.person, self.plain, self.links))

    def unmount(self) -> None:
        done = self.person.run("unmount", self.target, program=self.program)
        if done.code:
            self.person.run("unmount", "--force", self.target, program=self.program)
        done.ok()

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount it; unmount it, by force if something is wrong."""
        self.mount()
        try:
            yield
        except BaseException:
            self.person.run("unmount", "--force", self.target, program=self.program)
            raise
        self.unmount()

    def check(self) -> list[str]:
        """What the type's checker has to say, and what is otherwise than it should be when it is looked at again."""
        done = subprocess.run([*CHECK[self.fstype], self.image], capture_output=True, text=True, check=False)
        wrong = [f"checker: {done.stdout}{done.stderr}"] if done.returncode else []
        self.person.run("mount", self.image, self.target, program=self.program).ok()
        try:
            return [*wrong, *self.compare()]
        finally:
            self.unmount()


# --- at random moments ----------------------------------------------------------------------------------------------
PATIENT = {"limits.py": {"DEATHS, DEATHS_WINDOW = 3, 60.0": "DEATHS, DEATHS_WINDOW = 1000, 60.0"}}
OPERATIONS = 250


class Killer:
    """Kills at random lines, after a random moment; sometimes what takes the place of the one that was killed, too."""

    def __init__(self, mounted: Mounted, numbers: random.Random, lines: int) -> None:
        self._mounted = mounted
        self._numbers = numbers
        self._at = set(numbers.sample(range(1, max(lines, 2)), min(2, max(lines - 1, 1))))
        self._again: list[threading.Thread] = []
        self.killed = 0

    def at(self, line: int) -> int:
        if line in self._at:
            time.sleep(self._numbers.random() * 0.02)
            if self._mounted.kill():
                self.killed += 1
                if self._numbers.random() < 0.4:
                    self._again.append(threading.Thread(target=self._kill_next, args=[self._numbers.random() * 6]))
                    self._again[-1].start()
        return 0

    def _kill_next(self, seconds: float) -> None:
        time.sleep(seconds)
        self.killed += self._mounted.kill()

    def join(self) -> None:
        for each in self._again:
            each.join()


def one_round(person: Person, program: Path, fstype: str, seed: int) -> tuple[int, list[str]]:
    """Mount, work, kill, unmount, check; return how often was killed, and what is wrong."""
    numbers, folder, wrong, killed = random.Random(seed), person.folder(), [], 0
    mounted = Mounted(person, folder, fstype, [str(program)])
    mounted.prepare(seed, OPERATIONS)
    before = Traces.taken(person)
    mounted.mount()
    try:
        for name, wanted in mounted.wanted.items():
            killer = Killer(mounted, numbers, wanted.lines)
            done = step(person, name, mounted.target, mounted.given, killer.at)
            killer.join()
            killed += killer.killed
            if (done.code, done.words) != (0, wanted.words):
                wrong.append(f"{name}: {done.code} {done.words}")
            if name == "mixed" and done.said != wanted.said:
                pairs = zip(done.said.splitlines(), wanted.said.splitlines(), strict=False)
                wrong.append(f"mixed: {next(((a, b) for a, b in pairs if a != b), 'shorter')}")
            if wrong:
                wrong[:0] = mounted.log()
                break
        else:
            wrong += mounted.compare()
        mounted.unmount()
        if not wrong:
            wrong += mounted.check()
        before.assert_same(person, 5.0)
    except Exception as error:  # noqa: BLE001  # it is told, and the next round is another
        wrong.append(f"{type(error).__name__}: {error}"[:4000])
    finally:
        before.restore(person)
    if not wrong:
        sh("rm", "-r", folder)
    return killed, wrong


def long_run(stage: Stage, count: int, seed: int) -> bool:
    """Go on until so many were killed; return whether nothing was wrong."""
    program, killed, bad, rounds = stage.variant("patient", PATIENT), 0, 0, 0
    while killed < count:
        fstype = list(MAKE)[(seed + rounds) % len(MAKE)]
        began = time.monotonic()
        more, wrong = one_round(stage.persons["root"], program, fstype, seed + rounds)
        killed, bad, rounds = killed + more, bad + bool(wrong), rounds + 1
        took = time.monotonic() - began
        sys.stdout.write(f"seed {seed + rounds - 1} {fstype}: {more} killed in {took:.0f} s, {killed} in all\n")
        sys.stdout.write("".join(f"  {line}\n" for line in wrong[:80]))
        sys.stdout.flush()
    sys.stdout.write(f"{killed} killed in {rounds} rounds, {bad} of them bad\n")
    return bad == 0


def main() -> None:
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1_000_000)
    with build_stage(Path(__file__).parent.parent.parent) as stage:
        sys.exit(0 if long_run(stage, int(sys.argv[1]), seed) else 1)


if __name__ == "__main__":
    main()
