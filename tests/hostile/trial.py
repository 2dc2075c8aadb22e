"""One image at a time opened, walked and closed, and what came of it: a process of its own, on a stage of its own.

    python -m tests.hostile.trial BASES-FOLDER

Reads cases as JSON, a line each, and answers each with a record; ends with its input. Nothing of what it makes can be
seen outside: its mounts are in a mount namespace of its own, its orphans become its children.
"""

import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import trio

from mountsafe import trios, wire
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import Machine, MachineSettings
from mountsafe.errors import DeadlinePassed, ExitCode, MountsafeError, UserError
from mountsafe.limits import (
    CALL_DEADLINE,
    CONTAINER_ADDRESS_SPACE,
    GUEST_MEMORY_MIB,
    LAUNCH_DEADLINE,
    LOG_BYTES,
    MIB,
    MOUNT_DEADLINE,
    PROBE_DEADLINE,
    REQUEST_DEADLINE,
)
from mountsafe.medium.choosing import choose, locked
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.process import Guard
from mountsafe.session.boxes import SessionBox
from mountsafe.session.finding import machine_settings
from mountsafe.session.machines import Listener, started
from mountsafe.session.served import Presentation, ServedVolume
from mountsafe.session.targets import held
from tests.hostile import headers
from tests.hostile.cases import Case, Workshop, all_bases
from tests.hostile.walk import walk
from tests.vm.command.stage import Person, Stage, build_stage
from tests.vm.command.traces import Traces, children, running, state
from tests.vm.sight import TappedMachines, opened, show

MACHINE_MEMORY = GUEST_MEMORY_MIB * MIB + 768 * MIB  # and what QEMU needs: translated code, its library
SESSION_MEMORY = 256 * MIB  # the interpreter, and the tree and bytes that limits.py lets it keep
SLACK = 15.0  # seconds beyond a deadline: two processors, several virtual machines
OPENING = LAUNCH_DEADLINE + PROBE_DEADLINE + MOUNT_DEADLINE  # of one volume
SETTLE = 5.0  # what is left after so long stays
LINES = 2000  # of a trial's log
RENEWED = 50  # after so many images a virtual machine that they share is replaced
STATED = {0, ExitCode.SOURCE, ExitCode.APPLIANCE, ExitCode.DEADLINE}  # how a command may end for what is on an image

OTHERS = r"\bloop\d+\b|^set_capacity_and_notify|^systemd|audit"  # the kernel's words on what no trial has
# But for pyfuse3's words when what the kernel forgets last is answered: at the unmount nobody waits for that any more.
_ERROR = r"session: (ERROR(?!: fuse_release(dir)?\(\): )|CRITICAL)"
_BUG = re.compile(rf"Traceback \(most recent|{_ERROR}|^a bug|was never (awaited|retrieved)")
_AGENT_BUG = re.compile(r"^error\(|^[A-Za-z.]+(Error|Exception|Fault|Exit|Interrupt)\(|^(struct|wire)\.\w+\(")
_OOPS = re.compile(r"\] (BUG|Oops|Kernel panic|general protection|WARNING: CPU|kernel BUG|UBSAN|KASAN|INFO: task)")
_SESSION_END = re.compile(r"the session process ended \((-?\d+)\)")
_LATE = re.compile(r"no answer|did not \w+ in|within \d+ s|passed")


@dataclass
class Record:
    """What came of a case. Memory in bytes, peaks of single processes; `broke`: what may not happen."""

    name: str
    way: str
    source: str
    outcome: str = ""  # opened, refused, died, deadline
    error: str = ""
    seconds: float = 0.0
    volumes: int = 0
    types: list[str] = field(default_factory=list)
    entries: int = 0
    files: int = 0
    bytes: int = 0
    longest: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    late: int = 0
    oopses: int = 0
    incidents: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    broke: list[str] = field(default_factory=list)

    def add(self, walked: dict[str, Any]) -> None:
        """Take over what a walk saw."""
        self.entries += walked["entries"]
        self.files += walked["files"]
        self.bytes += walked["bytes"]
        self.faults.update(walked["faults"])
        self.longest = max(self.longest, walked["longest"])
        self.broke += [f"shown: {what}" for what in walked["wrong"]]

    def failed(self, message: str, code: int) -> None:
        """Take over why a volume, or all of it, was not opened."""
        known = {ExitCode.SOURCE: "refused", ExitCode.DEADLINE: "deadline"}
        late = "deadline" if _LATE.search(message) else "died"
        self.outcome = self.outcome or known.get(ExitCode(code), late)
        self.error = self.error or message
        if code not in STATED:
            self.broke.append(f"error: {code}: {message}")


