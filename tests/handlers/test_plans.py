"""Plans of many extents against a model: what is counted is what is kept, and the newest is kept whatever came before.

Nodes are forgotten and learned again under the same number, while an open file may still hold the old one.
"""

import errno
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from mountsafe import wire
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.plans import Plans
from mountsafe.medium.extents import NO_PLAN, ReadPlan, Source
from mountsafe.wire import Extent, ExtentKind, Kind
from tests.guest import Liar, entry, folder, layout
from tests.handlers.opened import opened

LIMIT = 20 * wire.MAX_FILE_EXTENTS
LONG = wire.MAX_FILE_EXTENTS + 1


def plan_of(extents: int) -> ReadPlan:
    return ReadPlan([(2 * at, 2 * at + 1, Source.ZERO, 0) for at in range(extents)])


@dataclass
class Model:
    """Every node that there ever was, by number; the last of each is the one that the index knows."""

    plans: Plans = field(default_factory=lambda: Plans(LIMIT))
    nodes: dict[int, list[Node]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)  # of plans, by number

    def plan(self, ino: int, extents: int, anew: bool) -> None:
        known = self.nodes.setdefault(ino, [])
        if anew or not known:
            known.append(Node(ino, None, entry(b"x", ino, size=1)))
        node = known[-1]
        self.plans.give(node, plan_of(extents))
        self.order = [other for other in self.order if other != ino]
        if extents >= LONG:
            self.order.append(ino)
        while sum(len(self.nodes[other][-1].plan) for other in self.order) > LIMIT or (
            self.order and not len(self.nodes[self.order[0]][-1].plan)
        ):
            self.order.pop(0)
        if extents <= LIMIT:
            assert (len(node.plan), node.unplanned) == (extents, False)

    def check(self) -> None:
        every = [node for nodes in self.nodes.values() for node in nodes]
        long = [node for node in every if len(node.plan) >= LONG]
        assert self.plans.extents == sum(len(node.plan) for node in long) <= LIMIT
        assert len({node.ino for node in long}) == len(long)
        assert sorted(node.ino for node in long) == sorted(self.order)  # the newest, as many as there is room for
        for node in every:
            assert not (node.unplanned and len(node.plan))


@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),
            st.sampled_from([0, 1, LONG - 1, LONG, 3 * LONG, LIMIT // 3, LIMIT // 2, LIMIT, LIMIT + 1]),
            st.booleans(),
        ),
        max_size=40,
    )
)
@settings(max_examples=300)
def test_what_is_counted_is_what_is_kept(steps: list[tuple[int, int, bool]]) -> None:
    model = Model()
    for step in steps:
        model.plan(*step)
        model.check()


async def test_a_mount_that_forgets_and_learns_for_long_keeps_its_plans() -> None:
    """More plans than there is room for, if forgotten ones were counted for ever."""
    holes = [Extent(2 * at, 0, 1, ExtentKind.ZERO) for at in range(100)]
    tree = {b"": [folder(b"%d" % at, 10 + at) for at in range(3)]}
    for at in range(3):
        tree[b"%d" % at] = [entry(b"file", 100 + at, size=4000)]
    liar = Liar(tree, {b"%d/file" % at: b"x" * 4000 for at in range(3)})
    liar.say[Kind.EXTENTS] = lambda _: wire.pack_extents(holes, 0)
    async with opened(lambda: liar, limit=4) as mount:
        mount.reader.plans = Plans(350)
        for _ in range(20):
            for at in range(3):
                inode = await mount.walk(b"%d/file" % at)
                await mount.read(b"%d/file" % at, 0, 1)
                assert len(mount.index.node(inode).plan) == 100
                await mount.operations.forget([(inode, 1000)])
        assert mount.reader.plans.extents == 300
        assert liar.count(Kind.EXTENTS) == 60  # they were forgotten each time


# --- one refusal switches nothing off --------------------------------------------------------------------------------
async def test_a_layout_that_was_refused_once_is_asked_for_again() -> None:
    """Meanwhile the bytes come through the guest: a file can be read whose layout cannot be told."""
    names = [b"%d" % number for number in range(5)]
    liar = Liar({b"": [entry(name, 100 + int(name), size=5) for name in names]}, dict.fromkeys(names, b"hello"))

    def refuse(body: bytes) -> bytes:
        raise OSError(errno.EIO, "a bad sector")

    told = [([Extent(0, 0, 5, ExtentKind.ZERO)], False)]
    async with opened(lambda: liar) as mount:
        liar.say[Kind.LAYOUT] = refuse
        assert await mount.read(b"0") == b"hello"
        nodes = list((await mount.index.children(mount.index.root)).values())
        assert all(node.unplanned and node.plan is NO_PLAN for node in nodes)
        liar.say[Kind.LAYOUT] = lambda body: layout(*told * len(wire.unpack_layout_request(body)[1]))
        await mount.read(b"3")
        await mount.read(b"1")
        assert [len(node.plan) for node in nodes] == [0, 1, 1, 1, 1]
