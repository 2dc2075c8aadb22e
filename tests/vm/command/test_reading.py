"""`ls`, `cat`, `cp`, `tar`, `hash`, `timeline` and `run`: images as they are, exit codes, and nothing left behind.

What is left is looked for after each test (`traces`).
"""

import hashlib
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode
from tests.luks import PASSPHRASE, luks
from tests.vm.command.stage import Person
from tests.vm.command.terminal import at_a_terminal
from tests.vm.command.test_interrupt import interrupted

Image = Callable[[str], Path]


def manifest(name: str, partition: int = 0) -> dict[str, images.Entry]:
    """What is on an image, by path."""
    volume = next(each for each in images.volumes(name) if each.partition in (partition, None))
    return {os.fsdecode(entry.path): entry for entry in volume.entries}


def test_what_is_listed_is_what_is_on_it(person: Person, image: Image) -> None:
    wanted = manifest("ext4")
    done = person.run("ls", "-R", f"{image('ext4')}:", "--json").ok()
    told = {each["path"]: each for each in map(json.loads, done.out.splitlines())}
    assert told.keys() - {"lost+found"} == wanted.keys()
    for path, entry in wanted.items():
        if entry.kind == "file":
            assert told[path]["size"] == entry.size
        if entry.mode is not None and entry.kind != "link":
            assert told[path]["mode"] == entry.mode
    names = person.run("ls", image("ext4")).ok().out.splitlines()
    assert names == sorted({path.split("/")[0] for path in told}, key=os.fsencode)
    long = person.run("ls", "-l", f"{image('ext4')}:/link-absolute").ok().out
    assert long.endswith(" /link-absolute -> /etc/passwd\n")
    assert long.startswith("lrwxrwxrwx 1 0 0 ")


def test_files_are_printed(person: Person, image: Image) -> None:
    done = person.run("cat", f"{image('disk-gpt')}:2/documents/letter.txt", f"{image('disk-gpt')}:p1-ESP/empty").ok()
    wanted = manifest("disk-gpt", 2)["documents/letter.txt"].sha256
    assert hashlib.sha256(done.out.encode()).hexdigest() == wanted
    some = person.run("cat", f"{image('ext4')}:nothing", f"{image('ext4')}:documents", f"{image('ext4')}:README.txt")
    assert some.code == ExitCode.PARTIAL
    assert hashlib.sha256(some.out.encode()).hexdigest() == manifest("ext4")["README.txt"].sha256
    assert "nothing: No such file or directory" in some.err
    assert "documents: Is a directory" in some.err


def test_it_is_copied(person: Person, folder: Path, image: Image) -> None:
    wanted = manifest("ext4")
    done = person.run("cp", "-r", "-p", f"{image('ext4')}:", "copy", cwd=folder).ok()
    assert "left out: null-device" in done.err
    for path, entry in wanted.items():
        made = folder / "copy" / path
        if entry.kind == "file":
            assert hashlib.sha256(made.read_bytes()).hexdigest() == entry.sha256
            assert not made.stat().st_mode & 0o7000
            assert made.stat().st_uid == person.uid
    assert os.path.samefile(folder / "copy/hard-a", folder / "copy/hard-b")
    again = person.run("cp", f"{image('ext4')}:README.txt", folder / "copy")
    assert again.code == ExitCode.PARTIAL
    assert "README.txt: File exists" in again.err
    assert person.run("cp", f"{image('ext4')}:documents", folder).code == ExitCode.PARTIAL
    assert person.run("cp", f"{image('ext4')}:README.txt", folder / "no/where").code == ExitCode.TARGET


def test_other_programs_understand_it(user: Person, folder: Path, image: Image) -> None:
    user.run("tar", image("ext4"), "-o", folder / "it.tar").ok()
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "xf", "it.tar", "-C", "unpacked"], cwd=folder, check=True, timeout=60)
    done = user.run("hash", image("ext4")).ok()
    (folder / "sums").write_text(done.out, errors="surrogateescape")
    checked = subprocess.run(["sha256sum", "-c", "../sums"], cwd=folder / "unpacked", capture_output=True, timeout=60)
    assert checked.returncode == 0, checked
    files = {path for path, entry in manifest("ext4").items() if entry.kind == "file"}
    assert {line.split("  ", 1)[1] for line in done.out.splitlines()} == files
    assert user.run("tar", image("ext4"), "-o", folder / "it.tar").code == ExitCode.TARGET
    with tarfile.open(folder / "it.tar") as archive:
        assert archive.getmember("setuid").mode == 0o755
    lines = [line.split("|") for line in user.run("timeline", image("disk-gpt")).ok().out.splitlines()]
    assert {len(line) for line in lines} == {11}
    assert {"/p2-DATA/documents/letter.txt", "/p1-ESP/README.txt"} <= {line[1] for line in lines}


