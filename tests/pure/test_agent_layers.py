"""The graph of a search: its bounds end it, and what ended it is said."""

import time

import pytest

from mountsafe import wire
from mountsafe.agent import layers
from mountsafe.agent.layers import MAX_DEPTH, Graph, Node


def disk() -> Node:
    return Node("/dev/sdc", wire.VolumeKind.DISK, 0, [])


def is_unfinished(graph: Graph) -> bool:
    return bool(graph.nodes[0].resorts & wire.Resort.UNFINISHED)


def test_what_was_found_is_told_however_late_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph()
    graph.add(disk())
    late = time.monotonic() + 2 * layers.PATIENCE
    monkeypatch.setattr(time, "monotonic", lambda: late)
    assert graph.full
    assert graph.add(Node("/dev/sdc1", wire.VolumeKind.PARTITION, 1, graph.nodes[:1]))
    assert not is_unfinished(graph)


def test_more_volumes_than_can_be_told_are_not_left_out_in_silence() -> None:
    graph = Graph()
    graph.add(disk())
    added = [
        graph.add(Node(f"/dev/sdc{n}", wire.VolumeKind.PARTITION, n, graph.nodes[:1]))
        for n in range(1, wire.MAX_VOLUMES)
    ]
    assert all(added)
    assert not is_unfinished(graph)
    assert not graph.add(Node("/dev/sdc256", wire.VolumeKind.PARTITION, 256, graph.nodes[:1]))
    assert is_unfinished(graph)
    assert graph.volumes()[0].resorts == wire.Resort.UNFINISHED


def test_a_tower_that_is_too_high_is_not_left_out_in_silence() -> None:
    graph = Graph()
    graph.add(disk())
    while graph.add(graph.numbered("/dev/dm-1", wire.VolumeKind.LOGICAL, graph.nodes[-1:])):
        pass
    assert graph.nodes[-1].depth == MAX_DEPTH
    assert is_unfinished(graph)
