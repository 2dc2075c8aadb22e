"""A short, fixed part of the hostile run; and that the run notices what it is there to notice.

The whole of it is `./dev hostile`, which takes hours.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from images import images
from mountsafe.errors import UserError
from tests.conftest import missing
from tests.hostile import cases, headers, results, run
from tests.hostile.cases import Case
from tests.hostile.trial import Record, judge
from tests.vm import corpus, qemu_img
from tests.vm.sight import Looking

SEED = 7
MUTATIONS = 6
OF_THE_CORPUS = (
    "libarchive-iso/test_fuzz_1.iso.Z",  # loops and overflows
    "os-test-images/iso-with-qcow2-in-system.iso",  # names a file of the host
)

# What hostile runs have found: a base, edits, what it must come to before any deadline, and words of a refusal.
FOUND = {
    # The kernel says much of it on the console, and waited for a reader until the deadline.
    "talkative": ("images/xfs", ((1132, "bf"),), "refused", "Structure needs cleaning"),
    # An entry without a name, at which the kernel refuses to go on: the rest of the root is to be shown.
    "nameless": ("images/minix", ((36 * 1024 + 2, "00"),), "opened", ""),
}

# What a walk that was told to misbehave does: everything that must be noticed.
SABOTAGE = """
import os, subprocess, sys, tempfile
from pathlib import Path
from tests.hostile import trial
honest, todo = trial.walk, ["leave", "crash"]
def walk(top):
    what = todo.pop(0) if todo else ""
    if what == "crash":
        raise ZeroDivisionError
    if what == "leave":
        place = tempfile.mkdtemp()
        Path(tempfile.mkdtemp(), "file").touch()
        subprocess.run(["mount", "-t", "tmpfs", "sabotage", place], check=True)
        subprocess.Popen(["sleep", "1000"])
        with open(Path(os.environ["HOME"]).parent / "medium.img", "r+b") as image:
            image.write(b"\\0")
    return honest(top)
trial.walk = walk
trial.main()
"""


@pytest.fixture(scope="module")
def ready(program: Callable[[str], str]) -> None:
    """Everything that a run needs is here."""
    program("qemu-img")
    if os.geteuid() != 0:
        missing("root")
    try:
        Looking().close()
    except UserError as error:
        missing(error.message)


@pytest.fixture(scope="module")
def bases(ready: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    cases.make_bases(folder, of_the_corpus=False)
    cases.make_containers(cases.containers_in(folder))
    cases.make_headers(cases.headers_in(folder))
    return folder


@pytest.fixture(scope="module")
def worker(ready: None, bases: Path) -> Iterator[run.Worker]:
    worker = run.Worker(bases)
    yield worker
    worker.close()


def clean(record: dict[str, Any]) -> None:
    assert record["broke"] == []
    assert record["outcome"] in results.OUTCOMES


@pytest.mark.parametrize("number", range(MUTATIONS))
def test_a_damaged_image_breaks_nothing(worker: run.Worker, bases: Path, number: int) -> None:
    names = list(cases.load_bases(bases))
    (case,) = (
        case for case in cases.of_mutations(MUTATIONS, SEED, names[:MUTATIONS]) if case.name.endswith(f"/{number}")
    )
    clean(worker.run(case))


@pytest.mark.parametrize("way", qemu_img.FORMATS)
def test_a_damaged_container_breaks_nothing(worker: run.Worker, way: str) -> None:
    (case,) = cases.of_mutations(1, SEED, [f"{cases.CONTAINED[0]}.{way}"], "container")
    clean(worker.run(case))


@pytest.mark.parametrize("name", headers.LOCKS)
def test_a_header_that_is_not_damaged_is_unlocked(worker: run.Worker, name: str) -> None:
    record = worker.run(Case(f"header/{name}", "keys", f"{headers.PREFIX}{name}", edits=()))
    clean(record)
    assert record["outcome"] == "opened", record["error"]


@pytest.mark.parametrize("number", range(len(headers.LOCKS)))
def test_a_damaged_header_breaks_nothing(worker: run.Worker, number: int) -> None:
    case = list(cases.of_headers(len(headers.LOCKS), SEED))[number]
    clean(worker.run(replace(case, way="keys") if number else case))


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(worker: run.Worker, name: str) -> None:
    base, edits, outcome, words = FOUND[name]
    record = worker.run(Case(f"found/{name}", "session", base, edits=edits))
    clean(record)
    assert record["outcome"] == outcome
    assert words in record["error"]


@pytest.mark.parametrize("way", ["user", "root"])
def test_nothing_comes_of_it_through_the_command_line(worker: run.Worker, tmp_path: Path, way: str) -> None:
    record = worker.run(Case("file/hostile-names", way, str(images.unpack("hostile-names", tmp_path))))
    clean(record)
    assert (record["outcome"], record["types"]) == ("opened", ["ext4"])
    assert record["entries"] > 30


@pytest.mark.parametrize("name", OF_THE_CORPUS)
def test_an_image_that_was_made_to_harm_breaks_nothing(worker: run.Worker, name: str) -> None:
    if name not in corpus.images():
        missing(f"the corpus (expected at {corpus.folder()}, or where MOUNTSAFE_CORPUS says)")
    clean(worker.run(Case(f"corpus/{name}", "user", name)))


def test_what_is_left_changed_or_raised_is_noticed(ready: None, bases: Path, tmp_path: Path) -> None:
    worker = run.Worker(bases, ("-c", SABOTAGE))
    case = Case("file/small", "session", str(images.unpack("romfs", tmp_path)))
    try:
        left, crashed, honest = (worker.run(case) for _ in range(3))
    finally:
        worker.close()
    assert run.kinds(left) == {"left", "written"}
    found = json.loads(next(line for line in left["broke"] if line.startswith("left")).removeprefix("left: "))
    assert {kind for each in found for kind in each} == {"files", "mounts", "processes"}
    assert run.kinds(crashed) == {"crash"}, crashed["broke"]
    clean(honest)


def test_a_trial_that_dies_is_noticed_and_the_next_one_runs(ready: None, bases: Path, tmp_path: Path) -> None:
    worker = run.Worker(bases, ("-c", 'import sys; print(\'{"stage": ""}\', flush=True); sys.stdin.readline()'))
    assert run.kinds(worker.run(Case("file/small", "session", "/dev/null"))) == {"hung"}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("session: ERROR: a bug in lookup", "crash"),
        ("session: Traceback (most recent call last):", "crash"),
        ("the session process ended (70)", "crash"),
        ("the session process ended (-11)", "crash"),
        ("the session process ended (1)", ""),
        ("session: WARNING: incident 1: an impossible name", ""),
        ("session: ERROR: fuse_read(): fuse_reply_* failed with Invalid argument", "crash"),
        ("session: ERROR: fuse_releasedir(): fuse_reply_* failed with No such file or directory", ""),
    ],
)
def test_a_log_is_judged(line: str, what: str) -> None:
    record = Record("name", "session", "source")
    judge(["one line", line], record)
    assert {each.partition(":")[0] for each in record.broke} == ({what} if what else set())


def test_a_run_goes_on_where_it_was(ready: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "noise").write_bytes(os.urandom(1 << 16))
    given = ["--set", str(folder), "--state", str(tmp_path / "state"), "--json"]
    assert run.main(given) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["run"], first["wanted"]) == (1, 1)
    images.unpack("romfs", folder)
    assert run.main(given) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["run"], second["wanted"]) == (2, 2)
    lines = (tmp_path / "state/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["refused", "opened"]
