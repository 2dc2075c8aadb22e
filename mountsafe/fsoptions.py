"""The mount options that a person or a policy may give, by driver: an allow-list, for the host and for the agent.

Pure, and of the standard library only what Debian's python3-minimal has: this file is copied into the appliance. No
option makes a mount writable, names a device or a file outside of the file system, or changes the owner of the files:
an option that is not in the table is refused. What each one does is described in Linux's Documentation/filesystems, and
in ntfs-3g(8).
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MOST = 16  # options of one mount
LENGTH = 255  # bytes of one


class Value(NamedTuple):
    """What an option's value must match as a whole, and what a person is told it may be. `flag`: there is none."""

    pattern: str
    words: str

    @property
    def flag(self) -> bool:
        """Whether the option stands alone."""
        return not self.pattern


def _one_of(*words: str) -> Value:
    return Value("|".join(map(re.escape, words)), f"one of {', '.join(words)}")


_FLAG = Value("", "")
_NUMBER = Value(r"(?!0[0-9])[0-9]{1,9}", "a number of at most nine digits")
_CHARSET = Value(r"[a-z0-9][a-z0-9-]{1,30}", "a character set such as utf8, cp437, iso8859-1 or koi8-r")
_CODEPAGE = Value(r"[0-9]{3,5}", "the number of a code page, 437 or 850 for example")
_SWITCH = Value(r"0|1|no|yes|false|true", "0 or 1")
_SUBVOLUME = Value(
    r"""(?!(?:.*/)?\.\.(?:/|$))[^,"'\\\x00-\x20\x7f](?:[^,"'\\\x00-\x1f\x7f]*[^,"'\\\x00-\x20\x7f])?""",
    "the path of a subvolume, without commas, quotes and backslashes",
)
_EXT = {"sb": _NUMBER, "noload": _FLAG}
_FAT = {"codepage": _CODEPAGE, "iocharset": _CHARSET}
_HFS_PART = {"part": _NUMBER}
# Driver -> option -> its value. A type that has a driver of another name is in DRIVERS.
OPTIONS: dict[str, dict[str, Value]] = {
    "affs": {"bs": _one_of("512", "1024", "2048", "4096"), "mufs": _FLAG, "reserved": _NUMBER, "root": _NUMBER},
    "befs": {"iocharset": _CHARSET},
    "btrfs": {"subvol": _SUBVOLUME, "subvolid": _NUMBER},
    "exfat": {"iocharset": _CHARSET},
    "ext2": {"sb": _NUMBER},
    "ext3": _EXT,
    "ext4": _EXT,
    "f2fs": {"norecovery": _FLAG},
    "hfs": {"codepage": _CHARSET, "iocharset": _CHARSET, **_HFS_PART},
    "hfsplus": {"decompose": _FLAG, "nls": _CHARSET, "nodecompose": _FLAG, **_HFS_PART},
    "iso9660": {
        "block": _one_of("512", "1024", "2048"),
        "check": _one_of("relaxed", "strict"),
        "cruft": _FLAG,
        "hide": _FLAG,
        "iocharset": _CHARSET,
        "map": _one_of("off", "normal", "acorn"),
        "nocompress": _FLAG,
        "nojoliet": _FLAG,
        "norock": _FLAG,
        "sbsector": _NUMBER,
        "showassoc": _FLAG,
        "unhide": _FLAG,
    },
    "jfs": {"iocharset": _CHARSET},
    "msdos": {"check": _one_of("relaxed", "normal", "strict"), "codepage": _CODEPAGE},
    "nilfs2": {"cp": _NUMBER, "norecovery": _FLAG},
    "ntfs-3g": {
        "efs_raw": _FLAG,
        "hide_dot_files": _FLAG,
        "hide_hid_files": _FLAG,
        "show_sys_files": _FLAG,
        "streams_interface": _one_of("none", "xattr", "windows"),
    },
    "udf": {
        "anchor": _NUMBER,
        "bs": _one_of("512", "1024", "2048", "4096"),
        "iocharset": _CHARSET,
        "lastblock": _NUMBER,
        "novrs": _FLAG,
        "session": _NUMBER,
        "undelete": _FLAG,
        "unhide": _FLAG,
    },
    "ufs": {
        "ufstype": _one_of(
            *("old", "44bsd", "ufs2", "5xbsd", "sun", "sunx86", "hp", "nextstep", "nextstep-cd", "openstep")
        )
    },
    "vfat": {
        **_FAT,
        "dos1xfloppy": _FLAG,
        "shortname": _one_of("lower", "win95", "winnt", "mixed"),
        "uni_xlate": _FLAG,
        "utf8": _SWITCH,
    },
    "xfs": {"norecovery": _FLAG},
}
DRIVERS = {"ext4dev": "ext4", "hfsx": "hfsplus", "ntfs": "ntfs-3g", "ntfs3": "ntfs-3g"}
# What goes along with one that is given, unless its own name is given as well: vfat asks for no other character set
# while it is told to use UTF-8, and Debian's kernel tells it so if nothing is said.
_ALONG = {("vfat", "iocharset"): "utf8=0"}
# Options by which a journal's changes are left out.
WITHOUT_REPLAY = frozenset({"noload", "norecovery"})