# --- what is looked at besides the mount ---------------------------------------------------------------------------
class Lines(logging.Handler):
    """Keeps the log of a trial."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.kept: list[str] = []
        self.bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.exc_info:
            line += logging.Formatter().formatException(record.exc_info)
        self.bytes += len(line)
        if len(self.kept) < LINES:
            self.kept.append(line)


def judge(lines: list[str], record: Record) -> None:
    """Read a medium's log."""
    record.deaths += sum("the virtual machine ended (" in line for line in lines)
    record.late += sum("ending the virtual machine: no answer" in line for line in lines)
    record.incidents += sum("incident " in line for line in lines)
    record.oopses += sum(line.startswith("guest: ") and _OOPS.search(line) is not None for line in lines)
    bugs = [n for n, line in enumerate(lines) if _BUG.search(line)]
    if bugs:
        record.broke.append("crash: " + " | ".join(lines[bugs[0] : bugs[0] + 30])[-3000:])
    for line in lines:
        if (end := _SESSION_END.search(line)) and int(end[1]) not in (0, 1):
            record.broke.append(f"crash: {line}")


class KernelLog:
    """What the host's kernel has logged since the last look."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)

    def news(self) -> list[str]:
        found: list[str] = []
        while True:
            try:
                line = os.read(self._fd, 8192).decode(errors="replace").partition(";")[2].split("\n")[0]
            except BlockingIOError:
                return [line for line in found if not re.search(OTHERS, line)]
            except BrokenPipeError:  # it was faster than we
                continue
            found.append(line)


def peaks() -> dict[str, int]:
    """Return the peak memory of each kind of process below this one, in bytes."""
    found: dict[str, int] = {}
    for pid in running():
        with suppress(OSError, KeyError, ValueError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            kind = next((kind for kind in KINDS if KINDS[kind] in command), "")
            if kind == "machine" and NO_MACHINE in command:
                kind = "container"
            if kind and status["Name"] != "bwrap":
                found[kind] = max(found.get(kind, 0), int(status["VmHWM"].split()[0]) * 1024)
    return found


KINDS = {"machine": b"qemu-system", "session": b"mountsafe.session.server", "supervisor": b"session.supervisor"}
NO_MACHINE = b"-machine\0none"  # QEMU, but it only opens a container
BOUNDS = {
    "container": CONTAINER_ADDRESS_SPACE,
    "machine": MACHINE_MEMORY,
    "session": SESSION_MEMORY,
    "supervisor": SESSION_MEMORY,
}


# --- without a command line ----------------------------------------------------------------------------------------
class Listening(TappedMachines):
    """Notes what the agent calls a failure: its own bugs come as one."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.bugs: list[str] = []

    def tap(self, frame: wire.Frame) -> bytes:
        if frame.kind == wire.Kind.ERROR:
            with suppress(wire.WireError):
                words = wire.unpack_error(frame.body)[1].decode(errors="replace")
                if _AGENT_BUG.search(words):
                    self.bugs.append(words)
        return super().tap(frame)


class Warm:
    """A virtual machine that runs before an image comes and after it went, or none."""

    def __init__(self, settings: MachineSettings, acceleration: Acceleration, nursery: trio.Nursery) -> None:
        self.settings = settings
        self.acceleration = acceleration
        self._nursery = nursery
        self._images = 0
        self.machine: Machine | None = None

    async def ready(self) -> None:
        """Have one, and not for too many images."""
        if self._images >= RENEWED:
            await self.end()
        if self.machine is None:
            self._images = 0
            self.machine = await started(self.settings, self.acceleration, self._nursery, Listener())
        self._images += 1

    async def end(self) -> None:
        """End it: it may not be what it was."""
        machine, self.machine = self.machine, None
        if machine is not None:
            await machine.stop()


class Sharing(Listening):
    """Plugs the image into the virtual machine that is there, and unplugs it instead of ending that."""

    def __init__(self, warm: Warm, *parts: Any) -> None:
        super().__init__(*parts)
        self._warm = warm
        self._borrowed: Machine | None = None

    async def _start(self) -> tuple[Machine, int]:
        machine, self._warm.machine = self._warm.machine, None
        if machine is None:  # it died of this image: another starts, and ends with it
            return await super()._start()
        self._borrowed = machine
        return machine, await self._attach(machine)

    async def release(self, user: object) -> None:
        """Let it run."""
        self._users.discard(user)

    async def close(self) -> None:
        """Unplug the image."""
        life = self._life
        if life is not None and life.machine is self._borrowed:
            try:
                await life.machine.detach()
            except MountsafeError as error:
                logging.getLogger("mountsafe").info("not unplugged: %s", error)
            else:
                self._life, self._warm.machine = None, life.machine
                life._watching.cancel()
        await super().close()


