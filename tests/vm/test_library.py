"""`mountsafe.open` over real images: what it tells is what was put on them, and nothing is left of it."""

import asyncio
import gc
import hashlib
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mountsafe
from images import images
from mountsafe import environment
from mountsafe.errors import ExitCode, UserError
from mountsafe.process import adopt, descendants
from mountsafe.session.runtime import base
from tests.vm import types
from tests.vm.corpus import MADE_BY_THE_FILE_SYSTEM
from tests.vm.sight import KINDS, Seen
from tests.vm.test_images import FILE_SYSTEMS, _differs, _is_linked, _shown

PATIENCE = 60.0
Image = Callable[[str], Path]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process and no record that was not there before."""
    adopt()  # what is left of a program that was killed is ours then
    before = there_is()
    yield
    gc.collect()
    wait_for(lambda: there_is() <= before)


def there_is() -> set[object]:
    """The records of this user, and the processes of mountsafe below this one."""
    return {*base().iterdir(), *(pid for pid in descendants(os.getpid()) if not is_guard(pid))}


def is_guard(pid: int) -> bool:
    """Whether it belongs to the tests, or has ended by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return b"mountsafe" not in command and b"bwrap" not in command and b"qemu" not in command


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def seen(fs: mountsafe.FileSystem) -> dict[bytes, Seen]:
    """Everything in a file system, as tests/vm/sight.py writes it down of a mount."""
    found: dict[bytes, Seen] = {}
    for top, folders, others in fs.walk(b""):
        for name in [*folders, *others]:
            path = os.path.join(top, name)
            st = fs.lstat(path)
            kind = KINDS[stat.S_IFMT(st.st_mode)]
            mode = stat.S_IMODE(st.st_mode) & 0o777
            common = (kind, mode, st.st_nlink, st.st_ino, st.st_uid, st.st_rdev, st.st_mtime_ns)
            if kind == "link":
                found[path] = Seen(*common, target=fs.readlink(path))
            elif kind == "file":
                content = fs.read_bytes(path)
                sha256 = hashlib.sha256(content).hexdigest()
                found[path] = Seen(*common, size=len(content), sha256=sha256, xattrs=fs.xattrs(path))
            else:
                found[path] = Seen(*common)
    return found


@pytest.mark.parametrize("name", sorted({str(each.values[0]) for each in FILE_SYSTEMS}))
def test_it_tells_what_was_put_on_it(name: str, image: Image) -> None:
    path = image(name)
    with mountsafe.open(path) as opened:
        for fs in opened:
            volume = next(each for each in images.volumes(name) if each.partition == fs.partition)
            assert volume.filesystem in types.TYPES
            wanted = {_shown(volume, entry.path): entry for entry in volume.entries}
            found = {path: each for path, each in seen(fs).items() if path not in MADE_BY_THE_FILE_SYSTEM}
            assert wanted.keys() == found.keys()
            wrong = {path: _differs(wanted[path], found[path]) for path in wanted}
            assert not any(wrong.values()), wrong
            for path_, entry in wanted.items():
                assert entry.link_of is None or _is_linked(found[path_], found[entry.link_of])
    assert images.sha256(path) == images.manifest()["images"][name]["sha256"]


def test_several_file_systems_have_names(image: Image) -> None:
    with mountsafe.open(image("disk-gpt")) as opened:
        assert [fs.name for fs in opened] == ["1", "2", "3"]
        assert opened[2].label == "DATA"
        assert opened[2].read_bytes("documents/letter.txt")
        with pytest.raises(UserError, match="several") as failure:
            _ = opened.filesystem
        assert failure.value.code == ExitCode.USAGE
        with pytest.raises(KeyError):
            _ = opened["9"]
    with pytest.raises(ValueError, match="closed"):
        opened[2].stat("/")
    with mountsafe.open(image("disk-gpt"), partition=2) as opened:
        assert opened.filesystem.fstype == "ext4"


def test_what_cannot_be_opened_is_said_with_a_code(image: Image, tmp_path: Path) -> None:
    for source, code in (
        (tmp_path / "nothing", ExitCode.SOURCE),
        (image("garbage"), ExitCode.SOURCE),
        (image("encrypted-luks"), ExitCode.LOCKED),
    ):
        with pytest.raises(UserError) as failure:
            mountsafe.open(source)
        assert failure.value.code == code


