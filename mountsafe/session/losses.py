"""Which of the changes that programs were told of are lost, in words. The reports are untrusted and bounded."""

from collections.abc import Sequence

from mountsafe.limits import MAX_LOST_NAMES, NAME_SHOWN
from mountsafe.text import printable

WHY = 500  # characters of why something is not saved


class Losses:
    """Of one file system. `words` says all of it, "" if nothing is lost."""

    def __init__(self) -> None:
        self.words = ""
        self._count = 0
        self._why = ""
        self._names: dict[str, None] = {}
        self._more = False

    def add(self, untrusted_why: str, count: int, untrusted_names: Sequence[str]) -> None:
        """Take note of more. The first reason stays: the others come of it."""
        self._count += max(count, 0)
        self._why = self._why or printable(untrusted_why, WHY)
        for name in (printable(each, NAME_SHOWN) for each in untrusted_names[: MAX_LOST_NAMES + 1]):
            if len(self._names) < MAX_LOST_NAMES or name in self._names:
                self._names[name] = None
            else:
                self._more = True
        self.words = f"{_counted(self._count)}{self._where()}: {self._why}"

    def _where(self) -> str:
        return f" ({', '.join(self._names)}{' and more' if self._more else ''})" if self._names else ""


def _counted(count: int) -> str:
    if not count:
        return "changes may be lost"
    return f"{count} changes are lost" if count > 1 else "a change is lost"
