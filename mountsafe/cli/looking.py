"""`ls` and `cat`: look into an image without mounting it."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Any

from mountsafe.cli import completion, screen
from mountsafe.cli.options import Json
from mountsafe.cli.selecting import ImagePath, Problems, Selection, by_image, found_at, reading, selecting, split
from mountsafe.cli.typers import App, argument, option
from mountsafe.library.whole import Found, Whole
from mountsafe.text import printable

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
MOST = 1 << 15  # characters of a line that a terminal is shown


def register(app: App) -> None:
    """Add the verbs."""
    app.command(
        epilog="Examples: [bold]mountsafe ls disk.img[/bold], [bold]mountsafe ls -l disk.img:/etc[/bold], "
        "[bold]mountsafe ls -R stick.img --json[/bold]"
    )(ls)
    app.command(
        epilog="Examples: [bold]mountsafe cat disk.img:/etc/hostname[/bold], "
        "[bold]mountsafe cat machine.vmdk:/var/log/syslog -p 2 | less[/bold]"
    )(cat)


@selecting
def ls(
    *,
    source: ImagePath,
    long: Annotated[bool, option("--long", "-l", help="Modes, links, owners, sizes, times and targets too.")] = False,
    recursive: Annotated[bool, option("--recursive", "-R", help="Folders in it as well.")] = False,
    json: Json = False,
    selection: Selection,
) -> None:
    """List what is in an image or a device, without mounting it.

    Nothing is hidden. Of several file systems each is a folder, as `mount` names it; --partition chooses one.
    """
    image, path = split(source)
    problems = Problems()
    with reading(image, selection, problems) as whole:
        start = found_at(whole, path, follow=not long)
        if json:
            for each in _all(whole, start, recursive, problems):
                screen.print_event(facts(each))
        else:
            _list(whole, start, long, recursive, problems)
    problems.end()


def _all(whole: Whole, start: Found, recursive: bool, problems: Problems) -> Iterable[Found]:
    if not start.is_folder:
        return [start]
    if recursive:
        below = whole.below(start, problems.failed)
        next(below)
        return below
    return _children(whole, start, problems)


def _children(whole: Whole, folder: Found, problems: Problems) -> list[Found]:
    try:
        return whole.inside(folder.path)
    except OSError as error:
        problems.failed(folder.path, error)
        return []


def _list(whole: Whole, start: Found, long: bool, recursive: bool, problems: Problems) -> None:
    if not start.is_folder:
        _print([start], long, start.path)
        return
    folders = [start]
    while folders:
        folder = folders.pop()
        if recursive:
            put(folder.path + b":")
        children = _children(whole, folder, problems)
        _print(children, long)
        if recursive:
            folders += [each for each in reversed(children) if each.is_folder]
            if folders:
                put(b"")


def _print(found: list[Found], long: bool, name: bytes = b"") -> None:
    if not long:
        for each in found:
            put(name or os.path.basename(each.path))
        return
    rows = [_row(each) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for each, row in zip(found, rows, strict=True):
        numbers = " ".join(
            cell.rjust(width) if cell.isdigit() else cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        )
        target = b" -> " + each.target if each.is_link else b""
        put(numbers.encode() + b" " + (name or os.path.basename(each.path)) + target)


def _row(found: Found) -> list[str]:
    st = found.status
    when = datetime.fromtimestamp(st.st_mtime_ns // 10**9).isoformat(sep=" ")
    return [stat.filemode(st.st_mode), str(st.st_nlink), str(st.st_uid), str(st.st_gid), str(st.st_size), when]


def facts(found: Found) -> dict[str, Any]:
    """Return what `--json` tells of something; bytes of a name that are no UTF-8 are lone surrogates, as Python's."""
    st = found.status
    return {
        "path": os.fsdecode(found.path),
        "type": KINDS[stat.S_IFMT(st.st_mode)],
        "mode": stat.S_IMODE(st.st_mode),
        "links": st.st_nlink,
        "uid": st.st_uid,
        "gid": st.st_gid,
        "inode": st.st_ino,
        "size": st.st_size,
        "atime_ns": st.st_atime_ns,
        "mtime_ns": st.st_mtime_ns,
        "ctime_ns": st.st_ctime_ns,
        "target": os.fsdecode(found.target),
    }


def put(line: bytes) -> None:
    """Print a line: as it is to a file or a pipe; to a terminal as it may reach one."""
    if sys.stdout.isatty():
        screen.say(printable(line, MOST))
    else:
        sys.stdout.buffer.write(line + b"\n")


@selecting
def cat(
    *,
    sources: Annotated[
        list[str],
        argument(
            metavar="IMAGE:PATH...", help="Files in images.", show_default=False, autocompletion=completion.images
        ),
    ],
    selection: Selection,
) -> None:
    """Print files of an image, without mounting it.

    A file or a pipe gets the bytes. On a terminal control characters are shown as escapes.
    """
    problems = Problems()
    for image, paths in by_image(sources):
        with reading(image, selection, problems) as whole:
            for path in paths:
                try:
                    with whole.open(path) as file:
                        _copy(file.chunks())
                except BrokenPipeError:
                    raise
                except OSError as error:
                    problems.failed(path, error)
    problems.end()


def _copy(chunks: Iterator[bytes | bytearray]) -> None:
    if not sys.stdout.isatty():
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            screen.document("\t".join(printable(part, MOST) for part in line.split(b"\t")))
        while len(rest) > MOST:  # a file without lines
            screen.say(printable(rest[:MOST], MOST))
            rest = rest[MOST:]
    if rest:
        screen.say(printable(rest, MOST))
