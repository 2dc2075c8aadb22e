"""Fills the manual pages that no command's help tells: packaging/man, with what stands elsewhere put in its place.

The keys of a rule and the worked rules are those of the policy's example, the exit codes those of README.md.
"""

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TEMPLATES = REPOSITORY / "packaging/man"
EXAMPLE = REPOSITORY / "mountsafe/policy/example.toml"
CODE = "#   "  # before a line of the example that is TOML
_KEY = re.compile(r"(?P<key>\w+ = .*?)(?:\s{2,}# (?P<words>.*))?")
_NUMBERED = re.compile(r"# (?P<number>\d+)\. (?P<words>.*)")
_EXIT_CODE = re.compile(r"\| (\d+) \| (.+) \|")


def pages(version: str) -> dict[str, str]:
    """Return each page's name and text."""
    head, _, tail = EXAMPLE.read_text(encoding="utf-8").partition("# Thirteen rules")
    codes = _EXIT_CODE.findall((REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Exit codes")[2])
    parts = {
        "@version@": version,
        "@keys@": "\n".join(_keys(head)),
        "@examples@": "\n".join(_examples(tail)),
        "@codes@": "\n".join(f".TP\n.B {number}\n{roff(words)}" for number, words in codes),
    }
    found = {}
    for path in sorted(TEMPLATES.iterdir()):
        text = path.read_text(encoding="utf-8")
        for name, part in parts.items():
            text = text.replace(name, part)
        found[path.name] = text
    return found


def roff(text: str) -> str:
    """Return a text in which roff finds nothing of its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return f"\\&{text}" if text[:1] in (".", "'") else text


def _keys(head: str) -> Iterator[str]:
    for line in head.splitlines():
        if line.startswith(CODE) and (found := _KEY.fullmatch(line.removeprefix(CODE))):
            yield f".TP\n\\fB{roff(found['key'])}\\fR\n{roff(found['words'] or 'as above')}"


def _examples(tail: str) -> Iterator[str]:
    """Yield each rule: words, then TOML as it stands."""
    code = False
    for line in tail.splitlines():
        if code and not line.startswith(CODE):
            yield ".RE\n.fi"
            code = False
        if line.startswith(CODE):
            if not code:
                yield ".PP\n.nf\n.RS"
                code = True
            yield roff(line.removeprefix(CODE))
        elif found := _NUMBERED.fullmatch(line):
            yield f".SS {found['number']}.\n{roff(found['words'])}"
        elif line.startswith("# "):
            yield roff(line.removeprefix("# "))
