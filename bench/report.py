"""From figures to a table: medians, ratios, targets."""

import datetime
import os
import platform
import statistics
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from measure import BenchError, run
from works import DIRECT, LOOPED, PACKED, WORKS, Work

Figures = dict[tuple[str, str], dict[str, list[float]]]  # (work, file system) -> column -> figures


@dataclass(frozen=True)
class Target:
    """What mountsafe's median must reach: `factor` times the median of `of`, or `factor` itself if `of` is empty.

    `of`: a column, or "ext4" (mountsafe's own figure there), or "one" (its own single reader). `least`: at least or at
    most that much.
    """

    factor: float
    of: str = ""
    least: bool = False

    def __str__(self) -> str:
        sign = ">=" if self.least else "<="
        name = {"ext4": " own ext4", "one": " own one reader"}.get(self.of, f" {self.of}")
        return f"{sign} {self.factor:g}{name}".rstrip()


def at_least(factor: float, of: str) -> Target:
    """A speed."""
    return Target(factor, of, least=True)


def at_most(factor: float, of: str = "") -> Target:
    """A time, or a size."""
    return Target(factor, of)


TARGETS: dict[str, tuple[Target, ...]] = {
    "mount-cold": (at_most(0.7, "G"),),
    "mount-warm": (at_most(1.0),),
    "random": (at_most(1.3, "K"),),
    "eight": (at_least(1, "one"),),
    "find-first": (at_most(0.5, "G"),),
    "find-again": (at_most(1.3, "K"),),
    "tar": (at_most(2.5, "K"), at_most(0.2, "G")),
    "ls": (at_most(0.25, "G"),),
    "write-first": (at_most(1.0),),
    "write-random": (at_most(1.5, "K"),),
    "write-tree": (at_most(0.25),),
    "write-tree-durable": (at_most(0.8), at_most(0.12, "G")),
    "write-tar-durable": (at_most(2.5), at_most(0.3, "G")),
    "write-rm-durable": (at_most(0.5, "G"),),
    "memory-idle": (at_most(450),),
    "memory-ended": (at_most(60),),
}


def targets(work: str, filesystem: str) -> tuple[Target, ...]:
    """Return the targets of a line."""
    if work == "write-big-durable":  # 80 MB/s where the kernel's own has no such type to compare with
        return (at_most(2, "K"),) if filesystem == "ext4" else (at_most(3.4),)
    if work not in ("seq-cold", "seq-cached"):
        return TARGETS.get(work, ())
    if filesystem in LOOPED:
        return at_least(0.9 if work == "seq-cold" else 1.2, "K"), at_least(5, "G")
    if filesystem in DIRECT:
        return at_least(0.9, "ext4"), at_least(5, "G")
    return (at_least(1.3, "G"),) if filesystem in PACKED else ()


@dataclass
class Line:
    """A line of the table: medians by column, and each target with whether it is met (None: cannot be told)."""

    work: str
    filesystem: str
    title: str
    unit: str
    medians: dict[str, float]
    figures: dict[str, list[float]]
    targets: list[tuple[str, bool | None]] = field(default_factory=list)

    def ratio(self, other: str) -> float | None:
        """mountsafe's median by another's."""
        mine, theirs = self.medians.get("M"), self.medians.get(other)
        return mine / theirs if mine is not None and theirs else None

    def met(self) -> bool | None:
        """Whether all targets that can be told are met; None if there is none."""
        known = [met for _, met in self.targets if met is not None]
        return all(known) if known else None


def lines(figures: Figures) -> list[Line]:
    """Return the table, in the order of the works."""
    medians = {key: {c: statistics.median(f) for c, f in columns.items() if f} for key, columns in figures.items()}
    found = []
    for work in WORKS.values():
        for (key, filesystem), columns in figures.items():
            if key == work.key:
                line = Line(key, filesystem, work.title, work.unit, medians[key, filesystem], columns)
                line.targets = [(str(t), _met(t, work, filesystem, medians)) for t in targets(key, filesystem)]
                found.append(line)
    return found


def _met(target: Target, work: Work, filesystem: str, medians: dict[tuple[str, str], dict[str, float]]) -> bool | None:
    mine = medians[work.key, filesystem].get("M")
    if target.of == "":
        reference: float | None = 1.0
    elif target.of == "ext4":
        reference = medians.get((work.key, "ext4"), {}).get("M")
    elif target.of == "one":
        reference = medians.get(("seq-cached", filesystem), {}).get("M")
    else:
        reference = medians[work.key, filesystem].get(target.of)
    if mine is None or reference is None:
        return None
    return mine >= target.factor * reference if target.least else mine <= target.factor * reference


