"""The plans of files with many extents, within the memory set aside for one mount: oldest dropped first."""

from collections import OrderedDict

from mountsafe import wire
from mountsafe.filesystem.nodes import Node
from mountsafe.medium.extents import NO_PLAN, ReadPlan


class Plans:
    """Gives plans to nodes. Short ones are the node's own affair: their number is bounded by that of the nodes.

    A node may be forgotten and learned again, under the same number, while an open file still holds the old one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._long: OrderedDict[int, Node] = OrderedDict()
        self.extents = 0  # in all of them

    def give(self, node: Node, plan: ReadPlan) -> None:
        """Let a node have a plan, and take from others what is too much."""
        self._take(node.ino)
        node.plan, node.unplanned = plan, False
        if len(plan) <= wire.MAX_FILE_EXTENTS:
            return
        self._long[node.ino] = node
        self.extents += len(plan)
        while self.extents > self._limit:
            self._take(next(iter(self._long)))

    def drop(self, node: Node) -> None:
        """Take a node's plan for good: its bytes are about to lie elsewhere."""
        self._take(node.ino)
        node.plan, node.unplanned = NO_PLAN, False

    def _take(self, ino: int) -> None:
        """Take the long plan that was given under this number, if there is one: who needs it asks again."""
        holder = self._long.pop(ino, None)
        if holder is not None:
            self.extents -= len(holder.plan)
            holder.plan, holder.unplanned = NO_PLAN, True
