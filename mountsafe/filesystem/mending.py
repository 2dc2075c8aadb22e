"""Set right what is known: of what the guest refused after programs were told of it, and of what nobody knows."""

from collections.abc import Callable
from contextlib import suppress

from mountsafe.errors import MountsafeError
from mountsafe.filesystem.changelog import MAKING, Logged
from mountsafe.filesystem.edits import require_fitting
from mountsafe.filesystem.index import Index
from mountsafe.filesystem.journal import Journal
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.reader import Reader


class Mending:
    """Of one tree. `release` as of `Index`; `renewed` is called with the number of a file whose bytes the kernel is to
    ask for anew.
    """

    def __init__(
        self,
        index: Index,
        reader: Reader,
        journal: Journal,
        release: Callable[[int, bytes], None],
        renewed: Callable[[int], None],
    ) -> None:
        self._index = index
        self._reader = reader
        self._journal = journal
        self._release = release
        self._renewed = renewed
        journal.mend = self.mend

    async def mend(self, refusals: list[tuple[Logged, OSError]], unsure: list[Node]) -> None:
        """Called as work of the journal's, when nothing is under way."""
        doubted = dict.fromkeys(unsure)
        for logged, _ in refusals:
            subject = logged.subject
            if subject is not None:
                doubted[subject] = None
            for folder, name in logged.places:
                self._index.forget_folder(folder)
                self._release(folder.ino, name)
                doubted[folder] = None
        for node in doubted:
            await self.renew(node)
        for logged, _ in refusals:
            if logged.subject is not None and logged.change.act not in MAKING:
                self._reader.changing(logged.subject)
                self._renewed(logged.subject.ino)

    async def renew(self, node: Node) -> None:
        """Ask what something is now; what is gone stays as it is."""
        self._journal.unsure.discard(node)
        if node.gone and not node.handle:
            return
        with suppress(OSError, MountsafeError):
            untrusted = await self._journal.told(node)
            entry = require_fitting(untrusted, node.mode & ~0o7777)
            self._index.told(node, entry.ino)
            node.renew(entry)
