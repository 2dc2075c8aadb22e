"""`mount`, `list`, `inspect` and `unmount` with real media, as an ordinary user and as root."""

import errno
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from images import images
from mountsafe import landlock
from mountsafe.errors import ExitCode
from tests.done import Done
from tests.vm.command.stage import DEADLINE, Person, Stage, sh
from tests.vm.command.traces import Traces

Image = Callable[[str], Path]


@contextmanager
def mounted(person: Person, *arguments: str | Path, **how: Any) -> Iterator[dict[str, Any]]:
    """Mount, yield the record, unmount; nothing may be left when `unmount` returns."""
    before = Traces.taken(person)
    record = person.run("mount", "--json", *arguments, **how).ok().json()
    try:
        yield record
    finally:
        person.run("unmount", "--force", record["target"]).ok()
    before.assert_same(person)


def check_tree(person: Person, top: Path, expected: list[images.Entry]) -> None:
    """Compare kinds, sizes and contents, seen by `person`: a user's mount is closed to everyone else, root too."""
    code = (
        "import hashlib, json, os, stat, sys\n"
        "top, seen = os.fsencode(sys.argv[1]), {}\n"
        "for folder, folders, files in os.walk(top):\n"
        "    for name in folders + files:\n"
        "        path = os.path.join(folder, name)\n"
        "        mode = os.lstat(path).st_mode\n"
        "        content = hashlib.sha256(open(path, 'rb').read()).hexdigest() if stat.S_ISREG(mode) else ''\n"
        "        seen[os.path.relpath(path, top).hex()] = [stat.S_IFMT(mode), content]\n"
        "print(json.dumps(seen))"
    )
    seen = person.python(code, top).ok().json()
    kinds = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "link": stat.S_IFLNK}
    for entry in expected:
        kind, digest = seen[entry.path.hex()]
        if entry.kind in kinds:
            assert kind == kinds[entry.kind], entry.path
        if entry.kind == "file":
            assert digest == entry.sha256, entry.path


def read(person: Person, path: Path | str) -> Done:
    return person.run(path, program=["cat", "--"])


# --- a medium with one file system ----------------------------------------------------------------------------------
def test_a_plain_image(person: Person, folder: Path, image: Image) -> None:
    source, target = image("ext4"), folder / "new"
    with mounted(person, source, target) as record:
        assert record == {
            "source": str(source),
            "target": str(target),
            "format": "raw",
            "sector_size": None,
            "offset": 0,
            "sizelimit": None,
            "asked": {
                "partition": None,
                "fstype": None,
                "owner": "user",
                "links": "nofollow",
                "timezone": "",
                "mount_options": [],
                "write": False,
            },
            "created": [str(target)],
            "supervisor": record["supervisor"],
            "accelerator": record["accelerator"],
            "virtual_machine": record["virtual_machine"],
            "container": None,
            "decrypting": [],
            "writing": [],
            "writing_machines": [],
            "missing": [],
            "mounts": [
                {
                    "target": str(target),
                    "device": record["mounts"][0]["device"],
                    "partition": 0,
                    "name": "0",
                    "fstype": "ext4",
                    "label": "EXT4",
                    "note": "",
                    "resorts": [],
                    "options": [],
                    "direct_reads": True,
                    "landlock": landlock.version(),
                    "session": record["mounts"][0]["session"],
                    "encryption": "",
                    "access": "read-only",
                    "written": False,
                    "unsaved": "",
                    "read_only": "",
                    "changing": False,
                }
            ],
        }
        assert person.run("list", "--json").ok().json() == [record]
        headings, row = (line.split() for line in person.run("list").ok().out.splitlines())
        assert headings == ["SOURCE", "TYPE", "LABEL", "ACCESS", "MOUNTED", "ON"]
        assert row == [str(source), "ext4", "EXT4", "read-only", str(target)]
        check_tree(person, target, images.expected("ext4"))
        assert person.run(target / "README.txt", program=["stat", "-c", "%u"]).ok().out.strip() == str(person.uid)
        writing = person.python("import sys; open(sys.argv[1], 'w')", target / "new")
        assert os.strerror(errno.EROFS) in writing.err
        again = person.run("mount", source, folder / "again").ok()
        assert again.out == f"{source} is already mounted on {target}\n"
        assert person.run("mount", "--json", source).ok().json() == record
        other = person.run("mount", source, folder / "again", "--owner", "image")
        assert other.code == ExitCode.TARGET
        assert "already mounted" in other.err
        assert not (folder / "again").exists()
    assert not target.exists()
    assert person.run("list", "--json").ok().json() == []
    assert person.run("list").ok().err == "nothing is mounted\n"


