"""Unpack every image, mount it read-only in a guest's kernel, and compare what is there with the manifest:
images/verify [NAME...].

Independent of mountsafe: libguestfs and tar only. Needs python3-guestfs and no root. One boot, about half a
minute.
"""

import argparse
import base64
import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

from images import guest, images
from images.images import Entry, Volume

KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.LNKTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
    tarfile.GNUTYPE_SPARSE: "file",
}
MADE_BY_THE_FILE_SYSTEM = {b"lost+found", b".nilfs"}


def read_back(archive: Path) -> dict[bytes, Entry]:
    """What is in a tar archive of a file system."""
    found: dict[bytes, Entry] = {}
    with tarfile.open(archive, encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            path = os.fsencode(info.name).removeprefix(b"./")
            if path in (b".", b"") or path in MADE_BY_THE_FILE_SYSTEM:
                continue
            target = os.fsencode(info.linkname).removeprefix(b"./")
            if info.islnk():
                first = found[target]
                found[path] = Entry(path, "file", first.size, first.sha256, None, info.mode, target)
                continue
            content = tar.extractfile(info) if info.isreg() else None
            data = content.read() if content else None
            found[path] = Entry(
                path,
                KINDS[info.type],  # type: ignore[arg-type]
                None if data is None else len(data),
                None if data is None else hashlib.sha256(data).hexdigest(),
                target if info.issym() else None,
                info.mode,
                None,
                (info.devmajor, info.devminor) if info.ischr() or info.isblk() else None,
            )
    return found


def differences(volume: Volume, found: dict[bytes, Entry]) -> list[str]:
    """One line for each thing that is not as the manifest says."""
    wanted = {entry.path: entry for entry in volume.entries}
    wrong = [f"missing: {images.printable(path)}" for path in wanted.keys() - found.keys()]
    wrong += [f"not expected: {images.printable(path)}" for path in found.keys() - wanted.keys()]
    for path in wanted.keys() & found.keys():
        want, have = wanted[path], found[path]
        for name in ("kind", "size", "sha256", "target", "rdev"):
            if getattr(want, name) != getattr(have, name):
                wrong.append(f"{images.printable(path)}: {name} is {getattr(have, name)}, not {getattr(want, name)}")
        if want.mode is not None and want.mode != have.mode and want.kind != "link":
            wrong.append(f"{images.printable(path)}: mode is {have.mode}, not {want.mode}")
        if (
            (want.link_of or have.link_of)
            and {want.path, want.link_of} != {have.path, have.link_of}
            and not _is_same_link(want, have, found)
        ):
            wrong.append(f"{images.printable(path)}: is a link of {have.link_of!r}, not {want.link_of!r}")
    return wrong


def _is_same_link(want: Entry, have: Entry, found: dict[bytes, Entry]) -> bool:
    """tar calls whichever name it met second the link."""
    if want.link_of is not None:
        return want.link_of in found and found[want.link_of].link_of == want.path
    return have.link_of is not None and have.link_of != want.path


def check_xattrs(machine: guest.Guest, volume: Volume) -> list[str]:
    """Compare extended attributes, which the archive does not carry."""
    wrong = []
    for entry in volume.entries:
        for name, value in entry.xattrs.items():
            try:
                have = machine.handle.lgetxattr("/" + entry.path.decode(), name)
            except RuntimeError as error:
                wrong.append(f"{images.printable(entry.path)}: {name}: {error}")
                continue
            if bytes(have) != value:
                wrong.append(f"{images.printable(entry.path)}: {name} is {have!r}")
    return wrong


def check_volume(machine: guest.Guest, device: str, volume: Volume, work: Path) -> list[str]:
    """All that is wrong with one volume."""
    archive = work / "read-back.tar"
    wrong: list[str] = []
    if volume.only_after_replay:
        wrong += check_unreplayed(machine, device, volume)
    if volume.inside is not None:
        machine.handle.cryptsetup_open(device, volume.passphrase, "inside", readonly=True)
        wrong += check_volume(machine, "/dev/mapper/inside", volume.inside, work)
        machine.handle.cryptsetup_close("/dev/mapper/inside")
    if volume.entries:
        with machine.mounted(device, volume.filesystem, "ro"):
            machine.handle.tar_out("/", str(archive))
            wrong += differences(volume, read_back(archive)) + check_xattrs(machine, volume)
    return wrong + check_label(machine, device, volume)


def check_unreplayed(machine: guest.Guest, device: str, volume: Volume) -> list[str]:
    """Without its log the image must lack the newest files: otherwise it is not a test of replaying."""
    skip = {"ext4": "ro,noload", "xfs": "ro,norecovery"}[volume.filesystem]
    with machine.mounted(device, volume.filesystem, skip):
        there = {
            path
            for path in volume.only_after_replay | volume.gone_after_replay
            if machine.handle.exists("/" + path.decode())
        }
    return [] if there == volume.gone_after_replay else [f"without the log there is {sorted(there)}"]


def check_label(machine: guest.Guest, device: str, volume: Volume) -> list[str]:
    """Compare the label as blkid reads it: as bytes, because it need not be UTF-8."""
    printed = machine.run(f"blkid -c /dev/null -o value -s LABEL {device} | base64 -w0")
    label = base64.b64decode(printed).removesuffix(b"\n")
    return [] if label == volume.label else [f"label is {label!r}, not {volume.label!r}"]


def main(arguments: list[str]) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="Compare every image with the manifest, in a guest.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    names: list[str] = parser.parse_args(arguments).names or images.names()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        work = Path(folder)
        files = {name: images.unpack(name, work) for name in names}
        machine = guest.Guest(files.values(), is_read_only=True)
        try:
            for name in names:
                for volume in images.volumes(name):
                    device = machine.device(files[name]) + (str(volume.partition) if volume.partition else "")
                    try:
                        wrong = check_volume(machine, device, volume, work)
                    except (RuntimeError, tarfile.TarError) as error:
                        wrong = [str(error)]
                    failures += bool(wrong)
                    verdict = "; ".join(wrong[:12]) or f"{len(volume.entries)} entries as expected"
                    print(f"{name} {volume.partition}: {verdict}", flush=True)
        finally:
            machine.close()
    return 1 if failures else 0
