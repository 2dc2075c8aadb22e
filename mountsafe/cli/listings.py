"""`tar`, `hash` and `timeline`: all that is in an image, for other programs, without mounting it."""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

from mountsafe.cli import screen
from mountsafe.cli.looking import put
from mountsafe.cli.options import Json
from mountsafe.cli.selecting import ImagePath, Problems, Selection, found_at, reading, selecting, split
from mountsafe.cli.typers import App, option
from mountsafe.errors import ExitCode, UserError
from mountsafe.library.archive import Archive
from mountsafe.library.whole import Found, Whole
from mountsafe.text import shown_path

NANO = 1_000_000_000


class Algorithm(StrEnum):
    """Sums that sha256sum and its kin make."""

    SHA256 = "sha256"
    SHA512 = "sha512"
    SHA1 = "sha1"
    MD5 = "md5"
    BLAKE2B = "blake2b"


def register(app: App) -> None:
    """Add the verbs."""
    app.command(
        epilog="Examples: [bold]mountsafe tar disk.img:/home | zstd > home.tar.zst[/bold], "
        "[bold]mountsafe tar stick.img -o stick.tar[/bold]"
    )(tar)
    app.command(
        name="hash",
        epilog="Examples: [bold]mountsafe hash stick.img > sums[/bold], "
        "[bold]mountsafe hash disk.img:/etc -a md5[/bold], [bold]mountsafe hash stick.img --json[/bold]",
    )(hash_)
    app.command(
        epilog="Examples: [bold]mountsafe timeline disk.img > bodyfile[/bold], "
        "[bold]mountsafe timeline disk.img | mactime -b -[/bold]"
    )(timeline)


@contextmanager
def _out(path: Path | None) -> Iterator[IO[bytes]]:
    """Give where an archive goes: a new file, which is removed if it comes to nothing, or standard output."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = path.open("xb")
    except OSError as error:
        shown = shown_path(path)
        raise UserError(f"cannot make {shown}: {error.strerror}", "Name a new file.", ExitCode.TARGET) from error
    try:
        with file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@selecting
def tar(
    *,
    source: ImagePath,
    output: Annotated[
        Path | None, option("--output", "-o", metavar="FILE", help="Write to this new file.", show_default=False)
    ] = None,
    selection: Selection,
) -> None:
    """Write what is in an image or a device as a tar archive (pax), without mounting it.

    Owners, modes (but set-user-ID and so on), times, links and hard links are the medium's. Device nodes are left out.
    """
    if output is None and sys.stdout.isatty():
        raise UserError("an archive is not for a terminal", "Write to a pipe or a file: -o FILE.", ExitCode.USAGE)
    image, path = split(source)
    problems = Problems()
    with reading(image, selection, problems) as whole:
        start = found_at(whole, path, follow=False)
        with _out(output) as out:
            archive = Archive(whole, out, problems.failed)
            archive.add(start)
            archive.close()
    problems.end()


@selecting
def hash_(
    *,
    source: ImagePath,
    algorithm: Annotated[Algorithm, option("--algorithm", "-a", help="Which sum.")] = Algorithm.SHA256,
    json: Json = False,
    selection: Selection,
) -> None:
    """Print the sum of each file in an image or a device as sha256sum does, without mounting it.

    Names are from the folder that is named: so `sha256sum -c` checks a copy of it.
    """
    image, path = split(source)
    problems = Problems()
    with reading(image, selection, problems) as whole:
        start = found_at(whole, path, follow=False)
        base = os.path.dirname(start.path) if start.is_file else start.path
        for found in whole.below(start, problems.failed):
            if not found.is_file:
                continue
            try:
                made = _sum(whole, found, algorithm)
            except OSError as error:
                problems.failed(found.path, error)
                continue
            if json:
                told = {"path": os.fsdecode(found.path), "size": found.status.st_size, algorithm.value: made}
                screen.print_event(told)
            else:
                put(sum_line(made, os.path.relpath(b"/" + found.path, b"/" + base)))
    problems.end()


def _sum(whole: Whole, found: Found, algorithm: Algorithm) -> str:
    made = hashlib.new(algorithm.value, usedforsecurity=False)
    with whole.open(found.path) as file:
        for chunk in file.chunks():
            made.update(chunk)
    return made.hexdigest()


def sum_line(made: str, name: bytes) -> bytes:
    """Return a line as coreutils' sums have it: a name with a backslash or an end of line is escaped, and so marked."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + made.encode() + b"  " + escaped


@selecting
def timeline(
    *,
    source: ImagePath,
    selection: Selection,
) -> None:
    """Print the times of all that is in an image or a device as a body file of The Sleuth Kit, without mounting it.

    A line has: 0, name, inode, mode, owner, group, size, times of access, change of content, change of status, and 0.
    """
    image, path = split(source)
    problems = Problems()
    with reading(image, selection, problems) as whole:
        for found in whole.below(found_at(whole, path, follow=False), problems.failed):
            put(body_line(found))
    problems.end()


def body_line(found: Found) -> bytes:
    """Return a line of a body file (version 3); what would be another field or line in a name is %XX."""
    st = found.status
    name = b"/" + found.path.lstrip(b"/") + (b" -> " + found.target if found.is_link else b"")
    shown = b"".join(b"%%%02X" % each if each < 0x20 or each in b"|%\x7f" else bytes([each]) for each in name)
    times = [each // NANO for each in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)]
    numbers = [st.st_ino, stat.filemode(st.st_mode), st.st_uid, st.st_gid, st.st_size, *times, 0]
    return b"|".join([b"0", shown, *(str(each).encode() for each in numbers)])