def test_words_for_people(person: Person, folder: Path, image: Image) -> None:
    target = folder / "m"
    target.mkdir()
    person.give(target)
    done = person.run("mount", image("vfat"), target).ok()
    assert done.out.startswith("mounted vfat")
    assert done.out.endswith(f"on {target} (read-only)\n")
    done = person.run("unmount", target).ok()
    assert (done.out, done.err) == (f"unmounted {image('vfat')}\n", "")
    assert target.is_dir()  # it was there before
    assert person.run("unmount", target).code == 7


def test_unmount_by_source_and_json(person: Person, folder: Path, image: Image) -> None:
    source = image("ext2")
    person.run("mount", source, folder / "m", "--type", "ext4").ok()
    assert person.records_of(source)["mounts"][0]["fstype"] == "ext4"
    assert person.run("unmount", source, "--json").ok().json() == {"unmounted": [str(source)]}


def test_a_wrong_type_is_refused_by_the_guest(person: Person, folder: Path, image: Image) -> None:
    done = person.run("mount", image("ext2"), folder / "m", "--type", "xfs", "--json")
    assert done.code == 3
    assert done.json()["error"]["message"].startswith("cannot mount whole disk: xfs")
    assert not (folder / "m").exists()


def test_the_images_owner(person: Person, folder: Path, image: Image) -> None:
    with mounted(person, image("ext4"), folder / "m", "--owner", "image"):
        # The kernel holds a user to the image's permissions then: root's files that others may read.
        path = folder / "m/README.txt"
        assert person.run(path, program=["stat", "-c", "%u"]).ok().out.strip() == "0"


@pytest.mark.parametrize("links", ["nofollow", "contained", "follow"])
def test_links(person: Person, folder: Path, image: Image, links: str) -> None:
    with mounted(person, image("ext4"), folder / "m", "--links", links) as record:
        inside, outside = folder / "m/link-relative", folder / "m/link-absolute"
        assert record["mounts"][0]["fstype"] == "ext4"
        assert os.strerror(errno.ELOOP) in read(person, inside).err or read(person, inside).code == 0
        followed = read(person, outside)
        assert (followed.code == 0) == (links == "follow")
        if links == "follow":
            assert followed.out == Path("/etc/passwd").read_text()
        if links == "nofollow" and person.is_root:
            assert os.strerror(errno.ELOOP) in read(person, inside).err
        if links == "contained":
            assert read(person, inside).code == 0
        # Root's kernel is told not to follow, so the target can be shown as it is; elsewhere it is defused.
        shown = person.run(outside, program=["readlink"]).ok().out
        as_it_is = links == "follow" or (links == "nofollow" and person.is_root)
        assert (shown == "/etc/passwd\n") == as_it_is


def half_damaged(source: Path) -> Path:
    """Make a disk of two ext4; the second has a label, and zeros where the descriptors of its groups were."""
    sectors, unit = 8192, 512
    table = "".join(f"start={start}, size={sectors}\n" for start in (sectors, 2 * sectors))
    with source.open("wb") as disk:
        disk.truncate(4 * sectors * unit)
        subprocess.run(["/usr/sbin/sfdisk", "--quiet", source], input=f"label: gpt\n{table}".encode(), check=True)
        for number, label in enumerate(["whole", "damaged"], 1):
            part = source.with_name(label)
            with part.open("wb") as file:
                file.truncate(sectors * unit)
            sh("/usr/sbin/mkfs.ext4", "-q", "-b", "1024", "-L", label, part)
            content = bytearray(part.read_bytes())
            if label == "damaged":
                content[2048:4096] = bytes(2048)
            disk.seek(number * sectors * unit)
            disk.write(content)
            part.unlink()
    return source


# --- several file systems -------------------------------------------------------------------------------------------
def test_each_partition_in_its_own_folder(person: Person, folder: Path, image: Image) -> None:
    target = folder / "disk"
    volumes = [v for v in images.volumes("disk-gpt") if v.filesystem != "swap"]
    with mounted(person, image("disk-gpt"), target) as record:
        assert [m["partition"] for m in record["mounts"]] == [v.partition for v in volumes]
        assert [m["fstype"] for m in record["mounts"]] == [v.filesystem for v in volumes]
        for volume, one in zip(volumes, record["mounts"], strict=True):
            assert Path(one["target"]).parent == target
            assert Path(one["target"]).name.startswith(f"p{volume.partition}")
            check_tree(person, Path(one["target"]), volume.entries)
        # One of its mounts names the whole medium as well.
        assert person.run("unmount", record["mounts"][1]["target"], "--json").ok().json() == {
            "unmounted": [record["source"]]
        }
        person.run("mount", image("disk-gpt"), target).ok()
    assert not target.exists()


