"""A command that has ended, wherever it ran."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Done:
    """What it was, its exit code, and what it printed."""

    command: Sequence[str | os.PathLike[str]]
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)

    def ok(self) -> "Done":
        """Itself, if it succeeded."""
        words = shlex.join(map(os.fspath, self.command))
        assert self.code == 0, f"{words} ended with {self.code}\n{self.out}\n{self.err}"
        return self
