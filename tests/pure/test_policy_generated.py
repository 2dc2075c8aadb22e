"""The text of the generated system files: each rule of a policy in udev's words, and nothing that breaks out."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mountsafe.policy import modprobe, polkit, udev
from mountsafe.policy.exempt import of_crypttab, of_fstab
from mountsafe.policy.risk import RISKS, RiskClass
from mountsafe.policy.rules import Policy

DEFAULT = Policy.parse([])


def rules(text: str) -> list[str]:
    """The lines that udev reads, of the first file made from a policy."""
    policy = Policy.parse([("test.toml", text)])
    assert not policy.broken, policy.broken
    lines = udev.render(policy)[udev.FIRST].splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def decisions(text: str) -> list[str]:
    return [line for line in rules(text) if "mountsafe_decided" in line and not line.startswith("LABEL")]


@pytest.mark.parametrize(
    ("conditions", "match"),
    [
        ('fstype = "vfat"', 'ENV{ID_FS_TYPE}=="vfat"'),
        ('fstype = ["vfat", "ex?at"]', 'ENV{ID_FS_TYPE}=="vfat|ex?at"'),
        ('fstype = ["", "vfat"]', 'ENV{ID_FS_TYPE}=="|vfat"'),
        ('label = "A*"', 'ENV{ID_FS_LABEL}=="A*"'),
        ('uuid = "12"', 'ENV{ID_FS_UUID}=="12"'),
        ('bus = "usb"', 'ENV{MOUNTSAFE_BUS}=="usb"'),
        ("external = false", 'ENV{MOUNTSAFE_EXTERNAL}=="0"'),
        ("removable = true", 'ENV{MOUNTSAFE_REMOVABLE}=="1"'),
        ('vendor = "a"\nmodel = "b"', 'ENV{ID_VENDOR}=="a", ENV{ID_MODEL}=="b"'),
        ('serial = "c"', 'ENV{MOUNTSAFE_SERIAL}=="c"'),
        ("encrypted = true", 'ENV{ID_FS_TYPE}=="BitLocker|crypto_LUKS|cs_fvault2|truecrypt|veracrypt"'),
        (
            "encrypted = false",
            'ENV{ID_FS_TYPE}=="?*", ENV{ID_FS_TYPE}!="BitLocker|crypto_LUKS|cs_fvault2|truecrypt|veracrypt"',
        ),
    ],
)
def test_a_rule_in_the_words_of_udev(conditions: str, match: str) -> None:
    for verdict in ("kernel", "refuse"):
        (line,) = decisions(f'[[rule]]\nverdict = "{verdict}"\n{conditions}')
        assert line == f'{match}, ENV{{MOUNTSAFE_VERDICT}}="{verdict}", GOTO="mountsafe_decided"'


def test_a_risk_is_all_its_types() -> None:
    (line,) = decisions('[[rule]]\nverdict = "kernel"\nrisk = "low"')
    assert line.startswith('ENV{ID_FS_TYPE}=="vfat|msdos|exfat", ')
    (line,) = decisions('[[rule]]\nverdict = "refuse"\nrisk = ["unknown", "low"]')
    others = line.partition('ENV{ID_FS_TYPE}!="')[2].partition('"')[0].split("|")
    assert set(others) == {fstype for fstype, risk in RISKS.items() if risk.level != RiskClass.LOW}


def test_what_udev_cannot_ask_makes_a_rule_wider_and_never_leaves_more_to_the_system() -> None:
    (line,) = decisions('[[rule]]\nverdict = "ask"\nbus = "usb"\nmin_size = "1 GiB"\nlocked = true')
    assert line.startswith('ENV{MOUNTSAFE_BUS}=="usb", ENV{MOUNTSAFE_VERDICT}="ask"')
    for late in ('min_size = "1 GiB"', 'max_size = "1"', 'seat = "seat0"', "locked = false"):
        assert Policy.parse([("t", f'[[rule]]\nverdict = "kernel"\n{late}')]).broken


def test_rules_stay_in_their_order() -> None:
    text = "".join(f'[[rule]]\nverdict = "refuse"\nserial = "{number}"\n' for number in range(20))
    found = [line.partition('=="')[2].partition('"')[0] for line in decisions(text)]
    assert found == [str(number) for number in range(20)]


@given(st.text(max_size=30), st.text(max_size=30))
@example("", "x")
def test_no_name_and_no_pattern_breaks_out_of_its_place(name: str, pattern: str) -> None:
    quoted = '"' + "".join(f"\\U{ord(char):08x}" for char in pattern) + '"'
    named = '"' + "".join(f"\\U{ord(char):08x}" for char in name) + '"'
    try:
        text = f'[[rule]]\nverdict = "refuse"\nname = {named}\nlabel = {quoted}'
        policy = Policy.parse([("test", text)])
    except UnicodeEncodeError:
        return
    lines = udev.render(policy)[udev.FIRST].splitlines()
    other = '[[rule]]\nverdict = "refuse"\nlabel = "longer than any that is tried here"'
    plain = udev.render(Policy.parse([("test", other)]))[udev.FIRST].splitlines()
    if policy.broken:
        assert len(lines) == len(plain) - 2
        return
    assert len(lines) == len(plain)
    (changed,) = (line for line in lines if line not in plain and not line.startswith("#"))
    assert changed.count('"') == 6


def test_a_broken_policy_manages_everything_external() -> None:
    broken = udev.render(Policy.parse([("x", "[[rule")]))
    assert broken == udev.render(DEFAULT)


# --- what belongs to the machine -------------------------------------------------------------------------------------
FSTAB = """
# comment
UUID=0a-1b / ext4 defaults 0 1
LABEL=my\\040data /data xfs noauto 0 0
PARTUUID=77 none swap sw 0 0
/dev/disk/by-uuid/AA-BB /boot/efi vfat umask=0077 0 1
/dev/disk/by-id/usb-Disk_1-0:0-part1 /backup ext4 noauto 0 0
/dev/sdb1 /mnt auto noauto,user 0 0
/dev/mapper/vg-root /x ext4 defaults 0 0
tmpfs /tmp tmpfs defaults 0 0
LABEL=*** /evil ext4 defaults 0 0
short
"""


def test_what_fstab_names_is_left_alone() -> None:
    assert [(each.key, each.pattern) for each in of_fstab(FSTAB)] == [
        ("ENV{ID_FS_UUID}", "0a-1b"),
        ("ENV{ID_FS_LABEL}", "my*data"),
        ("ENV{ID_PART_ENTRY_UUID}", "77"),
        ("ENV{ID_FS_UUID}", "AA-BB"),
        ("SYMLINK", "disk/by-id/usb-Disk_1-0:0-part1"),
        ("KERNEL", "sdb1"),
    ]
    text = udev.render(DEFAULT, of_fstab(FSTAB))[udev.FIRST]
    before, _, after = text.partition('ENV{MOUNTSAFE_BUS}="$env{ID_BUS}"')
    assert before.count('GOTO="mountsafe_end"') == after.count('GOTO="mountsafe_end"') + 8


def test_what_crypttab_names_is_left_alone() -> None:
    assert [(each.key, each.pattern) for each in of_crypttab("# c\nsecret UUID=99 none luks\nb /dev/sdc2 - -\nx")] == [
        ("ENV{ID_FS_UUID}", "99"),
        ("KERNEL", "sdc2"),
    ]


@given(st.text(max_size=60))
def test_no_line_of_fstab_breaks_out_or_matches_everything(line: str) -> None:
    for each in (*of_fstab(line), *of_crypttab(line)):
        assert '"' not in each.pattern
        assert "\n" not in each.pattern
        assert each.pattern.strip("*?")
        assert (
            len(udev.render(DEFAULT, [each])[udev.FIRST].splitlines())
            == len(udev.render(DEFAULT)[udev.FIRST].splitlines()) + 2
        )


# --- polkit and modprobe ---------------------------------------------------------------------------------------------
def test_loops_may_be_set_up_unless_a_rule_manages_them() -> None:
    (text,) = polkit.render(DEFAULT).values()
    assert "loop-setup" not in text
    (text,) = polkit.render(Policy.parse([("t", '[[rule]]\nverdict = "sandbox"\nbus = "loop"')])).values()
    assert "loop-setup" in text


def test_strict_mode_blocks_the_modules_of_its_classes() -> None:
    assert modprobe.render([]) == {}
    (text,) = modprobe.render([RiskClass.CRITICAL]).values()
    lines = [line for line in text.splitlines() if not line.startswith("#") and line]
    assert {"install jfs /bin/false", "install minix /bin/false", "install reiserfs /bin/false"} <= set(lines)
    assert not any(name in text for name in ("hfsplus", "vfat", "LVM2"))
    (both,) = modprobe.render([RiskClass.HIGH, RiskClass.CRITICAL]).values()
    assert "install hfsplus /bin/false" in both
    assert modprobe.classes_of(text) == [RiskClass.CRITICAL]
    assert set(modprobe.classes_of(both)) == {RiskClass.CRITICAL, RiskClass.HIGH}
    assert modprobe.classes_of("install x /bin/false") == []


# --- what is checked in ----------------------------------------------------------------------------------------------
def test_the_files_under_udev_are_what_the_default_policy_makes(repository: Path) -> None:
    expected = {**udev.render(DEFAULT), **{f"polkit/{name}": text for name, text in polkit.render(DEFAULT).items()}}
    folder = repository / "udev"
    found = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()
    }
    assert found == expected