def test_a_file_system_that_is_asked_for_and_missing(user: Person, folder: Path) -> None:
    source, target = user.give(half_damaged(folder / "two.img")), folder / "m"
    before = Traces.taken(user)
    done = user.run("mount", "--json", source, target)
    assert done.code == ExitCode.PARTIAL, done.err
    record = done.json()
    assert [one["label"] for one in record["mounts"]] == ["whole"]
    [missing] = record["missing"]
    assert (missing["partition"], missing["label"], missing["code"]) == (2, "damaged", ExitCode.SOURCE)
    assert missing["message"].startswith("cannot mount partition 2")
    assert f"warning: {missing['message']}\n" in done.err
    assert [path.name for path in target.iterdir()] == ["p1-whole"]
    assert user.records_of(source)["missing"] == [missing]
    assert missing["message"] in user.run("list").ok().err
    again = user.run("mount", source, target)
    assert (again.code, missing["message"] in again.err) == (ExitCode.PARTIAL, True)  # as it was said before
    whole = user.run("mount", source, "--partition", "1").ok()
    assert (whole.out, whole.err) == (f"{source} is already mounted on {target / 'p1-whole'}\n", "")
    user.run("unmount", source).ok()
    before.assert_same(user)
    assert not target.exists()


def test_one_partition(person: Person, folder: Path, image: Image) -> None:
    volume = next(v for v in images.volumes("disk-mbr") if v.filesystem == "ext2")
    with mounted(person, image("disk-mbr"), folder / "m", "--partition", str(volume.partition)) as record:
        assert [m["target"] for m in record["mounts"]] == [str(folder / "m")]
        check_tree(person, folder / "m", volume.entries)


def test_another_partition_beside_one_that_is_mounted(person: Person, folder: Path, image: Image) -> None:
    source, before = image("disk-mbr"), Traces.taken(person)
    first, second = [v for v in images.volumes("disk-mbr") if v.filesystem in ("ext2", "vfat")][:2]
    records = [
        person.run("mount", "--json", source, folder / f"m{v.partition}", "--partition", str(v.partition)).ok().json()
        for v in (first, second)
    ]
    assert records[0]["supervisor"] != records[1]["supervisor"]
    for volume in (first, second):
        check_tree(person, folder / f"m{volume.partition}", volume.entries)
        again = person.run("mount", source, folder / "x", "--partition", str(volume.partition)).ok()
        assert again.out == f"{source} is already mounted on {folder / f'm{volume.partition}'}\n"
    person.run("unmount", folder / f"m{first.partition}").ok()
    check_tree(person, folder / f"m{second.partition}", second.entries)  # it has a virtual machine of its own
    person.run("mount", source, folder / "again", "--partition", str(first.partition)).ok()
    person.run("unmount", source).ok()  # both
    before.assert_same(person)


@pytest.mark.parametrize("name", ["disk-gpt", "encrypted-luks"])
def test_inspect(person: Person, image: Image, name: str) -> None:
    told = person.run("inspect", image(name), "--json").ok().json()
    assert (told["source"], told["size"]) == (str(image(name)), image(name).stat().st_size)
    expected = {v.partition: v.filesystem for v in images.volumes(name)}
    assert {v["number"]: v["fstype"] for v in told["volumes"] if v["fstype"]} == expected
    fields = {"device", "kind", "number", "start", "size", "fstype", "usage", "label", "uuid", "table", "part_name"}
    fields |= {"name", "layers", "condition", "absent", "nested"}
    for volume in told["volumes"]:
        assert set(volume) >= fields | {"encrypted", "mountable"}
        assert volume["encrypted"] == (volume["fstype"] == "crypto_LUKS")
    shown = person.run("inspect", image(name)).ok().out
    assert all(fstype in shown for fstype in expected.values())


# --- names and places -----------------------------------------------------------------------------------------------
def test_without_a_folder_one_is_made_at_home(person: Person, image: Image, folder: Path) -> None:
    source = person.give(Path(shutil.copy(image("squashfs"), folder / "my stick (old).img")))
    with mounted(person, source) as record:
        assert record["target"] == str(person.home / "mountsafe/my_stick_old")
        other = folder / "x/my stick (old).img"
        other.parent.mkdir()
        shutil.copy(source, other)
        with mounted(person, other) as second:  # two media at once, and the name is taken
            assert second["target"] == str(person.home / "mountsafe/my_stick_old-2")
            assert len(person.run("list", "--json").json()) == 2
    assert list((person.home / "mountsafe").iterdir()) == []


