"""Write into file systems inside a libguestfs appliance, all in one boot: this kernel never mounts an image.

Needs python3-guestfs and, here as everywhere in images/, no root. Software emulation is enough (about 10 s to boot).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from images import tree
from images.recipes import Plan
from images.tree import Item


class Guest:
    """A running appliance with some drives. `device` gives what a drive is called in there."""

    def __init__(self, drives: Iterable[Path], *, is_read_only: bool) -> None:
        import guestfs  # here, so that `make` can say which package is missing

        os.environ.setdefault("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")
        self.handle = guestfs.GuestFS(python_return_dict=True)
        self.handle.set_backend("direct")
        self._labels: dict[Path, str] = {}
        for number, path in enumerate(drives):
            label = "drive" + chr(ord("a") + number // 26) + chr(ord("a") + number % 26)
            self.handle.add_drive_opts(
                str(path),
                format="raw",
                readonly=is_read_only,
                label=label,
                cachemode=None if is_read_only else "unsafe",
            )
            self._labels[path] = label
        self.handle.launch()

    def device(self, drive: Path) -> str:
        return f"/dev/disk/guestfs/{self._labels[drive]}"

    def run(self, command: str) -> str:
        """A shell command in the appliance, where the file system is at /sysroot."""
        return str(self.handle.debug("sh", [command]))

    def set_clock(self) -> None:
        self.run(f"date -s @{tree.EPOCH}")

    @contextmanager
    def mounted(self, device: str, filesystem: str, options: str) -> Iterator[None]:
        self.set_clock()
        self.handle.mount_vfs(options, filesystem, device, "/")
        try:
            yield
        finally:
            self.handle.umount_all()

    def put(self, items: list[Item]) -> None:
        """Write items into the mounted file system.

        Their folders' times end up right, except where something was added after the archive.
        """
        with tempfile.NamedTemporaryFile() as file:
            file.write(tree.archive(item for item in items if not item.is_sparse))
            file.flush()
            self.handle.tar_in(file.name, "/")
        for item in items:
            path = "/" + item.path.decode("utf-8", "surrogateescape")
            if item.is_sparse:
                self._put_sparse(path, item)
            for name, value in item.xattrs.items():
                self.handle.lsetxattr(name, value.decode(), len(value), path)
        self.handle.utimens("/", tree.EPOCH, 0, tree.EPOCH, 0)

    def _put_sparse(self, path: str, item: Item) -> None:
        data = item.data or b""
        self.handle.touch(path)
        self.handle.chmod(item.mode, path)
        self.handle.truncate_size(path, len(data))
        self.handle.pwrite(path, data[: tree.SPARSE_PIECE], 0)
        self.handle.pwrite(path, data[-tree.SPARSE_PIECE :], len(data) - tree.SPARSE_PIECE)
        self.handle.utimens(path, tree.EPOCH, 0, tree.EPOCH, 0)

    def close(self) -> None:
        """Unmount, flush, end the appliance."""
        self.handle.shutdown()
        self.handle.close()


def populate(plans: dict[Path, Plan]) -> None:
    """Write each plan's items into the file system that is already made in its file."""
    guest = Guest(plans, is_read_only=False)
    try:
        for path, plan in plans.items():
            print(f"  {plan.name}: writing in the guest", flush=True)
            if plan.passphrase is not None:
                _populate_encrypted(guest, path, plan)
            elif plan.is_dirty:
                _populate_and_pull_out(guest, path, plan)
            else:
                with guest.mounted(guest.device(path), plan.filesystem, plan.mount_options):
                    guest.put(tree.as_kept(plan.items, plan.keeps))
    finally:
        guest.close()
    for path, plan in plans.items():
        if plan.is_dirty:
            _pulled_out(path).replace(path)


def _populate_encrypted(guest: Guest, path: Path, plan: Plan) -> None:
    guest.handle.cryptsetup_open(guest.device(path), plan.passphrase, "inside")
    guest.run("mkfs.vfat --invariant -i 696e7369 -F 12 -n INSIDE /dev/mapper/inside")
    with guest.mounted("/dev/mapper/inside", "vfat", plan.mount_options):
        guest.put(tree.as_kept(plan.items, plan.keeps))
    guest.handle.cryptsetup_close("/dev/mapper/inside")


def _populate_and_pull_out(guest: Guest, path: Path, plan: Plan) -> None:
    """Copy the drive's file while it is mounted, when the newest changes are in the log only.

    fsync puts the log on the drive and leaves the metadata in memory, and with periodic write-back off it stays
    there. The copy is made outside, from what QEMU has written: reading the device in the guest would show the
    guest's memory instead.
    """
    late = plan.late_items
    with guest.mounted(guest.device(path), plan.filesystem, plan.mount_options):
        guest.put([*plan.items, *plan.lost_items])
    guest.run("sysctl -w vm.dirty_writeback_centisecs=0")
    with guest.mounted(guest.device(path), plan.filesystem, plan.mount_options):
        guest.put(late)
        for item in plan.lost_items:
            guest.handle.rm("/" + item.path.decode())
        guest.run("cd /sysroot && sync " + " ".join(item.path.decode() for item in late) + " .")
        subprocess.run(["cp", "--sparse=always", path, _pulled_out(path)], check=True)
    guest.run("sysctl -w vm.dirty_writeback_centisecs=500")


def _pulled_out(path: Path) -> Path:
    return path.with_suffix(".pulled")


def stage(items: list[Item], folder: Path) -> None:
    """Write items below `folder` on this machine, for the tools that read a folder.

    Device nodes would need root: they must not be among them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    for item in items:
        _stage_one(item, os.fsencode(folder))
    for base, folders, files in os.walk(os.fsencode(folder), topdown=False):
        for inside in [*folders, *files, b"."]:
            os.utime(os.path.join(base, inside), (tree.EPOCH, tree.EPOCH), follow_symlinks=False)


def _stage_one(item: Item, folder: bytes) -> None:
    path = os.path.join(folder, item.path)
    match item.kind:
        case "folder":
            os.mkdir(path)
        case "link":
            os.symlink(item.target or b"", path)
        case "fifo":
            os.mkfifo(path)
        case "file" if item.link_of is not None:
            os.link(os.path.join(folder, item.link_of), path)
        case "file":
            with open(path, "wb") as file:
                file.write(item.data or b"")
        case other:
            raise ValueError(f"cannot stage a {other}")
    if item.kind != "link" and item.link_of is None:
        os.chmod(path, item.mode)
    for name, value in item.xattrs.items():
        os.setxattr(path, name, value)
