"""The images of images/, opened as a user opens them: all that was put on them is there, and nothing else.

Each is looked at twice: with direct reads, and with all bytes coming through the agent.
"""

from pathlib import Path

import pytest

from images import images
from images.images import Entry, Volume
from mountsafe import wire
from mountsafe.errors import UserError
from mountsafe.session.presentation import STATE_WORDS
from tests.vm import types
from tests.vm.corpus import MADE_BY_THE_FILE_SYSTEM
from tests.vm.sight import Look, Looking, Seen, Sight

SET_BITS = 0o7000  # setuid, setgid, sticky: never shown
FILE_SYSTEMS = [
    pytest.param(name, volume.partition, id=f"{name}-{volume.partition}" if volume.partition else name)
    for name in images.names()
    for volume in images.volumes(name)
    if volume.filesystem in types.TYPES and types.TYPES[volume.filesystem].read != types.NOT
]
# (image, partition) -> words of the refusal
REFUSED = {
    ("empty", None): "no file system was found",
    ("garbage", None): "no file system was found",
    ("encrypted-luks", None): "is encrypted (LUKS)",
    ("disk-gpt", 4): "there is no file system on partition 4: swap",
}


def look_at(name: str, partition: int, direct: bool, folder: Path) -> Look:
    return Look(folder / f"{name}.img", None, partition or None, direct, None)


@pytest.fixture(scope="module")
def folder(looking: Looking, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where the unpacked images are. All that the tests of this module ask for is queued."""
    folder = tmp_path_factory.mktemp("images")
    for name in images.names():
        images.unpack(name, folder)
    for item in request.session.items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path == request.path and "direct" in parameters:
            looking.soon(look_at(parameters["name"], parameters["partition"], parameters["direct"], folder))
    return folder


def differences(volume: Volume, sight: Sight) -> list[str]:
    """Return what is not as the manifest says."""
    wanted = {_shown(volume, entry.path): entry for entry in volume.entries}
    found = {path: entry for path, entry in sight.entries.items() if path not in MADE_BY_THE_FILE_SYSTEM}
    wrong = [f"{path!r} is missing" for path in wanted.keys() - found.keys()]
    wrong += [f"{path!r} is too much" for path in found.keys() - wanted.keys()]
    for path in wanted.keys() & found.keys():
        wrong += [f"{path!r}: {what}" for what in _differs(wanted[path], found[path])]
        first = wanted[path].link_of
        if first is not None and not _is_linked(found[path], found.get(first)):
            wrong.append(f"{path!r}: is not a hard link to {first!r}")
    return wrong


def _shown(volume: Volume, path: bytes) -> bytes:
    """A name on hfs is MacRoman, and shown in UTF-8."""
    return path.decode("mac_roman").encode() if volume.filesystem == "hfs" else path


def _differs(want: Entry, have: Seen) -> list[str]:
    if have.fault:
        return [have.fault]
    wrong = [
        f"{what} is {there!r}, not {stated!r}"
        for what, stated, there in (
            ("kind", want.kind, have.kind),
            ("size", want.size, have.size),
            ("sha256", want.sha256, have.sha256),
            ("target", want.target, have.target),
            ("device", 0, have.rdev),
        )
        if stated != there
    ]
    if want.mode is not None and want.kind != "link" and want.mode & ~SET_BITS != have.mode:
        wrong.append(f"mode is {have.mode:o}, not {want.mode & ~SET_BITS:o}")
    shown = {name: value for name, value in have.xattrs.items() if name.startswith("user.")}
    return wrong if shown == want.xattrs else [*wrong, f"extended attributes are {shown}, not {want.xattrs}"]


def _is_linked(one: Seen, other: Seen | None) -> bool:
    return other is not None and one.ino == other.ino and one.nlink == other.nlink == 2


@pytest.mark.parametrize("direct", [pytest.param(True, id="direct"), pytest.param(False, id="agent")])
@pytest.mark.parametrize(("name", "partition"), FILE_SYSTEMS)
def test_it_shows_what_was_put_on_it(name: str, partition: int, direct: bool, looking: Looking, folder: Path) -> None:
    look = look_at(name, partition, direct, folder)
    before = images.manifest()["images"][name]["sha256"]
    (sight,) = looking(look)
    volume = next(volume for volume in images.volumes(name) if volume.partition == partition)
    assert differences(volume, sight) == []
    assert sight.incidents == []
    assert images.sha256(look.image) == before
    known = types.TYPES[volume.filesystem]
    assert sight.direct == (direct and known.read == types.DIRECT)
    if sight.direct:
        assert sight.asked < sight.read or known.why  # `why` tells what is not read directly all the same
    assert sight.note == (STATE_WORDS[wire.MountState.RECOVERED] if volume.only_after_replay else "")


@pytest.mark.parametrize(("name", "partition"), REFUSED)
def test_it_is_refused(name: str, partition: int | None, looking: Looking, folder: Path) -> None:
    with pytest.raises(UserError) as failure:
        looking(Look(folder / f"{name}.img", partition=partition))
    assert REFUSED[name, partition] in failure.value.message


def test_every_volume_is_tried() -> None:
    tried = {parameters.values for parameters in FILE_SYSTEMS}
    for name in images.names():
        for volume in images.volumes(name):
            assert (name, volume.partition) in tried or {(name, None), (name, volume.partition)} & REFUSED.keys()
