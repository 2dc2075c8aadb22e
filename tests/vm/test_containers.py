"""The images of images/ in each container format, made by QEMU's own tool: what is shown is what was put on them.

Each is looked at with direct reads, which go to the container process by NBD, and with all bytes through the agent.
Others' containers come from the corpus.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode, UserError
from tests.conftest import missing
from tests.vm import corpus, qemu_img
from tests.vm.qemu_img import WAYS
from tests.vm.sight import Look, Looking
from tests.vm.test_images import differences

DISKS = ["ext4", "ntfs", "disk-mbr"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Callable[[str, str], Path]:
    """A function that returns an image of images/ in a format."""
    folder = tmp_path_factory.mktemp("containers")
    program("qemu-img")

    def convert(name: str, way: str) -> Path:
        target = folder / f"{name}.{way}"
        if not target.exists():
            source = folder / f"{name}.img"
            source = source if source.exists() else images.unpack(name, folder)
            qemu_img.convert(source, way, target)
        return target

    return convert


@pytest.mark.parametrize(
    ("way", "direct"), [*((way, True) for way in WAYS), ("qcow2", False), ("vhdx", False)], ids=lambda value: str(value)
)
def test_it_shows_what_was_put_on_it(
    looking: Looking, made: Callable[[str, str], Path], way: str, direct: bool
) -> None:
    (sight,) = looking(Look(made("ext4", way), direct=direct))
    [volume] = images.volumes("ext4")
    assert differences(volume, sight) == []
    assert sight.incidents == []
    assert sight.direct == direct
    assert not direct or sight.asked < sight.read


@pytest.mark.parametrize("name", DISKS[1:])
@pytest.mark.parametrize("way", ["qcow2", "vhdx"])
def test_other_disks_in_it(looking: Looking, made: Callable[[str, str], Path], name: str, way: str) -> None:
    sights = looking(Look(made(name, way)))
    volumes = [volume for volume in images.volumes(name) if volume.entries]
    assert len(sights) == len(volumes)
    for volume, sight in zip(volumes, sights, strict=True):
        assert differences(volume, sight) == []
        assert sight.incidents == []


# --- other projects' ------------------------------------------------------------------------------------------------
REFUSED = {
    "os-test-images/qcow-with-backing.qcow2": "names that disk's file",
    "os-test-images/vmdk-sparse-with-url-backing.vmdk": "its data is in other files",
    "os-test-images/iso-with-qcow2-in-system.iso": "and like an ISO 9660 image at once",
    "cdi-invalid-qcow/invalid-qcow-backing-file.img": "cannot be opened",
    "cdi-invalid-qcow/invalid-qcow-large-memory.img": "cannot be opened",
    "cdi-invalid-qcow/invalid-qcow-large-size.img": "cannot be opened",
    "dfvfs/fat-differential.vhd": "names that disk's file",
    "dfvfs/image-differential.vhd": "names that disk's file",
    "sleuthkit/image.qcow": "cannot be opened",
    "dfvfs/image.vhd": "Incorrect header checksum",
    # Sound, and blank.
    "os-test-images/standard-qcow2v3.qcow2": "no file system was found",
    "os-test-images/vmdk-monolithicSparse.vmdk": "no file system was found",
    "os-test-images/vmdk-sparse-with-footer.vmdk": "no file system was found",
}
OPENED = {"dfvfs/windows_volume.qcow2": "ntfs", "sleuthkit/image.vhd": "ext2"}


def unpacked(name: str, folder: Path) -> Path:
    if not corpus.images():
        missing(f"the corpus (expected at {corpus.folder()}, or where MOUNTSAFE_CORPUS says)")
    path = folder / "image"
    corpus.unpack(corpus.images()[name], path)
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_what_names_files_or_is_damaged_is_refused(looking: Looking, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as failure:
        looking(Look(unpacked(name, tmp_path)))
    assert REFUSED[name] in failure.value.message
    assert failure.value.code == ExitCode.SOURCE


@pytest.mark.parametrize("name", OPENED)
def test_what_others_have_made_is_opened(looking: Looking, tmp_path: Path, name: str) -> None:
    (sight,) = looking(Look(unpacked(name, tmp_path)))
    assert sight.volume.fstype == OPENED[name]
    assert sight.entries
    assert sight.incidents == []
    assert not any(entry.fault for entry in sight.entries.values())
