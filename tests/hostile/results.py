"""What a hostile run came to: numbers, and the page that shows them."""

import re
import statistics
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Any

OUTCOMES = ("opened", "refused", "died", "deadline", "hung")
SURE = ("crash:", "agent:", "written:", "shown:", "error:", "memory:")  # other kinds a busy machine can cause
WAYS = {"session": "one machine each", "shared": "machines shared", "keys": "keys, no machine"}
REASONS = 25  # of refusals that are listed
OOPSES = "guest kernels with a bug"  # BUG, Oops, WARNING, panic on their consoles
MIB = 1 << 20

Record = dict[str, Any]


def short(counts: Counter[str]) -> str:
    """One line of progress."""
    return ", ".join(f"{counts[key]} {key}" for key in (*OUTCOMES, "broke") if counts[key])


def reason(message: str) -> str:
    """A refusal's words without what differs from image to image."""
    words = re.sub(r"^cannot mount [^:]*: (.*?B: )?", "", message)
    return re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", words)[:100].rstrip()


def group(record: Record) -> str:
    """The row of the table that a record counts in."""
    return f"{record['name'].split('/')[0]}, {WAYS.get(record['way'], 'command line')}"


def broken(record: Record) -> bool:
    """Whether something broke, and did so again when the image was run alone, or cannot be the work of others."""
    sure = any(line.startswith(SURE) for line in record["broke"])
    return sure or bool(record.get("again", record["broke"]))


def summary(records: list[Record], wanted: int) -> dict[str, Any]:
    """Count everything."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        row = rows[group(record)]
        row["images"] += 1
        row[record["outcome"]] += 1
        row["guests that died"] += record.get("deaths", 0)
        row["guests ended late"] += record.get("late", 0)
        row[OOPSES] += record.get("oopses", 0) > 0
        row["incidents"] += record.get("incidents", 0)
        row["broke"] += broken(record)
    seconds = sorted(record["seconds"] for record in records) or [0.0]
    memory: dict[str, int] = {}
    for record in records:
        for kind, peak in record.get("memory", {}).items():
            memory[kind] = max(memory.get(kind, 0), peak)
    refusals = Counter(reason(record["error"]) for record in records if record["outcome"] == "refused")
    return {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "wanted": wanted,
        "run": len(records),
        "rows": {name: dict(row) for name, row in sorted(rows.items())},
        "seconds": {
            "sum": round(sum(seconds)),
            "median": round(statistics.median(seconds), 2),
            "p95": seconds[int(len(seconds) * 0.95)],
            "longest": seconds[-1],
        },
        "entries": sum(record.get("entries", 0) for record in records),
        "bytes": sum(record.get("bytes", 0) for record in records),
        "longest_call": max((record.get("longest", 0.0) for record in records), default=0.0),
        "memory": memory,
        "types": dict(Counter(fstype for record in records for fstype in record.get("types", [])).most_common()),
        "refusals": dict(refusals.most_common(REASONS)),
        "broke": [facts(record) for record in records if broken(record)],
        "once": [facts(record) for record in records if record["broke"] and not broken(record)],
    }


def facts(record: Record) -> Record:
    """What is listed of an image that broke something."""
    return {key: record.get(key) for key in ("name", "source", "broke", "again")}


def listed(records: list[Record]) -> list[str]:
    """Those as lines."""
    return [f"- {each['name']} ({each['source']}): {each['broke'][0][:200]}" for each in records] or ["Nothing."]


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    columns = ("images", *OUTCOMES, "guests that died", "guests ended late", OOPSES, "incidents", "broke")
    seconds, memory = found["seconds"], found["memory"]
    lines = [
        "# The hostile run",
        "",
        f"`sudo ./dev hostile`, {found['when']}: {found['run']} of {found['wanted']} images. Those of the command line"
        " had a virtual machine each, the others one for up to 50.",
        f"{found['entries']} entries were looked at and {found['bytes'] / MIB:.0f} MiB read.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
        *(
            f"| {name} | " + " | ".join(str(row.get(key, 0)) for key in columns) + " |"
            for name, row in found["rows"].items()
        ),
        "",
        f"- An image took {seconds['median']} s (median), {seconds['p95']} s (95 %), {seconds['longest']} s at most;"
        f" {seconds['sum'] / 3600:.1f} hours for all of them, two at a time.",
        f"- The longest call on a mount took {found['longest_call']:.1f} s.",
        "- Memory of single processes at their peak: "
        + ", ".join(f"{kind} {peak / MIB:.0f} MiB" for kind, peak in sorted(memory.items()))
        + ".",
        "- Opened as: " + ", ".join(f"{fstype} {count}" for fstype, count in found["types"].items()) + ".",
        "",
        "## Why images were refused",
        "",
        *(f"- {count}: {words}" for words, count in found["refusals"].items()),
        "",
        "## What broke",
        "",
        *listed(found["broke"]),
        "",
        "## What happened once, and not when the image was run again, alone",
        "",
        *listed(found["once"]),
    ]
    return "\n".join(lines) + "\n"