def test_a_terminal_is_shown_no_control_character(user: Person, image: Image) -> None:
    said = at_a_terminal(user, "never", [], "cat", f"{image('ext4')}:random.bin")
    assert said.code == 0
    body = said.out[said.out.rindex("\x1b[") if "\x1b[2J" in said.out else 0 :]
    assert "\\x" in body
    assert user.run("tar", image("ext4"), program=None).code == 0
    refused = at_a_terminal(user, "never", [], "tar", str(image("ext4")))
    assert refused.code == ExitCode.USAGE
    assert "not for a terminal" in refused.out


def test_a_command_sees_the_files(person: Person, folder: Path, image: Image) -> None:
    script = 'ls "$1"; cat "$MOUNTSAFE_DIR/documents/letter.txt"; touch "$1/x" 2>/dev/null || exit 7'
    done = person.run("run", "-p", "2", image("disk-gpt"), "--", "sh", "-c", script, "sh", "{}")
    assert done.code == 7
    assert done.out.splitlines()[:3] == ["README.txt", "documents", "empty"]
    assert person.run("run", image("ext4"), "--", "true").code == 0
    assert person.run("run", image("ext4"), "--", "no-such-program").code == 127
    assert person.run("run", image("ext4"), "--", "sh", "-c", "kill -9 $$").code == 128 + signal.SIGKILL


def test_a_run_that_is_killed_leaves_no_mount(user: Person, image: Image) -> None:
    with user.start("run", image("ext4"), "--", "sh", "-c", "echo {}; sleep 1000") as process:
        assert process.stdout is not None
        place = Path(process.stdout.readline().strip())
        assert place.name.startswith("mountsafe-run-")
        process.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 60
        while place.name in os.listdir(place.parent):  # the mount itself is the user's alone, not even root's
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_copy_goes_on_where_it_was_and_not_beside_it(user: Person, folder: Path, image: Image) -> None:
    source = f"{image('ext4')}:documents"
    user.run("cp", "-r", "-p", source, "copy", cwd=folder).ok()
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    gone = next(path for path in (folder / "copy").rglob("*") if path.is_file())
    content = gone.read_bytes()
    gone.unlink()
    done = user.run("cp", "-r", "-p", "--resume", source, "copy", cwd=folder)
    assert done.code == ExitCode.TARGET
    assert "-T" in done.err
    user.run("cp", "-r", "-p", "--resume", "-T", source, "copy", cwd=folder).ok()
    assert gone.read_bytes() == content
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    user.run(folder / "new", program=["mkdir"]).ok()
    for _ in range(2):  # in a folder that was there
        user.run("cp", "-r", "-p", "--resume", source, "new", cwd=folder).ok()
    assert os.listdir(folder / "new") == ["documents"]


@pytest.mark.parametrize("verb", ["ls", "hash"])
def test_ctrl_c_leaves_nothing(user: Person, image: Image, verb: str) -> None:
    for step in range(6):
        with user.start(verb, image("ext4")) as process:
            time.sleep(0.25 * step)
            if process.poll() is None:
                assert "Traceback" not in interrupted(process)
                assert process.returncode in (ExitCode.INTERRUPTED, -signal.SIGINT, 0)


def test_errors_have_the_codes_of_mount(user: Person, folder: Path, image: Image) -> None:
    locked = luks(image("vfat").read_bytes(), user.give(folder) / "locked.img")
    locked.chmod(0o644)
    key = folder / "key"
    key.write_bytes(PASSPHRASE)
    key.chmod(0o644)
    for words, code in (
        (["ls", "no-such-file.img:/x"], ExitCode.SOURCE),
        (["ls", f"{image('ext4')}:/nothing"], ExitCode.FAILURE),
        (["ls", image("garbage")], ExitCode.SOURCE),
        (["ls", locked], ExitCode.LOCKED),
        (["ls", image("ext4"), "--type", "ntfs"], ExitCode.SOURCE),
        (["cp", "only-one"], ExitCode.USAGE),
        (["ls", image("ext4"), "-o", "ro"], ExitCode.USAGE),
    ):
        done = user.run(*words)
        assert done.code == code, done
        assert done.out == ""
    assert "README.txt" in user.run("ls", locked, "--key-file", key).ok().out


def test_it_needs_no_fuse(root: Person, image: Image) -> None:
    """As in a container: there is no /dev/fuse that works, and no fusermount3."""
    hidden = 'mount --bind /dev/null /dev/fuse && mount --bind /bin/false $(command -v fusermount3) && exec "$@"'
    program = ["unshare", "--mount", "sh", "-c", hidden, "sh", str(root.program)]
    assert "README.txt" in root.run("ls", image("ext4"), program=program).ok().out
    assert root.run("mount", image("ext4"), root.home / "m", program=program).code != 0
