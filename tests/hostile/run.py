"""Open images that nobody trusts, by the hundred, and see that nothing but the mount comes of it.

    sudo ./dev hostile [--set all|corpus|mutations|containers|DIR] [--minutes N] [--json] ...   (--help shows the rest)

Every image of the corpus through the command line, in turns as root and as an ordinary user, each in a virtual machine
of its own; mutations of valid images, and of valid containers, through the session itself, plugged into a virtual
machine that is renewed after 50 of them and after whatever went wrong; damaged headers of encrypted volumes, each with
a key, in the boxes that they are for, and some through the command line. Two images at a time. What was run is in the
state's folder: a run that was stopped goes on where it was. What broke is run again, alone and in a virtual machine of
its own, and made smaller; exit code 1.
"""

import argparse
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.hostile import cases, results
from tests.hostile.cases import Case, Workshop
from tests.vm import corpus
from tests.vm.command.traces import descendants
from tests.vm.sight import AT_A_TIME, Looking

STATE = Path("/var/tmp/mountsafe-hostile")
MUTATIONS = 5000
CONTAINERS = 1000
HEADERS = 500
SETS = ("corpus", "mutations", "containers", "headers")
PATIENCE = 900.0  # seconds for one image: longer than every deadline that one can use up; then its process is killed
STARTING = 900.0  # for a stage to be built, the appliance included
REPOSITORY = Path(__file__).resolve().parents[2]


class Hung(Exception):
    """A trial's process gave no answer, or died."""


