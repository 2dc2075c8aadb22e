"""Files that are no disks, told by their bytes."""

import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.wrappers import WRAPPERS, explained, found

NOTHING = UserError("no file system was found on it", "If you know its type, name it with --type.", ExitCode.SOURCE)


def told(data: bytes, error: UserError = NOTHING, name: str = "a file.img", path: str = "a file.img") -> UserError:
    return explained(error, name, path, lambda offset, length: data[offset : offset + length], len(data))


def packed(kind: str) -> bytes:
    made = io.BytesIO()
    match kind:
        case "xz":
            return lzma.compress(b"disk")
        case "gzip":
            return gzip.compress(b"disk")
        case "zip":
            with zipfile.ZipFile(made, "w") as archive:
                archive.writestr("disk.img", b"disk")
        case "tar":
            with tarfile.open(fileobj=made, mode="w") as tar:
                tar.addfile(tarfile.TarInfo("disk.img"))
    return made.getvalue()


@pytest.mark.parametrize("kind", ["xz", "gzip", "zip", "tar"])
def test_what_python_packs_is_named_with_what_unpacks_it(kind: str) -> None:
    error = told(packed(kind))
    assert kind in error.message
    assert error.message.startswith("no file system was found on a file.img: it is ")
    assert error.hint.startswith("Unpack it first: ")
    assert "'a file.img'" in error.hint
    assert error.code == ExitCode.SOURCE


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_each_is_known_by_its_bytes_wherever_they_are(wrapper: object) -> None:
    each = next(one for one in WRAPPERS if one is wrapper)
    data = bytearray(1 << 12)
    at = each.at if each.at >= 0 else len(data) + each.at
    data[at : at + len(each.magic)] = each.magic
    other = found(lambda offset, length: bytes(data[offset : offset + length]), len(data))
    assert other is not None
    assert other.what == each.what


def test_what_is_found_otherwise_keeps_its_words() -> None:
    other = UserError("it is encrypted", "", ExitCode.SOURCE)
    assert told(packed("xz"), other) is other
    assert told(bytes(4096)) is NOTHING
    assert told(b"") is NOTHING


def test_the_command_works_wherever_it_is_given() -> None:
    assert told(packed("xz"), path="/media/a folder/a file.img").hint.endswith("xz -dk '/media/a folder/a file.img'")
