"""Files in which no file system was found: what they are packed in, or what else they are, and what to do.

Recognised by bytes at fixed places, as file(1) does, and only after the virtual machine has found nothing: a disk may
begin with any bytes. Nothing that such a file says is followed.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from mountsafe.errors import ExitCode, UserError

Read = Callable[[int, int], bytes]  # offset, length; fewer bytes at the end of the file
FILE, NEW = "{file}", "{new}"  # in the commands: the file, and a name for what comes of it
NOTHING_FOUND = "no file system was found"
_NOT_A_DISK = "It is no disk image: name the image itself."
_QEMU = f"qemu-img convert -O raw {FILE} {NEW} makes a disk of it, on a machine that you can lose."


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A kind of file: its bytes at a place, from its end if that is negative; what it is; what to do."""

    at: int
    magic: bytes
    what: str
    what_to_do: str = _NOT_A_DISK


def _unpacked(command: str) -> str:
    return f"Unpack it first: {command}"


WRAPPERS = (
    Wrapper(0, b"\xfd7zXZ\0", "compressed by xz", _unpacked(f"xz -dk {FILE}")),
    Wrapper(0, b"\x1f\x8b\x08", "compressed by gzip", _unpacked(f"gzip -dk {FILE}")),
    Wrapper(0, b"BZh", "compressed by bzip2", _unpacked(f"bzip2 -dk {FILE}")),
    Wrapper(0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _unpacked(f"zstd -d {FILE}")),
    Wrapper(0, b"\x04\x22\x4d\x18", "compressed by lz4", _unpacked(f"lz4 -dk {FILE}")),
    Wrapper(0, b"LZIP", "compressed by lzip", _unpacked(f"lzip -dk {FILE}")),
    Wrapper(0, b"PK\x03\x04", "a zip archive", _unpacked(f"unzip {FILE}")),
    Wrapper(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _unpacked(f"7z x {FILE}")),
    Wrapper(0, b"Rar!\x1a\x07", "a rar archive", _unpacked(f"7z x {FILE}")),
    Wrapper(257, b"ustar", "a tar archive", _unpacked(f"tar -xf {FILE}")),
    Wrapper(0, b"070701", "a cpio archive", _unpacked(f"7z x {FILE}")),
    Wrapper(0, b"MSWIM\0\0\0", "a Windows image (WIM)", _unpacked(f"7z x {FILE}")),
    Wrapper(0, b"\x3a\xff\x26\xed", "an Android sparse image", f"simg2img {FILE} {NEW} makes a disk of it."),
    Wrapper(0, b"ANDROID!", "an Android boot image"),
    Wrapper(0, b"CrAU", "an update of Android or ChromeOS"),
    Wrapper(-512, b"koly", "a macOS disk image (dmg)", f"dmg2img {FILE} {NEW} makes a disk of it."),
    Wrapper(0, b"encrcdsa", "an encrypted macOS disk image (dmg)", "mountsafe cannot unlock encrypted media yet."),
    Wrapper(-12, b"NER5", "a Nero disc image (NRG)", f"nrg2iso {FILE} {NEW} makes an ISO image of it."),
    Wrapper(-8, b"NERO", "a Nero disc image (NRG)", f"nrg2iso {FILE} {NEW} makes an ISO image of it."),
    Wrapper(
        0,
        b"\0" + b"\xff" * 10 + b"\0",
        "a raw disc image (bin/cue), with sectors of 2352 bytes",
        f"bchunk {FILE} CUE-FILE {NEW} makes an ISO image of it.",
    ),
    Wrapper(0, b'FILE "', "a cue sheet: it describes a disc image in another file", "Name the .bin file beside it."),
    Wrapper(0, b"CISO", "a compressed disc image (CISO)", f"ciso 0 {FILE} {NEW} makes an ISO image of it."),
    Wrapper(0, b"QED\0", "a QEMU image of the format qed", _QEMU),
    Wrapper(0, b"WithoutFreeSpace", "a disk of Parallels", _QEMU),
    Wrapper(0, b"WithouFreSpacExt", "a disk of Parallels", _QEMU),
    Wrapper(0, b"Bochs Virtual HD Image", "a disk of Bochs", _QEMU),
    Wrapper(0, b"EVF\t\r\n\xff\0", "an EnCase image (EWF)", f"ewfexport -t {NEW} -f raw {FILE} makes a disk of it."),
    Wrapper(
        0, b"#!/bin/sh\n#V2.0 Format", "a compressed loop image (cloop)", "extract_compressed_fs makes a disk of it."
    ),
    Wrapper(0, b"UBI#", "an UBI image of flash memory", "Linux reads it from flash memory alone."),
    Wrapper(8, b"AI\x02", "an AppImage: a program with a squashfs inside", _unpacked(f"7z x {FILE}")),
    Wrapper(0, b"\x7fELF", "a program"),
    Wrapper(0, b"MZ", "a program for Windows or DOS"),
    Wrapper(0, b"%PDF-", "a PDF document"),
    Wrapper(0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    Wrapper(0, b"\xff\xd8\xff", "a JPEG picture"),
    Wrapper(0, b"GIF8", "a GIF picture"),
    Wrapper(4, b"ftyp", "a film or sound (MP4)"),
    Wrapper(0, b"\x1a\x45\xdf\xa3", "a film (Matroska, WebM)"),
    Wrapper(0, b"RIFF", "a film, sound or picture (RIFF)"),
    Wrapper(0, b"SQLite format 3\0", "a database (SQLite)"),
    Wrapper(0, b"!<arch>\n", "an archive or a Debian package"),
    Wrapper(0, b"\xed\xab\xee\xdb", "an RPM package"),
    Wrapper(0, b"-----BEGIN ", "a key, certificate or encrypted text"),
    Wrapper(0, b"<!DOCTYPE", "a web page: perhaps the download failed"),
    Wrapper(0, b"<!doctype", "a web page: perhaps the download failed"),
    Wrapper(0, b"<html", "a web page: perhaps the download failed"),
    Wrapper(0, b"#!", "a script"),
)


def found(read: Read, size: int) -> Wrapper | None:
    """Return what a file of `size` bytes is; None if nobody knows."""
    for each in WRAPPERS:
        place = each.at if each.at >= 0 else size + each.at
        if place >= 0 and read(place, len(each.magic)) == each.magic:
            return each
    return None


def explained(error: UserError, name: str, path: str, read: Read, size: int) -> UserError:
    """Return what a user is told in place of an error: what the file is, if nothing was found in it that is a disk.

    `name` is the file's and `path` where it is for the commands, both fit to be shown.
    """
    if not error.message.startswith(NOTHING_FOUND) or (wrapper := found(read, size)) is None:
        return error
    hint = wrapper.what_to_do.format(file=shlex.quote(path), new="NEW")
    return UserError(f"{NOTHING_FOUND} on {name}: it is {wrapper.what}", hint, ExitCode.SOURCE)