class Worker:
    """A process that runs trials, one after the other; replaced when it hangs or dies."""

    def __init__(self, bases: Path, program: Sequence[str] = ("-m", "tests.hostile.trial")) -> None:
        self._command = [sys.executable, *program, str(bases)]
        self._process: subprocess.Popen[bytes] | None = None
        self._stage = ""

    def run(self, case: Case) -> dict[str, Any]:
        """Return the record of a case."""
        began = time.monotonic()
        try:
            self._start()
            return self._ask(json.dumps(asdict(case)), PATIENCE)
        except Hung as hung:
            self.kill()
            seconds = round(time.monotonic() - began, 2)
            lost = {"outcome": "hung", "seconds": seconds, "broke": [f"hung: {hung}"], "error": str(hung)}
            return {"name": case.name, "way": case.way, "source": case.source, **lost}

    def _start(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            self._stage = self._receive(STARTING)["stage"]

    def _ask(self, line: str, deadline: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Hung(f"the trial's process had ended: {error}") from error
        return self._receive(deadline)

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], deadline)[0]:
            raise Hung(f"no answer in {deadline:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Hung(f"the trial's process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it take its stage down."""
        self._reap()

    def kill(self) -> None:
        """End it and all below it; remove its stage. Its mounts go with its mount namespace."""
        if self._process is not None:
            for pid in [*descendants(self._process.pid), self._process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._reap()
        if self._stage:
            subprocess.run(["rm", "-rf", "--one-file-system", self._stage], check=False)
            self._stage = ""

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()


class State:
    """What was run, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bases = folder / "bases"
        self.broken = folder / "broken"
        self.broken.mkdir(parents=True, exist_ok=True)
        self._path = folder / "records.jsonl"
        self._lock = threading.Lock()

    def records(self) -> list[dict[str, Any]]:
        """Every record; the last line may be cut off by an end that came at once."""
        found = {}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found[record["name"]] = record
        return list(found.values())

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record."""
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Run:
    """The cases that are left, on `AT_A_TIME` workers."""

    def __init__(self, state: State, console: Console, minutes: float) -> None:
        self._state = state
        self._console = console
        self._end = time.monotonic() + minutes * 60 if minutes else float("inf")
        self.stopped = threading.Event()
        self._counts: Counter[str] = Counter()

    def bulk(self, todo: Iterable[Case], done: int) -> None:
        """Run all of them, or until it is stopped."""
        waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
        total = done
        for case in todo:
            waiting.put(case)
            total += 1
        with self._progress() as progress:
            task = progress.add_task("", total=total, completed=done)

            def finished(record: dict[str, Any]) -> None:
                self._state.add(record)
                self._tell(record)
                progress.update(task, advance=1, description=results.short(self._counts))
                finished_now = sum(self._counts[key] for key in results.OUTCOMES)
                if not self._console.is_terminal and finished_now % 25 == 0:
                    self._console.print(f"{done + finished_now} of {total}: {results.short(self._counts)}")

            threads = [
                threading.Thread(target=self._work, args=(waiting, finished))
                for _ in range(min(AT_A_TIME, total - done))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)

    def _progress(self) -> Progress:
        bar = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        return Progress(*bar, TextColumn("{task.description}"), console=self._console)

    def _tell(self, record: dict[str, Any]) -> None:
        self._counts[record["outcome"]] += 1
        if record["broke"]:
            self._counts["broke"] += 1
            self._console.print(f"{record['name']} ({record['source']}): {record['broke'][0][:300]}", markup=False)

    def _work(self, waiting: "queue.SimpleQueue[Case]", finished: Callable[[dict[str, Any]], None]) -> None:
        worker = Worker(self._state.bases)
        while not self.stopped.is_set() and time.monotonic() < self._end:
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                break
            finished(worker.run(case))
        worker.close()

    # --- what broke ------------------------------------------------------------------------------------------------
    def again(self, suspects: dict[str, tuple[Case, dict[str, Any]]], workshop: Workshop) -> None:
        """Run what broke once more, alone; keep what breaks again, as small as it gets."""
        worker = Worker(self._state.bases)
        for case, record in suspects.values():
            if self.stopped.is_set():
                break
            self._console.print(f"again, alone: {case.name}", markup=False)
            second = worker.run(alone(case))
            record["again"] = second["broke"]
            if second["broke"]:
                smallest = self._smaller(case, kinds(second), worker, workshop)
                self._keep(smallest, second, workshop)
            self._state.add(record)
        worker.close()

    def _smaller(self, case: Case, wanted: set[str], worker: Worker, workshop: Workshop) -> Case:
        """Leave edits out for as long as it breaks in the same way."""
        if case.seed is None:
            return case
        edits = [(edit.offset, edit.data.hex()) for edit in workshop.edits(case)]
        for edit in list(edits):
            fewer = [each for each in edits if each is not edit]
            tried = replace(alone(case), name=f"{case.name}/smaller", seed=None, edits=tuple(fewer))
            if not self.stopped.is_set() and kinds(worker.run(tried)) & wanted:
                edits = fewer
        return replace(case, seed=None, edits=tuple(edits))

    def _keep(self, case: Case, record: dict[str, Any], workshop: Workshop) -> None:
        path = self._state.broken / f"{case.name.replace('/', '_')}.img"
        workshop.make(case, path)
        path.with_suffix(".json").write_text(json.dumps({"case": asdict(case), "record": record}, indent=1))
        self._console.print(f"kept: {path}", markup=False)


def alone(case: Case) -> Case:
    """Return the same case with a virtual machine of its own."""
    return replace(case, way="session") if case.way == "shared" else case


def kinds(record: dict[str, Any]) -> set[str]:
    """Return in which ways a record broke."""
    return {line.partition(":")[0] for line in record["broke"]}


# --- the command ---------------------------------------------------------------------------------------------------
def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="./dev hostile", description="Open images that nobody trusts, and look.")
    parser.add_argument("--set", default="all", help=f"all, {', '.join(SETS)}, or a folder of images (all)")
    parser.add_argument(
        "--mutations", type=int, default=MUTATIONS, metavar="N", help=f"how many of images ({MUTATIONS})"
    )
    parser.add_argument(
        "--containers", type=int, default=CONTAINERS, metavar="N", help=f"and of containers ({CONTAINERS})"
    )
    parser.add_argument("--headers", type=int, default=HEADERS, metavar="N", help=f"and of encrypted ones ({HEADERS})")
    parser.add_argument("--minutes", type=float, default=0, metavar="N", help="stop after so long")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the mutations (1)")
    parser.add_argument("--state", type=Path, default=STATE, metavar="DIR", help=f"what was run ({STATE})")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--write", action="store_true", help="write it to tests/hostile/RESULTS.md")
    return parser.parse_args(given)


def chosen(options: argparse.Namespace, bases: Path) -> Iterator[Case]:
    """Yield the cases that are asked for; make in `bases` what they are made of."""
    if options.set not in ("all", *SETS):
        yield from cases.of_folder(Path(options.set).resolve(strict=True))
    if options.set in ("all", "corpus"):
        yield from cases.of_corpus()
    if options.set in ("all", "mutations"):
        yield from cases.of_mutations(options.mutations, options.seed, cases.turns(cases.make_bases(bases)))
    if options.set in ("all", "containers"):
        made = list(cases.make_containers(cases.containers_in(bases)))
        yield from cases.of_mutations(options.containers, options.seed, made, "container")
    if options.set in ("all", "headers"):
        cases.make_headers(cases.headers_in(bases))
        yield from cases.of_headers(options.headers, options.seed)


def main(given: list[str] | None = None) -> int:
    """Run what is left, then what broke; say what came of it."""
    options = arguments(given)
    console = Console(stderr=True, soft_wrap=True)
    if os.geteuid() != 0:
        console.print("it needs root: sudo ./dev hostile")
        return 2
    if options.set == "corpus" and not corpus.images():
        console.print(f"no corpus in {corpus.folder()}")
        return 1
    state = State(options.state.resolve())
    Looking().close()  # the appliance is built, and whether KVM works is known
    wanted = list(chosen(options, state.bases))
    Random(options.seed).shuffle(wanted)  # what was run when it is stopped is a sample of everything
    known = {case.name: case for case in wanted}
    done = {record["name"]: record for record in state.records() if record["name"] in known}
    run = Run(state, console, options.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: run.stopped.set())
    run.bulk((case for name, case in known.items() if name not in done), len(done))
    done = {record["name"]: record for record in state.records() if record["name"] in known}
    suspects = {name: (known[name], each) for name, each in done.items() if each["broke"] and "again" not in each}
    run.again(suspects, Workshop(cases.all_bases(state.bases)))
    summary = results.summary(list(done.values()), len(known))
    (state.folder / "RESULTS.md").write_text(results.markdown(summary), encoding="utf-8")
    if options.write:
        Path(__file__).with_name("RESULTS.md").write_text(results.markdown(summary), encoding="utf-8")
    sys.stdout.write(json.dumps(summary, indent=1) + "\n" if options.json else results.markdown(summary))
    return 1 if summary["broke"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
