"""The images: how each is made, once, and kept in the work folder under a hash of its recipe.

ext4, xfs and btrfs are filled by this machine's kernel if it has the type, ntfs by ntfs-3g; what no tool can fill is
filled in a libguestfs appliance. They are our own images: nothing here is hostile.
"""

import hashlib
import importlib.util
import math
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from content import MIB, Content, write_archive
from measure import TIMEOUT, BenchError, run
from mounters import LoopMount, NtfsMount, kernel_has

VERSION = 1  # to be counted up when the same recipe makes something else
HFSPLUS = Path(__file__).resolve().parent.parent / "images" / "hfsplus.py"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """An image. `mkfs`: a command, "{}" standing for the file. `pack`: one that makes the image of a folder or of an
    archive at its standard input, "FOLDER" standing for the folder; then there is no mkfs.
    """

    name: str
    filesystem: str
    content: Content
    mkfs: str = ""
    pack: str = ""
    mount_options: str = ""
    spare: int = 300  # MiB beside the content, for the file system's own

    @property
    def size(self) -> int:
        """Bytes; a multiple of 64 MiB."""
        return math.ceil((self.content.bytes / MIB + self.spare) / 64) * 64 * MIB

    @property
    def empty(self) -> bool:
        """Whether nothing is on it: it is there to be written to."""
        return self.content == Content()

    def place(self, folder: Path) -> Path:
        """Where the image is kept."""
        digest = hashlib.sha256(repr((VERSION, sorted(asdict(self).items()))).encode()).hexdigest()
        return folder / f"{self.name}-{digest[:12]}.img"


def recipes(quick: bool) -> dict[str, Recipe]:
    """Return the images by name; `quick` makes them small."""
    tree = Content(tree_files=300, tree_folders=10) if quick else Content(tree_files=3000, tree_folders=50)
    plain = replace(tree, big=64 if quick else 1024)
    packed = replace(tree, big=32 if quick else 256, compressible=True)
    many = (
        Content(flat=2000, deep=3000, deep_folders=60)
        if quick
        else Content(flat=50_000, deep=100_000, deep_folders=1000)
    )
    room = 128 if quick else 640
    ext4 = "mke2fs -q -F -t ext4 -m 0 -N {inodes} {{}}"
    made = [
        Recipe("ext4", "ext4", plain, ext4.format(inodes=8192)),
        Recipe("xfs", "xfs", plain, "mkfs.xfs -q -f {}"),
        Recipe("vfat", "vfat", plain, "mkfs.vfat -F 32 {}"),
        Recipe("exfat", "exfat", plain, "mkfs.exfat {}"),
        Recipe("ntfs", "ntfs", plain, "mkntfs -q -F -Q -T -p 0 -H 0 -S 0 -s 512 {}"),
        Recipe("hfsplus", "hfsplus", plain, "HFSPLUS {}"),
        Recipe("iso9660", "iso9660", plain, pack="xorriso -as mkisofs -quiet -iso-level 3 -R -J -o {} FOLDER"),
        Recipe("squashfs", "squashfs", packed, pack="mksquashfs - {} -tar -quiet -no-progress -noappend -comp gzip"),
        Recipe("btrfs", "btrfs", packed, "mkfs.btrfs -q -f {}", mount_options="compress-force=zstd"),
        Recipe("ext4-empty", "ext4", Content(), ext4.format(inodes=8192), spare=room),
        Recipe("vfat-empty", "vfat", Content(), "mkfs.vfat -F 32 {}", spare=room),
        Recipe("exfat-empty", "exfat", Content(), "mkfs.exfat {}", spare=room),
        Recipe("ext4-many", "ext4", many, ext4.format(inodes=200_000)),
        Recipe("xfs-many", "xfs", many, "mkfs.xfs -q -f {}"),
    ]
    return {recipe.name: recipe for recipe in made}