class NotTaken(ValueError):
    """An option that nobody may give: a sentence, and what there is instead. Both may hold what was given."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def of_type(fstype: str) -> dict[str, Value]:
    """Return the options of a type, as blkid(8) or mount(8) call it."""
    return OPTIONS.get(DRIVERS.get(fstype, fstype), {})


def fault(option: str, fstype: str) -> str:
    """Return why a type does not take an option; "" if it does."""
    name, equals, value = option.partition("=")
    known = of_type(fstype).get(name)
    if known is None:
        return f"{fstype} takes no mount option {name}"
    if known.flag:
        return f"{name} has no value" if equals else ""
    if len(option.encode("utf-8", "surrogateescape")) > LENGTH or not re.fullmatch(known.pattern, value):
        return f"{name} is {known.words}"
    return ""


def taken(options: Iterable[str], fstype: str) -> tuple[str, ...]:
    """Return those of the options that a type takes."""
    return tuple(option for option in options if not fault(option, fstype))


def there_is(fstype: str) -> str:
    """Return the options of a type, for a person."""
    known = of_type(fstype)
    words = ", ".join(name if value.flag else f"{name}=" for name, value in sorted(known.items()))
    return f"{fstype} takes {words}." if words else f"There are none for {fstype}."


def check(options: Sequence[str], fstypes: Sequence[str] = ()) -> None:
    """Raise NotTaken unless each option is taken by one of the types, or by any type if none is named."""
    names = [option.partition("=")[0] for option in options]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise NotTaken(f"the mount option {twice} is given twice", "Give each once.")
    if len(options) > MOST:
        raise NotTaken(f"{len(options)} mount options", f"{MOST} are the most.")
    for option in options:
        _check(option, fstypes or [fstype for fstype in OPTIONS if option.partition("=")[0] in OPTIONS[fstype]])


def _check(option: str, fstypes: Sequence[str]) -> None:
    kinds = sorted(set(fstypes))
    if not kinds:
        names = sorted({name for known in OPTIONS.values() for name in known})
        raise NotTaken(f"no type takes a mount option {option.partition('=')[0]}", f"There are {', '.join(names)}.")
    faults = [fault(option, fstype) for fstype in kinds]
    if all(faults):
        raise NotTaken("; ".join(dict.fromkeys(faults)), " ".join(map(there_is, kinds)))


def merged(driver: str, plain: str, options: Iterable[str]) -> str:
    """Return a driver's own options with those that were given in their place."""
    given = list(options)
    names = {option.partition("=")[0] for option in given}
    along = [also for name in sorted(names) if (also := _ALONG.get((driver, name), ""))]
    given = [also for also in along if also.partition("=")[0] not in names] + given
    gone = {option.partition("=")[0] for option in given}
    kept = [each for each in plain.split(",") if each and each.partition("=")[0] not in gone]
    return ",".join(kept + given)
