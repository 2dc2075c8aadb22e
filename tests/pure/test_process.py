"""Children: none outlives who started it, whenever that is killed, and what they are told is ours to choose."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mountsafe import sandbox, trios
from mountsafe.process import Child, Guard, children, orphans, surroundings

BOUND = 30.0


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + BOUND
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def quiet(line: str) -> None:
    """Not logged."""


@pytest.mark.parametrize("victim", ["launcher", "stop", "keeper"])
def test_a_box_whose_starter_is_killed_is_gone(repository: Path, program: Callable[[str], str], victim: str) -> None:
    """At random moments of its start; bubblewrap alone leaves one in twelve, which waits for ever."""
    program("bwrap")
    command = [sys.executable, "-m", "tests.hostile.orphans", "--victim", victim, "--kills", "100"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{victim}: 100 kills, 0 left\n"), done.stderr


def test_the_first_process_of_a_namespace_that_lost_its_launcher_is_ended() -> None:
    """It would wait for the launcher's word, and has no signal yet that tells of that one's death."""
    namespaces = ["unshare", "--pid", "--fork", *([] if os.getuid() == 0 else ["--user"])]

    async def scene() -> None:
        launcher = Child([*namespaces, "sleep", "3600"], [], "box", quiet)
        wait_for(lambda: children(launcher.pid))
        [first] = children(launcher.pid)
        os.kill(launcher.pid, signal.SIGKILL)
        assert await launcher.wait() == -signal.SIGKILL
        assert gone(first)
        assert orphans() == []

    trios.run(scene)


def test_what_we_started_ourselves_is_no_orphan() -> None:
    with subprocess.Popen(["sleep", "3600"]) as other:
        child = Child(["sleep", "3600"], [], "other", quiet)
        trios.run(child.stop)
        assert other.poll() is None
        other.kill()


def test_a_guard_that_was_killed_is_replaced() -> None:
    first = Guard.group()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: gone(first))
    second = Guard.group()
    assert second != first
    assert Guard.group() == second
    assert not gone(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_guard_outlives_what_a_service_manager_sends_all(number: int) -> None:
    """Its last look is for after the supervisor's end."""
    guard = Guard.group()
    wait_for(lambda: f"{Path('/proc', str(guard), 'comm').read_text()}" in ("sh\n", "dash\n"))
    wait_for(lambda: int(Path(f"/proc/{guard}/status").read_text().partition("SigIgn:\t")[2].split()[0], 16))
    os.kill(guard, number)
    os.kill(guard, 0)
    assert Guard.group() == guard


def test_a_child_gets_nothing_of_the_callers_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LD_PRELOAD", "PYTHONPATH", "LIBGUESTFS_HV", "TMPDIR", "MOUNTSAFE_APPLIANCE", "BASH_ENV", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "evil"))
    told: list[str] = []

    async def scene() -> None:
        child = Child(["sh", "-c", "env >&2"], [], "child", told.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.log_words)
            assert await child.wait() == 0

    trios.run(scene)
    names = {line.partition("child: ")[2].partition("=")[0] for line in told}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == set(surroundings())


def test_the_first_process_of_a_box_stays_with_the_guard(program: Callable[[str], str]) -> None:
    """And what it starts has a session of its own: no terminal of ours, and no process of ours to signal."""
    program("bwrap")
    box = sandbox.Box(1 << 20, 1 << 30, 64)

    async def scene() -> None:
        launcher = Child(box.command(["sleep", "3600"], sandbox.outer_uid()), [], "box", quiet)
        wait_for(lambda: children(launcher.pid) and children(children(launcher.pid)[0]))
        [first] = children(launcher.pid)
        [inner] = children(first)
        wait_for(lambda: Path(f"/proc/{inner}/cmdline").read_bytes().startswith(b"sleep"))
        assert os.getpgid(launcher.pid) == os.getpgid(first) == Guard.group()
        assert os.getsid(inner) == inner
        await launcher.stop()
        assert gone(first)
        assert gone(inner)

    trios.run(scene)


def test_who_is_hushed_is_not_heard() -> None:
    heard: list[str] = []

    async def scene() -> None:
        said = trio.Event()

        def hear(line: str) -> None:
            heard.append(line)
            said.set()

        words = "echo before >&2; sleep 0.5; echo secret >&2; printf rest >&2"
        child = Child(["sh", "-c", words], [], "box", hear)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.log_words)
            await said.wait()
            child.hush()
            await child.wait()
        assert child.last_line == "before"

    trios.run(scene)
    assert heard == ["box: before"]
