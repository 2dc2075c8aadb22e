"""What differs between the releases of trio that distributions have: Debian 12 has 0.22, Debian 13 has 0.29."""

import inspect
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import trio

T = TypeVar("T")
# The thread of a cancelled task is left to itself: trio 0.23 renamed the parameter that says so.
_NAMES = inspect.signature(trio.to_thread.run_sync).parameters
_LEFT = {"abandon_on_cancel" if "abandon_on_cancel" in _NAMES else "cancellable": True}


def run(function: Callable[..., Awaitable[T]], *arguments: Any, **options: Any) -> T:
    """Run as `trio.run` did before 0.25: where one thing fails in a nursery, that is raised, and no group of one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*strict_exception_groups")  # they would rather have it otherwise
        result: T = trio.run(partial(function, *arguments), strict_exception_groups=False, **options)
        return result


async def in_thread(function: Callable[..., T], *arguments: Any, limiter: trio.CapacityLimiter | None = None) -> T:
    """Run what blocks in a thread. Who is cancelled does not wait for it: what it still does then is lost.

    `limiter`: who counts the threads, instead of trio.
    """
    run_sync: Any = trio.to_thread.run_sync
    result: T = await run_sync(partial(function, *arguments), limiter=limiter, **_LEFT)
    return result