# --- as text --------------------------------------------------------------------------------------------------------
HEAD = ("work", "type", "unit", "K", "G", "M", "M/K", "M/G", "target", "met")


def rows(of_it: Iterable[Line]) -> list[tuple[str, ...]]:
    """Return the cells of the table."""
    words = {True: "yes", False: "NO", None: "-"}
    return [
        (
            line.title,
            line.filesystem,
            line.unit,
            *(_number(line.medians.get(column)) for column in "KGM"),
            _ratio(line.ratio("K")),
            _ratio(line.ratio("G")),
            "; ".join(text for text, _ in line.targets) or "-",
            words[line.met()],
        )
        for line in of_it
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_text(of_it: list[Line]) -> str:
    """Return the table for a terminal."""
    table = [HEAD, *rows(of_it)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    right = {HEAD.index(name) for name in ("K", "G", "M", "M/K", "M/G")}
    text = ""
    for row in table:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def as_markdown(of_it: list[Line]) -> str:
    """Return the table for a page."""
    table = [HEAD, tuple("---" for _ in HEAD), *rows(of_it)]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def verdict(of_it: list[Line]) -> str:
    """Return one sentence on the targets."""
    told = [line for line in of_it if line.met() is not None]
    missed = [line for line in told if not line.met()]
    return f"{len(told) - len(missed)} of {len(told)} lines with a target meet it."


@dataclass(frozen=True)
class Circumstances:
    """Where, when and with what it was measured."""

    date: str
    cores: int
    processor: str
    memory_gib: float
    kernel: str
    accelerator: str
    qemu: str
    libguestfs: str
    mountsafe: str
    rounds: int
    guestmount_rounds: int
    quick: bool


def circumstances(mountsafe: Path, accelerator: str, rounds: tuple[int, int], quick: bool) -> Circumstances:
    """Look at this machine."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = next((line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")), "?")
    return Circumstances(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        cores=len(os.sched_getaffinity(0)),
        processor=model,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        kernel=platform.release(),
        accelerator=accelerator,
        qemu=_first_line("qemu-system-x86_64", "--version"),
        libguestfs=_first_line("guestmount", "--version"),
        mountsafe=_first_line(str(mountsafe), "--version"),
        rounds=rounds[0],
        guestmount_rounds=rounds[1],
        quick=quick,
    )


def _first_line(*command: str) -> str:
    with suppress(OSError, BenchError):
        return run(*command).strip().partition("\n")[0]
    return "?"


def as_data(around: Circumstances, of_it: list[Line]) -> dict[str, object]:
    """Return everything, for JSON."""
    told = [asdict(line) | {"M/K": line.ratio("K"), "M/G": line.ratio("G"), "met": line.met()} for line in of_it]
    return {"circumstances": asdict(around), "lines": told}


PAGE = """\
# What mountsafe costs, measured

Medians of {rounds} rounds ({guestmount_rounds} with guestmount), on {date}:
{cores} cores of {processor}, {memory_gib} GiB, Linux {kernel}, {kvm}.
{qemu}; {libguestfs}; {mountsafe}.

K is this kernel's loop mount, G is guestmount with the options that suit it best ({options}), M is mountsafe as a user
starts it. {verdict}

{table}
Each group of works runs on a fresh mount, the mounters taking turns. "Cold": the page cache was emptied, and the image
dropped from it. "Image in page cache": the image was read before, the mount was not. Speeds: higher is better.
Memory is the proportional set size of every process of a mount. Bytes read by the three ways were compared with what
was put on the images.

Reading a big file fills memory that was free. On a virtual machine whose host takes free memory back, that memory comes
back slowly, and the rounds of one line can differ by a factor of five, for every mounter.

To repeat: `sudo ./dev bench --rounds {rounds} --guestmount-rounds {guestmount_rounds} --save`.
It needs about 12 GiB in its work folder.
"""


def as_page(around: Circumstances, of_it: list[Line], options: Iterable[str]) -> str:
    """Return bench/RESULTS.md."""
    kvm = "KVM" if around.accelerator == "kvm" else "no KVM: virtual machines run in software (TCG)"
    table, words = as_markdown(of_it), verdict(of_it)
    return PAGE.format(**asdict(around), kvm=kvm, options=" ".join(options), verdict=words, table=table)
