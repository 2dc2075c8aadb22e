"""IMAGE:PATH, and that all verbs have the options of `mount` that say what is read."""

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import mountsafe
from mountsafe.cli import main
from mountsafe.cli.selecting import by_image, split
from mountsafe.errors import ExitCode, UserError
from mountsafe.library.image import stream_options


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("disk.img", "a:b.img", "a:b.img:c", "x", "odd:"):
        Path(name).touch()
    os.symlink("disk.img", "link")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "image", "path"),
    [
        ("disk.img", "disk.img", b"/"),
        ("disk.img:", "disk.img", b"/"),
        ("disk.img:/etc/hostname", "disk.img", b"/etc/hostname"),
        ("disk.img:etc", "disk.img", b"etc"),
        ("disk.img:/a:b:c", "disk.img", b"/a:b:c"),
        ("a:b.img", "a:b.img", b"/"),
        ("a:b.img:/x", "a:b.img", b"/x"),
        ("a:b.img:c", "a:b.img:c", b"/"),  # a file of that name wins
        ("a:b.img:c:d", "a:b.img:c", b"d"),  # and so does the longest
        ("x:y:z", "x", b"y:z"),
        ("odd:", "odd:", b"/"),
        ("odd::/p", "odd:", b"/p"),
        ("link:/p", "link", b"/p"),
        ("none:/etc", "none", b"/etc"),
        ("none", "none", b"/"),
        (":/p", "", b"/p"),
    ],
)
def test_where_an_image_ends_and_a_path_begins(words: str, image: str, path: bytes) -> None:
    assert split(words) == (Path(image), path)


@pytest.mark.usefixtures("here")
def test_paths_of_one_image_are_read_by_one_virtual_machine() -> None:
    found = by_image(["disk.img:a", "x:b", "disk.img:c"])
    assert found == [(Path("disk.img"), [b"a", b"c"]), (Path("x"), [b"b"])]


def options(verb: str) -> dict[str, set[str]]:
    command = get_command(main.commands()).commands[verb]  # type: ignore[attr-defined]
    return {each.name: {*each.opts} for each in command.params if each.opts[0].startswith("-")}


@pytest.mark.parametrize("verb", ["ls", "cat", "tar", "hash", "timeline", "run", "cp"])
def test_a_source_is_selected_as_mount_does(verb: str) -> None:
    mount, own = options("mount"), options(verb)
    shared = {"partition", "fstype", "format_", "sector_size", "offset", "sizelimit", "mount_option", "timezone"}
    shared |= {"key_file", "key_fd", "recovery_key", "header", "pim", "hidden", "big_memory", "verbose"}
    taken = {"-p"} if verb == "cp" else {"-o"} if verb == "tar" else set()
    assert {name: own[name] for name in shared} == {name: mount[name] - taken for name in shared}
    everything = [word for words in own.values() for word in words]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "noext4"}, "noext4 is not a file system type"),
        ({"type": "a,b"}, "not a file system type"),
        ({"partition": -1}, "-1 is no number"),
        ({"partition": ""}, "nothing is no number"),
        ({"sector_size": 1000}, "no disk has sectors of 1000 bytes"),
        ({"offset": -512}, "negative"),
        ({"sizelimit": 0}, "leaves nothing"),
        ({"sizelimit": -512}, "leaves nothing"),
        ({"sizelimit": 1000}, "no multiple of 512"),
        ({"timezone": "Europe/Atlantis"}, "Atlantis"),
        ({"type": "vfat", "mount_options": ["map=off"]}, "takes no mount option map"),
    ],
)
def test_what_mount_would_not_take_the_library_does_not_take(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as failure:
        mountsafe.open("there is no such file", **options)
    assert failure.value.code == ExitCode.USAGE


@pytest.mark.parametrize(("named", "fstype"), [("luks", "crypto_LUKS"), ("veracrypt", "VeraCrypt"), ("vfat", "vfat")])
def test_a_type_is_named_to_the_library_as_to_mount(named: str, fstype: str) -> None:
    assert stream_options(None, named, "", []).fstype == fstype


def test_help_has_examples() -> None:
    for verb in ("ls", "cat", "tar", "hash", "timeline", "run", "cp"):
        command = get_command(main.commands()).commands[verb]  # type: ignore[attr-defined]
        assert "Examples:" in command.epilog
        assert inspect.cleandoc(command.help).count("\n\n") >= 1
