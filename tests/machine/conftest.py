"""The machine: one for all the tests of a module, and how mountsafe comes to it."""

import os
from collections.abc import Callable, Generator, Iterator

import pytest

from tests.conftest import missing
from tests.machine import base, ways
from tests.machine.emulated import QEMU, FrozenError, Machine

FROZEN = 75  # the exit code that says so: EX_TEMPFAIL of sysexits.h, as `./dev machine-test` knows


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Tell the person something at once, whatever pytest captures."""
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    assert reporter is not None
    assert capture is not None

    def written(line: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(line)
            reporter.flush()

    return written


@pytest.fixture(scope="session")
def wanted() -> base.Wanted:
    """What `./dev machine-test` was called for."""
    if (asked := base.wanted()) is None:
        missing("MACHINE_RELEASE (./dev machine-test sets it)")
    return asked


@pytest.fixture(scope="session")
def way(wanted: base.Wanted, tmp_path_factory: pytest.TempPathFactory) -> ways.Way:
    if wanted.deb is None:
        return ways.FromCheckout()
    return ways.FromPackage(ways.copied(wanted.deb, tmp_path_factory.mktemp("package")))


@pytest.fixture(scope="module")
def machine(
    wanted: base.Wanted,
    program: Callable[[str], str],
    say: Callable[[str], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    if os.geteuid() != 0:
        missing("root")
    for name in (QEMU, "debootstrap", "mkfs.ext4"):
        program(name)
    made = Machine(base.ensure(wanted, say), tmp_path_factory.mktemp("machine"), say)
    try:
        with made.step("boot"):
            made.wait_for_boot()
        yield made
    finally:
        made.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the machine has to say to each failure."""
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(FrozenError):
        pytest.exit(f"the emulated machine stopped: {call.excinfo.value}", FROZEN)
    running = getattr(item, "funcargs", {}).get("machine")
    if report.failed and isinstance(running, Machine):
        report.sections.append(("the machine", running.report()))
    return report