def test_who_forgets_to_close_is_told(image: Image) -> None:
    opened = mountsafe.open(image("ext4"))
    fs = opened.filesystem
    del opened
    gc.collect()
    assert fs.listdir("/")  # who has a part has it all
    held = [fs]
    del fs
    with pytest.warns(ResourceWarning, match="unclosed image .*ext4"):
        held.clear()


def child(path: Path, code: str) -> "subprocess.Popen[str]":
    program = f"import mountsafe\nimage = mountsafe.open({os.fspath(path)!r})\nfs = image.filesystem\n{code}"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environ)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_program_that_ends_leaves_nothing(ending: signal.Signals | None, image: Image) -> None:
    before = there_is()
    wait = "import time; time.sleep(1000)" if ending else "fs.open('documents/letter.txt')"
    process = child(image("ext4"), f"print(fs.listdir('/'), flush=True)\n{wait}")
    assert process.stdout is not None
    assert "documents" in process.stdout.readline()
    if ending:
        process.send_signal(ending)
    assert process.wait(PATIENCE) == (-ending if ending else 0)
    process.stdout.close()
    wait_for(lambda: there_is() <= before)  # our children's children are ours by now


def test_a_fork_opens_its_own_and_a_dead_parent_leaves_nothing(image: Image) -> None:
    code = """
import os, time
if os.fork() == 0:
    try:
        fs.listdir("/")
    except ValueError as error:
        print(error, flush=True)
    with mountsafe.open(image.source) as own:
        print(own.filesystem.listdir("/"), flush=True)
    time.sleep(1000)
time.sleep(1000)
"""
    process = child(image("ext4"), code)
    assert process.stdout is not None
    assert "another process" in process.stdout.readline()
    assert "documents" in process.stdout.readline()
    (young,) = (pid for pid in descendants(process.pid) if command_of(pid) == command_of(process.pid))
    process.kill()
    process.wait(PATIENCE)
    wait_for(lambda: not list(base().iterdir()))  # though the child lives
    os.kill(young, 0)
    os.kill(young, signal.SIGKILL)
    process.stdout.close()


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def names(path: Path) -> list[str]:
    with mountsafe.open(path) as opened:
        return sorted(opened.filesystem.listdir("/"))


def test_workers_of_other_processes_open_their_own(image: Image) -> None:
    path = image("ext4")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, other = pool.map(names, [path, path])
    assert one == other == names(path)


def test_it_works_beside_an_event_loop_and_in_threads(image: Image) -> None:
    path = image("ext4")

    async def main() -> list[list[str]]:
        within = names(path)  # blocks the loop, and works
        beside = await asyncio.gather(*(asyncio.to_thread(names, path) for _ in range(2)))
        return [within, *beside]

    one, *others = asyncio.run(main())
    assert others == [one, one]
    with mountsafe.open(path) as opened, ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: sorted(opened.filesystem.listdir("/")), range(50)))
    assert told == [one] * 50


def test_a_session_process_that_dies_is_an_io_error(image: Image) -> None:
    with mountsafe.open(image("ext4")) as opened:
        (session,) = (mount.session for mount in opened._record.mounts)
        os.kill(session, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{session}"))
        with pytest.raises(OSError, match="has ended"):
            opened.filesystem.listdir("/")


def test_nothing_of_this_process_is_changed(image: Image) -> None:
    """Neither its signals, nor whose parent it is, nor its descriptors."""
    before = os.listdir("/proc/self/fd"), signal.getsignal(signal.SIGINT), environment.caller()
    with mountsafe.open(image("ext4")) as opened:
        assert opened.filesystem.listdir("/")
    after = os.listdir("/proc/self/fd"), signal.getsignal(signal.SIGINT), environment.caller()
    assert before == after


def test_the_readmes_example_works(image: Image, tmp_path: Path, repository: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", (repository / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "disk.img").symlink_to(image("disk-gpt"))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ext4 DATA" in done.stdout
    assert "/README.txt 75 {'user.comment': b'set by images/make'}" in done.stdout
