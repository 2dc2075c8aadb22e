"""Mount options: what is on the list, what becomes of a driver's own, and that nothing else gets through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import fsoptions
from mountsafe.agent.mounting import MOUNT_AS, CowLayer, Target, mount_medium
from mountsafe.agent.patched import Patched
from mountsafe.agent.programs import Refused
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.choosing import choose
from mountsafe.medium.options import checked_options, with_options, with_wished
from tests.pure.test_volumes import TABLE, partition, volumes

# What would make it writable, reach outside of it, or change what everybody relies on.
NEVER = (
    *("rw", "remount", "bind", "loop", "loop=/dev/sda", "offset=4096", "device=/dev/sda", "logdev=/dev/sda", "suid"),
    *("dev", "exec", "uid=0", "gid=0", "umask=0", "force", "journal_dev=8", "usermapping=/etc/passwd", "errors=panic"),
    *("X-mount.mkdir", "helper=sh", "domain_id=x", "nointegrity", "resize=1", "rtdev=/dev/sda", "iocharset=utf8\0rw"),
    *(
        "subvol=a,rw",
        'subvol="a',
        "subvol=../x",
        "subvol=a/..",
        "subvol=a\\",
        "subvol=",
        "subvol",
        "map=off ",
        "norock=",
    ),
    *("codepage=437,rw", "sb=1\n", "sb=-1", "sb=1e9", "sb=٣", "sb=9999999999", "iocharset=../x", "", "=", "map=OFF"),
)


@pytest.mark.parametrize("option", NEVER)
def test_what_no_type_takes(option: str) -> None:
    assert [fstype for fstype in fsoptions.OPTIONS if not fsoptions.fault(option, fstype)] == []
    with pytest.raises(UserError) as failure:
        checked_options([option], None)
    assert failure.value.code == ExitCode.USAGE
    assert failure.value.hint
    assert "\0" not in failure.value.message


@pytest.mark.parametrize(
    ("fstype", "option"),
    [
        *(("iso9660", "map=off"), ("iso9660", "sbsector=16"), ("vfat", "codepage=850"), ("hfs", "codepage=macturkish")),
        *(
            ("btrfs", "subvol=@home/ä b"),
            ("btrfs", "subvol=/a..b"),
            ("btrfs", "subvolid=256"),
            ("ufs", "ufstype=44bsd"),
        ),
        *(("hfsx", "nls=utf8"), ("ntfs", "streams_interface=none"), ("ext4dev", "noload"), ("vfat", "utf8=0")),
    ],
)
def test_what_a_type_takes(fstype: str, option: str) -> None:
    assert fsoptions.fault(option, fstype) == ""
    assert checked_options([option], fstype) == (option,)


@given(st.text(max_size=40), st.sampled_from(sorted(fsoptions.OPTIONS)))
def test_nothing_that_gets_through_is_two_options(value: str, fstype: str) -> None:
    for name in fsoptions.OPTIONS[fstype]:
        if not fsoptions.fault(f"{name}={value}", fstype):
            assert not set(value) & set(',"\\\n\0')


def test_an_unknown_one_names_those_that_there_are() -> None:
    with pytest.raises(UserError, match="iso9660 takes no mount option mapp") as failure:
        checked_options(["mapp=off"], "iso9660")
    assert "iso9660 takes block=, check=, cruft," in failure.value.hint
    with pytest.raises(UserError, match="map is one of off, normal, acorn"):
        checked_options(["map=none"], None)
    with pytest.raises(UserError, match="romfs takes no mount option map") as failure:
        checked_options(["map=off"], "romfs")
    assert failure.value.hint == "There are none for romfs."
    with pytest.raises(UserError, match="given twice"):
        checked_options(["map=off", "map=acorn"], None)
    assert checked_options(["map=off,norock", "nojoliet"], None) == ("map=off", "norock", "nojoliet")
    with pytest.raises(UserError, match="17 mount options"):
        checked_options(list("abcdefghijklmnopq"), None)


def test_each_applies_where_its_type_takes_it() -> None:
    found = choose(volumes(TABLE, partition(1, b"vfat"), partition(2), partition(3, b"btrfs")), None, None)
    applied = with_options(found, ["codepage=850", "subvol=@"])
    assert [volume.options for volume in applied] == [("codepage=850",), (), ("subvol=@",)]
    assert [volume.options for volume in with_options(found, [])] == [(), (), ()]
    with pytest.raises(UserError, match="ext4 takes no mount option map") as failure:
        with_options(found, ["codepage=850", "map=off"])
    assert failure.value.code == ExitCode.USAGE
    for words in ("vfat takes codepage=,", "ext4 takes noload, sb=", "btrfs takes subvol="):
        assert words in failure.value.hint
    with pytest.raises(UserError, match="codepage is the number of a code page"):
        with_options(found, ["codepage=macroman"])  # hfs takes that


def test_a_policys_options_apply_as_far_as_they_can() -> None:
    found = choose(volumes(TABLE, partition(1, b"vfat"), partition(2)), None, None)
    applied = with_wished(found, {"1": ["codepage=850", "map=off", "rw"], "2": ["codepage=850"]})
    assert [volume.options for volume in applied] == [("codepage=850",), ()]


def test_one_that_is_given_takes_the_place_of_the_drivers_own() -> None:
    assert fsoptions.merged("vfat", "utf8,umask=022", ["codepage=850"]) == "utf8,umask=022,codepage=850"
    assert fsoptions.merged("vfat", "utf8,umask=022", ["iocharset=cp437"]) == "umask=022,utf8=0,iocharset=cp437"
    assert fsoptions.merged("vfat", "utf8", ["utf8=1", "iocharset=cp437"]) == "utf8=1,iocharset=cp437"
    assert fsoptions.merged("ufs", "ufstype=ufs2", ["ufstype=44bsd"]) == "ufstype=44bsd"
    assert fsoptions.merged("iso9660", "iocharset=utf8", ["map=off"]) == "iocharset=utf8,map=off"


def test_the_table_knows_drivers_that_there_are() -> None:
    drivers = {kind for attempts in MOUNT_AS.values() for kind, _ in attempts}
    assert set(fsoptions.OPTIONS) - {"affs", "btrfs", "f2fs", "jfs", "nilfs2"} <= drivers
    assert {fsoptions.DRIVERS[name] for name in fsoptions.DRIVERS} <= set(fsoptions.OPTIONS)


@pytest.mark.parametrize("options", [("rw",), ("map=off", "device=/dev/sda"), ("codepage=437",)])
def test_the_agent_checks_them_again(options: tuple[str, ...]) -> None:
    target = Target("/dev/null", b"iso9660", "/nowhere", CowLayer("", ""), Patched(""), options=options)
    with pytest.raises(Refused, match="takes no mount option"):
        mount_medium(target)
