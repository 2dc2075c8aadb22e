"""The fuzzer's targets, with its seeds and with what hypothesis makes of them: a look at each, not a search."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_has_seeds_that_hold(name: str) -> None:
    assert SEEDS[name]
    for seed in SEEDS[name]:
        TARGETS[name](seed)


def changed(seed: bytes, at: int, cut: int, put: bytes) -> bytes:
    at %= len(seed) + 1
    return seed[:at] + put + seed[at + cut :]


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_a_seed_that_is_changed_somewhere(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS[name]))
    for at, cut, put in data.draw(
        st.lists(st.tuples(st.integers(0, 500), st.integers(0, 4), st.binary(max_size=8)), max_size=4)
    ):
        seed = changed(seed, at, cut, put)
    TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@given(st.binary(max_size=400))
@example(b"")
def test_noise(name: str, data: bytes) -> None:
    TARGETS[name](data)
