"""Make README.md's table of file system types from a run over every image that there is.

    .venv/bin/python -m tests.vm.types_table            # shows it
    .venv/bin/python -m tests.vm.types_table --write    # puts it into README.md, between the markers

Some minutes; needs the corpus. An image counts as right by the same comparison as in test_corpus.py and test_images.py.
"""

import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from images import images
from mountsafe.appliance import build
from mountsafe.errors import UserError
from tests.vm import corpus, test_images, types
from tests.vm.sight import Look, Looking, Sight

BEGIN, END = "<!-- types:begin -->", "<!-- types:end -->"
README = Path(__file__).resolve().parents[2] / "README.md"


@dataclass(slots=True)
class Count:
    """What came out of the images of one type."""

    tried: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    read: int = 0
    asked: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """An image to try: `compare` returns what is wrong with the sight of it."""

    name: str
    fstype: str
    look: Look
    compare: Callable[[Sight], list[str]]


def cases(folder: Path) -> Iterator[Case]:
    """Unpack every image and name what is to be tried."""
    for oracle, compare in ((corpus.stated(), corpus.differences), (corpus.listed(), corpus.disagreements)):
        for name in sorted(oracle):
            image = corpus.images()[name]
            path = folder / f"{len(list(folder.iterdir()))}.img"
            corpus.unpack(image, path)
            yield Case(name, image.fstype, Look(path, image.option), partial(compare, image))
    for name in images.names():
        for volume in images.volumes(name):
            look = Look(images.unpack(name, folder), None, volume.partition or None)
            if volume.filesystem in types.TYPES and name != "truncated":
                yield Case(name, types.named(volume.filesystem), look, partial(test_images.differences, volume))


def run() -> dict[str, Count]:
    """Try them all."""
    counts: dict[str, Count] = defaultdict(Count)
    looking = Looking()
    with tempfile.TemporaryDirectory(prefix="mountsafe-types-") as folder:
        queued = [(case, looking.soon(case.look)) for case in cases(Path(folder))]
        for case, future in queued:
            count = counts[case.fstype]
            count.tried += 1
            try:
                (sight,) = future.result()
            except UserError as error:
                reason = types.refusal(case.name, case.fstype)
                if reason is None:
                    count.wrong.append(f"{case.name}: {error.message}")
                else:
                    count.refused[reason.why] += 1
                continue
            wrong = case.compare(sight)
            count.right += not wrong
            count.wrong += [f"{case.name}: {what}" for what in wrong]
            count.read += sight.read
            count.asked += sight.asked
    looking.close()
    return counts


def table(counts: dict[str, Count], kernel: str) -> str:
    """Return the table in Markdown."""
    lines = [
        f"{len(counts)} types, {sum(count.tried for count in counts.values())} images of other projects and of images/,"
        f" tried with Linux {kernel} on {datetime.now(UTC):%Y-%m-%d} (`python -m tests.vm.types_table`).",
        "An image is right when the mount shows the names, sizes, bytes, link targets and attributes that its maker"
        " states.",
        "",
        "| type | opens | files are read | images right / tried | remarks |",
        "|---|---|---|---|---|",
    ]
    for name, known in sorted(types.TYPES.items()):
        count = counts.get(name, Count())
        opens = "no" if known.read == types.NOT else "yes"
        refused = [f"{number} refused: {why}" for why, number in count.refused.items()] if known.read else []
        remarks = "; ".join(filter(None, [known.why, *refused]))
        lines.append(f"| {name} | {opens} | {known.read or '-'} | {count.right} / {count.tried} | {remarks} |")
    return "\n".join(lines)


def main() -> int:
    """Run, show what is wrong, show or write the table."""
    if not corpus.images():
        sys.stderr.write(f"no corpus in {corpus.folder()}\n")
        return 1
    counts = run()
    appliance = build.find()
    made = table(counts, appliance.kernel_version if appliance else "unknown")
    wrong = [line for count in counts.values() for line in count.wrong]
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    if sys.argv[1:] == ["--write"]:
        text = README.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        README.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
    else:
        sys.stdout.write(f"{made}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