class Kitchen:
    """Makes the images that are missing. `environment`: of libguestfs."""

    def __init__(self, folder: Path, environment: dict[str, str], say: Say) -> None:
        self._folder = folder
        self._environment = environment
        self._say = say
        folder.mkdir(parents=True, exist_ok=True)

    def make(self, wanted: list[Recipe]) -> dict[str, Path]:
        """Return where the images are, made if need be."""
        missing = [recipe for recipe in wanted if not recipe.place(self._folder).exists()]
        with tempfile.TemporaryDirectory(prefix="making-", dir=self._folder) as name:
            scratch = Path(name)
            for recipe in missing:
                if recipe.empty:
                    _format(recipe, scratch / recipe.name)
                    (scratch / recipe.name).rename(recipe.place(self._folder))
            for content in dict.fromkeys(recipe.content for recipe in missing if not recipe.empty):
                self._make_of(content, [recipe for recipe in missing if recipe.content == content], scratch)
        return {recipe.name: recipe.place(self._folder) for recipe in wanted}

    def _make_of(self, content: Content, of_it: list[Recipe], scratch: Path) -> None:
        self._say(f"content of {', '.join(recipe.name for recipe in of_it)}")
        archive = scratch / "content.tar"
        write_archive(content, archive)
        in_guest = []
        for recipe in of_it:
            image = scratch / recipe.name
            if recipe.pack:
                self._say(f"image {recipe.name}")
                _pack(recipe, archive, image)
                image.rename(recipe.place(self._folder))
                continue
            _format(recipe, image)
            if recipe.filesystem == "ntfs" or kernel_has(recipe.filesystem):
                self._say(f"image {recipe.name}, on this machine")
                _fill_here(recipe, archive, image)
                image.rename(recipe.place(self._folder))
            else:
                in_guest.append(recipe)
        if in_guest:
            self._say(f"images {', '.join(recipe.name for recipe in in_guest)}, in a virtual machine")
            self._fill_in_guest(in_guest, archive, scratch)
        archive.unlink()

    def _fill_in_guest(self, of_it: list[Recipe], archive: Path, scratch: Path) -> None:
        import guestfs  # native code that is not needed when every image is there

        os.environ.update(self._environment)
        with closing(guestfs.GuestFS(python_return_dict=True)) as guest:
            guest.set_backend("direct")
            guest.add_drive_opts(str(archive), format="raw", readonly=True, label="content")
            for number, recipe in enumerate(of_it):
                drive = str(scratch / recipe.name)
                guest.add_drive_opts(drive, format="raw", label=f"drive{'abcdefgh'[number]}", cachemode="unsafe")
            guest.launch()
            for number, recipe in enumerate(of_it):
                device = f"/dev/disk/guestfs/drive{'abcdefgh'[number]}"
                guest.mount_vfs(recipe.mount_options, recipe.filesystem, device, "/")
                guest.debug(
                    "sh", ["tar -C /sysroot --no-same-owner --no-same-permissions -xf /dev/disk/guestfs/content"]
                )
                guest.umount_all()
                self._say(f"image {recipe.name}")
            guest.shutdown()
        for recipe in of_it:
            (scratch / recipe.name).rename(recipe.place(self._folder))


def _format(recipe: Recipe, image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(recipe.size)
    if recipe.mkfs.startswith("HFSPLUS"):
        make_hfsplus(image, recipe.size)
    else:
        run(*(word.format(image) for word in recipe.mkfs.split()))


def _fill_here(recipe: Recipe, archive: Path, image: Path) -> None:
    folder = image.with_suffix(".mnt")
    folder.mkdir()
    options = f"rw,{recipe.mount_options}".rstrip(",")
    ntfs = recipe.filesystem == "ntfs"
    mounted = NtfsMount(image, folder) if ntfs else LoopMount(image, recipe.filesystem, folder, options)
    try:
        run("tar", "-C", folder, "-xf", archive)
    finally:
        mounted.unmount()
    folder.rmdir()


def _pack(recipe: Recipe, archive: Path, image: Path) -> None:
    folder = image.with_suffix(".tree")
    if "FOLDER" in recipe.pack:
        folder.mkdir()
        run("tar", "-C", folder, "-xf", archive)
    command = [str(folder) if word == "FOLDER" else word.format(image) for word in recipe.pack.split()]
    with archive.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    shutil.rmtree(folder, ignore_errors=True)


# --- HFS+ -----------------------------------------------------------------------------------------------------------
def make_hfsplus(image: Path, size: int) -> None:
    """Make an empty HFS+ volume of any size: a small one of images/hfsplus.py, grown.

    Format: Apple Technical Note TN1150. The allocation file moves behind the other files of the volume, and has a bit
    for every block; its old block stays taken.
    """
    spec = importlib.util.spec_from_file_location("hfsplus", HFSPLUS)
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    block: int = maker.BLOCK
    volume = bytearray(maker.volume(8 * MIB, "BENCH", b"mountsaf", 1_700_000_000))
    blocks = size // block
    free_before, taken = struct.unpack_from(">II", volume, 1024 + 48)
    bitmap_blocks = math.ceil(blocks / 8 / block)
    bitmap = bytearray(bitmap_blocks * block)
    for number in (*range(taken + bitmap_blocks), blocks - 1):
        bitmap[number // 8] |= 0x80 >> number % 8
    assert free_before == len(volume) // block - taken - 1
    struct.pack_into(">III", volume, 1024 + 44, blocks, blocks - taken - bitmap_blocks - 1, taken + bitmap_blocks)
    struct.pack_into(">QIIII", volume, 1024 + 112, len(bitmap), len(bitmap), bitmap_blocks, taken, bitmap_blocks)
    header = volume[1024:1536]
    with image.open("r+b") as file:
        file.write(volume[: taken * block])
        file.write(bitmap)
        file.seek(size - 1024)
        file.write(header)
