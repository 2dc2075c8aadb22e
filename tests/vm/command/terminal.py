"""A person at a terminal, who answers what a program asks there."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.done import Done
from tests.vm.command.stage import Person

# Types what it is given, each when what was said ends with certain words, and prints what was said.
_TYPING = """
import json, os, pty, sys
asked, typed = sys.argv[1].encode(), json.loads(sys.argv[2])
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[3], sys.argv[3:])
said = b""
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    if not data:
        break
    said += data
    if said.rstrip().endswith(asked) and typed:
        said += b"..."
        os.write(terminal, typed.pop(0).encode())
print(said.decode(errors="replace"))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def at_a_terminal(person: Person, asked: str, typed: Sequence[str], *arguments: str | Path) -> Done:
    """Run mountsafe there. What it said is what `Done.out` has."""
    program = [sys.executable, "-c", _TYPING]
    return person.run(asked, json.dumps(list(typed)), person.program, *arguments, program=program)
