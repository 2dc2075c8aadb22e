"""Async tests, on a clock that jumps as soon as nothing else happens: a deadline passes at once, and a hang fails."""

import inspect
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from mountsafe import trios

PATIENCE = 100_000.0  # seconds of that clock: more than every deadline of mountsafe together


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_clock: the test waits for threads, which a jumping clock does not see")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test in trio."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    real = pyfuncitem.get_closest_marker("real_clock") is not None

    async def run() -> None:
        with trio.fail_after(60.0 if real else PATIENCE):
            await pyfuncitem.obj(**arguments)

    trios.run(partial(run), clock=None if real else MockClock(autojump_threshold=0))
    return True