class Trials:
    """Runs cases on a stage."""

    def __init__(self, stage: Stage, workshop: Workshop, warm: Warm) -> None:
        self._stage = stage
        self._workshop = workshop
        self._warm = warm
        self._kernel = KernelLog()
        self._lines = Lines()
        self._script = stage.root / "walk.py"
        shutil.copyfile(Path(__file__).with_name("walk.py"), self._script)
        logging.getLogger().addHandler(self._lines)
        logging.getLogger("mountsafe").setLevel(logging.INFO)

    async def run(self, case: Case) -> Record:
        """Run a case."""
        if case.way == "shared":
            await self._warm.ready()
        record = Record(case.name, case.way, case.source)
        persons = self._stage.persons
        image = self._stage.root / "medium.img"
        option = self._workshop.make(case, image)
        image.chmod(0o644)
        Guard.group()  # stays as long as this process: nothing that a case leaves
        before = {person: Traces.taken(person) for person in persons.values()}
        made = signature(image)
        self._kernel.news()
        self._lines.kept, self._lines.bytes = [], 0
        began = time.monotonic()
        if case.way == "keys":
            await self._unlock(image, headers.LOCKS[case.source.removeprefix(headers.PREFIX)], record)
        elif case.way == "session":
            await self._through_session(Listening, image, option, record)
        elif case.way == "shared":
            await self._through_session(partial(Sharing, self._warm), image, option, record)
        else:
            words = headers.words(case.source, self._stage.root / "key")
            await trio.to_thread.run_sync(self._through_command, persons[case.way], image, option, words, record)
        record.seconds = round(time.monotonic() - began, 2)
        await self._look_back(record, before)
        if signature(image) != made:
            record.broke.append("written: the image was changed")
        image.unlink()
        return record

    async def _look_back(self, record: Record, before: dict[Person, Traces]) -> None:
        judge(self._lines.kept, record)
        if record.oopses or record.deaths or record.late:
            await self._warm.end()
        record.broke += [f"kernel: {line}" for line in self._kernel.news()]
        end = time.monotonic() + SETTLE
        while (left := [taken.news(person) for person, taken in before.items()]) != [{}] * len(left):
            if time.monotonic() > end:
                record.broke.append(f"left: {json.dumps(left)}")
                break
            await trio.sleep(0.02)
        for person, taken in before.items():
            taken.restore(person)
        self._reap()
        patience = CALL_DEADLINE if record.deaths or record.late else REQUEST_DEADLINE
        if record.longest > patience + SLACK:
            record.broke.append(f"deadline: a call took {record.longest:.0f} s")
        if self._lines.bytes > LOG_BYTES:
            record.broke.append(f"memory: a log of {self._lines.bytes} bytes")
        record.broke += [
            f"memory: {kind} had {peak} bytes" for kind, peak in record.memory.items() if peak > BOUNDS[kind]
        ]

    def _reap(self) -> None:
        """Wait for orphans that have ended: by the thousand they would slow every look at the processes."""
        machine = self._warm.machine
        for pid in children(os.getpid()):
            if state(pid) == "Z" and (machine is None or pid != machine.pid):
                os.waitpid(pid, 0)

    def _remember(self, record: Record) -> None:
        for kind, peak in peaks().items():
            record.memory[kind] = max(record.memory.get(kind, 0), peak)

    async def _through_session(
        self, tapped: Callable[..., Listening], image: Path, option: str | None, record: Record
    ) -> None:
        try:
            await self._session(tapped, image, option, record)
        except UserError as error:
            record.failed(error.message, error.code)
        except MountsafeError as error:
            record.failed(str(error), ExitCode.APPLIANCE)
        except Exception as error:  # the supervisor's part would have been a bug here
            record.outcome = record.outcome or "died"
            record.broke.append(f"crash: {error!r}")
            logging.getLogger("mountsafe").exception("a bug in the supervisor's part")

    async def _unlock(self, image: Path, lock: headers.Lock, record: Record) -> None:
        """See what the host makes of a header, and of a key for it."""
        try:
            await headers.attempt(image, lock)
            record.outcome = "opened"
        except UserError as error:
            record.failed(error.message, ExitCode.SOURCE if error.code in headers.STATED else error.code)
        except DeadlinePassed as error:
            record.failed(str(error), ExitCode.DEADLINE)
            record.broke.append(f"deadline: {error}")
        except Exception as error:  # a process that ended, or what it told is no layout
            record.outcome = "died"
            record.broke.append(f"crash: {error!r}")
            logging.getLogger("mountsafe").exception("a header broke something")

    async def _session(self, tapped: Callable[..., Listening], image: Path, option: str | None, record: Record) -> None:
        began = time.monotonic()
        warm = self._warm
        async with opened(image, warm.settings, warm.acceleration, tapped) as (machines, medium, found):
            for number, volume in enumerate(choose(found, None, option)):
                record.volumes += 1
                try:
                    if volume.encrypted:
                        raise locked(volume, medium.name)
                    await self._volume(volume, number, medium, machines, record)
                except UserError as error:
                    record.failed(error.message, error.code)
                if time.monotonic() - began > (OPENING + 2 * CALL_DEADLINE) * record.volumes + SLACK:
                    record.broke.append(f"deadline: {time.monotonic() - began:.0f} s")
                record.broke += [f"agent: {words}" for words in machines.bugs]
                machines.bugs = []

    async def _volume(self, volume: Volume, number: int, medium: Medium, machines: Listening, record: Record) -> None:
        began = time.monotonic()
        place = held(Path(tempfile.mkdtemp(prefix=f"{number}-")))
        served = ServedVolume(
            volume, place, machines, Presentation(None, 0, 0, "nofollow"), SessionBox(medium), medium.name
        )

        def looked(top: Path) -> dict[str, Any]:
            if time.monotonic() - began > OPENING + SLACK:
                record.broke.append(f"deadline: mounting took {time.monotonic() - began:.0f} s")
            walked = walk(top)
            self._remember(record)
            return walked

        try:
            record.add(await show(served, machines.nursery, looked))
            record.outcome = "opened"
            record.types.append(served.fstype)
        finally:
            os.rmdir(place.path)
            place.close()

    # --- through the command line ----------------------------------------------------------------------------------
    def _through_command(
        self, person: Person, image: Path, option: str | None, words: Sequence[str], record: Record
    ) -> None:
        folder = person.folder()
        target = folder / "mnt"
        done = person.run("mount", image, target, "--json", *(("--type", option) if option else ()), *words)
        try:
            told = json.loads(done.out or done.err)
        except ValueError:
            record.broke.append(f"crash: {done.code}: {done.out[-1000:]} {done.err[-2000:]}")
            told = {}
        if _BUG.search(done.err):
            record.broke.append(f"crash: {done.err[-3000:]}")
        if done.code == 0:
            record.outcome = "opened"
            self._walk_as(person, target, record)
            record.volumes = len(told.get("mounts", []))
            record.types = [mounted["fstype"] for mounted in told.get("mounts", [])]
            self._remember(record)
            for log in person.records.glob("*/log"):
                judge(log.read_text(errors="replace").splitlines(), record)
                if log.stat().st_size > LOG_BYTES + 4096:
                    record.broke.append(f"memory: a log of {log.stat().st_size} bytes")
            person.run("unmount", target).ok()
        else:
            code = ExitCode.SOURCE if words and done.code in headers.STATED else done.code
            record.failed(told.get("error", {}).get("message", done.err[-1000:]), code)
        with suppress(OSError):
            folder.rmdir()

    def _walk_as(self, person: Person, target: Path, record: Record) -> None:
        done = person.run(self._script, target, program=["/usr/bin/python3", "-I"]).ok()
        record.add(done.json())


def signature(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written to."""
    st = path.stat()
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino


@contextmanager
def environment(person: Person) -> Iterator[None]:
    """Be the person whose stage this is, for what runs in this process."""
    os.environ.update(person.environment)
    tempfile.tempdir = str(person.temporary)
    yield


async def answer(stage: Stage, bases: Path, answers: TextIO) -> None:
    """Answer cases until there are no more."""
    async with trio.open_nursery() as nursery:
        with machine_settings(False) as (settings, acceleration):
            warm = Warm(settings, acceleration, nursery)
            trials = Trials(stage, Workshop(all_bases(bases)), warm)
            while line := await trio.to_thread.run_sync(sys.stdin.readline):
                print(json.dumps(vars(await trials.run(Case(**json.loads(line))))), file=answers, flush=True)
            await warm.end()
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run trials on a stage."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides
    repository = Path(__file__).resolve().parents[2]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with build_stage(repository) as stage:
        print(json.dumps({"stage": str(stage.root)}), file=answers, flush=True)
        with environment(stage.persons["root"]):
            trios.run(answer, stage, Path(sys.argv[1]), answers)


if __name__ == "__main__":
    main()