@pytest.mark.parametrize("name", ["two words '\"$x`", "line\nfeed \\040", "--json", "-comma,x=y Grüße 日本 \udcff"])
def test_names(person: Person, folder: Path, image: Image, name: str) -> None:
    source, target = folder / f"{name}.img", folder / name
    person.give(Path(shutil.copy(image("romfs"), source)))
    before = Traces.taken(person)
    # Relative paths: a dash then needs the "--" that every command line has.
    record = person.run("mount", "--json", "--", source.name, target.name, cwd=folder).ok().json()
    assert (record["source"], record["target"]) == (str(source), str(target))
    check_tree(person, target, images.expected("romfs"))
    table = person.run("list").ok().out
    assert "\nfeed" not in table
    assert len(table.splitlines()) == 2
    person.run("unmount", "--", target.name, cwd=folder).ok()
    before.assert_same(person)
    assert not target.exists()


def test_all(person: Person, folder: Path, image: Image) -> None:
    sources = [image("romfs"), image("squashfs"), image("iso9660")]
    for each in [person.start("mount", source, folder / source.stem) for source in sources]:
        with each:
            out, err = each.communicate(timeout=DEADLINE)
            assert each.returncode == 0, out + err
    assert sorted(record["source"] for record in person.run("list", "--json").json()) == sorted(map(str, sources))
    assert sorted(person.run("unmount", "--all", "--json").ok().json()["unmounted"]) == sorted(map(str, sources))
    assert person.run("unmount", "--all", "--json").ok().json() == {"unmounted": []}
    assert list(folder.iterdir()) == []


def test_a_link_to_the_source_is_the_source(person: Person, folder: Path, image: Image) -> None:
    link = folder / "link.img"
    link.symlink_to(image("romfs"))
    with mounted(person, link, folder / "m"):
        assert str(folder / "m") in person.run("mount", image("romfs"), folder / "again").ok().out
        person.run("unmount", image("romfs")).ok()
        person.run("mount", link, folder / "m").ok()


# --- in use, in the foreground --------------------------------------------------------------------------------------
def test_a_mount_in_use_is_busy(person: Person, folder: Path, image: Image) -> None:
    target = folder / "m"
    person.run("mount", image("ext4"), target).ok()
    with person.start(target, program=["sh", "-c", 'cd "$0" && echo here && exec sleep 300']) as sleeping:
        assert sleeping.stdout is not None
        assert sleeping.stdout.readline() == "here\n"
        done = person.run("unmount", target, "--json")
        assert done.code == 8
        assert done.json()["error"]["code"] == 8
        assert "fuser" in done.json()["error"]["hint"]
        check_tree(person, target, images.expected("ext4"))  # and it goes on
        person.run("unmount", target, "--force").ok()
        sleeping.kill()


def test_foreground_until_ctrl_c(person: Person, folder: Path, image: Image) -> None:
    before = Traces.taken(person)
    with person.start("mount", image("ext4"), folder / "m", "--foreground") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("mounted ext4")
        check_tree(person, folder / "m", images.expected("ext4"))
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert not (folder / "m").exists()
    before.assert_same(person)


def test_foreground_ends_with_unmount(person: Person, folder: Path, image: Image) -> None:
    with person.start("mount", image("romfs"), folder / "m", "--foreground") as process:
        assert process.stdout is not None
        process.stdout.readline()
        person.run("unmount", folder / "m").ok()
        assert process.wait(DEADLINE) == 0


def test_unmount_waits_for_the_last_process(user: Person, folder: Path, image: Image, stage: Stage) -> None:
    slow = {
        "    finally:\n        runtime.remove()": "    finally:\n        import time; time.sleep(2); runtime.remove()"
    }
    program = stage.variant("slow-to-end", {"session/supervisor.py": slow})
    before = Traces.taken(user)
    user.run("mount", image("romfs"), folder / "m", program=[str(program)]).ok()
    user.run("unmount", folder / "m").ok()
    before.assert_same(user)


def test_a_user_with_many_processes(user: Person, image: Image) -> None:
    """The boxes' limit of processes is not the user's."""
    busy = [user.start("600", program=["sleep"]) for _ in range(100)]
    try:
        with mounted(user, image("romfs")) as record:
            check_tree(user, Path(record["target"]), images.expected("romfs"))
    finally:
        for process in busy:
            process.kill()
            process.communicate()
