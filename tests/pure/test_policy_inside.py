"""What the policy says of what a virtual machine has found inside."""

from dataclasses import replace
from typing import Any

from mountsafe.policy.facts import Facts
from mountsafe.policy.inside import Seen, judge
from mountsafe.policy.rules import Options, Policy, Verdict

KNOWN = Facts(device="sdb", bus="usb", vendor="Example")
REFUSE = """
[[rule]]
verdict = "refuse"
"""


def policy(rules: str) -> Any:
    made = Policy.parse([("policy.toml", rules)])
    assert not made.broken
    return made.decide


def volume(name: str, fstype: str = "ext4", chosen: bool = True, **more: Any) -> Seen:
    return replace(Seen(name, fstype, "", "", 1 << 20, (), chosen), **more)


def test_each_condition_is_asked_of_what_is_inside() -> None:
    for rule, inside in (
        ('fstype = "jfs"', {"fstype": "jfs"}),
        ('label = "EVIL*"', {"label": "EVIL STICK"}),
        ('uuid = "1234"', {"uuid": "1234"}),
        ('risk = "critical"', {"fstype": "jfs"}),
        ('max_size = "1 KiB"', {"size": 512}),
    ):
        found = [volume("1", **inside), volume("2")]
        judgement = judge(policy(REFUSE + rule), KNOWN, found)
        assert list(judgement.refused) == ["1"], rule
        assert not judgement.nothing
        assert judge(policy(REFUSE + rule), KNOWN, found[:1]).nothing


def test_a_type_that_somebody_names_hides_none_that_was_found() -> None:
    taken = [volume("1", "msdos", found="vfat")]
    for refused in ("vfat", "msdos"):
        assert judge(policy(f'{REFUSE}fstype = "{refused}"'), KNOWN, taken).nothing
    options = judge(policy('[[rule]]\nverdict = "sandbox"\nfstype = "msdos"\nhide = true'), KNOWN, taken).options
    assert options.hide  # how it is shown follows what it is mounted as


def test_what_is_known_of_the_device_still_counts() -> None:
    trusted = """
        [[rule]]
        vendor = "Example"
        verdict = "sandbox"
    """
    assert not judge(policy(trusted + REFUSE), KNOWN, [volume("1", "jfs")]).refused
    assert judge(policy(trusted + REFUSE), Facts(device="sdc"), [volume("1", "jfs")]).nothing


def test_a_person_is_asked_about_what_may_be_shown() -> None:
    asking = '[[rule]]\nverdict = "ask"\nfstype = "jfs"\nreason = "old"'
    asks = judge(policy(asking), KNOWN, [volume("1"), volume("2", "jfs")]).asks
    assert asks is not None
    assert (asks.verdict, asks.reason) == (Verdict.ASK, "old")
    assert judge(policy(asking), KNOWN, [volume("1")]).asks is None
    assert judge(policy(asking), KNOWN, [volume("1"), volume("2", "jfs", chosen=False)]).asks is None


def test_what_a_volume_lies_in_is_asked_about_as_well() -> None:
    rules = policy(REFUSE + 'fstype = "LVM2_member"')
    group = volume("2", "LVM2_member", chosen=False)
    inside = volume("vg/root", layers=("2",))
    beside = volume("1")
    assert list(judge(rules, KNOWN, [beside, group, inside]).refused) == ["vg/root"]
    of_two = volume("vg/home", layers=("1+2",))
    assert list(judge(rules, KNOWN, [beside, group, of_two]).refused) == ["vg/home"]
    of_many = volume("vg/more", layers=("3+4+5+6+...",))
    assert list(judge(rules, KNOWN, [beside, group, of_many]).refused) == ["vg/more"]


def test_nothing_to_show_is_not_refused() -> None:
    assert not judge(policy(REFUSE), KNOWN, []).nothing
    assert not judge(policy(REFUSE), KNOWN, [volume("1", chosen=False)]).nothing


def test_how_it_is_shown_depends_on_what_is_inside() -> None:
    """Of several that a rule hides some of, all are hidden: they are in folders of one medium."""
    hiding = '[[rule]]\nverdict = "sandbox"\nfstype = "romfs"\nhide = true\nowner = "image"\n'
    romfs, other = volume("1", "romfs"), volume("2")
    assert judge(policy(hiding), KNOWN, [romfs]).options == Options("image", hide=True)
    assert judge(policy(hiding), KNOWN, [other, romfs]).options == Options("user", hide=True)
    assert judge(policy(hiding), KNOWN, [other, replace(romfs, chosen=False)]).options == Options()
    assert judge(policy(hiding + REFUSE + 'fstype = "ext4"'), KNOWN, [other]).nothing


def test_each_is_mounted_as_the_rule_says_that_decides_of_it() -> None:
    rules = '[[rule]]\nverdict = "sandbox"\nfstype = "vfat"\nmount_options = ["codepage=850"]'
    found = [volume("0", "", chosen=False), volume("1", "vfat"), volume("2"), volume("3", "vfat", chosen=False)]
    assert judge(policy(rules), KNOWN, found).mount_options == {"1": ("codepage=850",)}


# --- what is encrypted -----------------------------------------------------------------------------------------------
ONLY_ENCRYPTED = REFUSE + "encrypted = false"


def test_only_what_lies_in_something_encrypted_is_shown() -> None:
    locked = volume("2", "crypto_LUKS", chosen=False)
    inside = volume("2/0", layers=("2",))
    beside = volume("1", "vfat")
    assert list(judge(policy(ONLY_ENCRYPTED), KNOWN, [beside, locked, inside]).refused) == ["1"]
    assert judge(policy(ONLY_ENCRYPTED), KNOWN, [beside]).nothing
    assert list(judge(policy(REFUSE + "encrypted = true"), KNOWN, [beside, locked, inside]).refused) == ["2/0"]


def test_what_a_volume_group_is_in_makes_all_of_it_encrypted_and_what_is_in_it_only_itself() -> None:
    rules = policy(ONLY_ENCRYPTED)
    around = [volume("1", "crypto_LUKS", chosen=False), volume("1/0", "LVM2_member", chosen=False, layers=("1",))]
    assert not judge(rules, KNOWN, [*around, volume("vg/root", layers=("1", "1/0"))]).refused
    group = [volume("1", "LVM2_member", chosen=False), volume("vg/a", "BitLocker", chosen=False, layers=("1",))]
    inside, plain = volume("vg/a/0", "ntfs", layers=("1", "vg/a")), volume("vg/b", layers=("1",))
    assert list(judge(rules, KNOWN, [*group, inside, plain]).refused) == ["vg/b"]


def test_a_type_that_somebody_names_does_not_make_it_encrypted_nor_plain() -> None:
    """Who says `--type ext4` of a LUKS volume sees random bytes; who says it of another one sees that."""
    assert not judge(policy(ONLY_ENCRYPTED), KNOWN, [volume("1", "ext4", found="crypto_LUKS")]).refused
    assert judge(policy(ONLY_ENCRYPTED), KNOWN, [volume("1", "vfat", found="")]).nothing
    assert judge(policy(ONLY_ENCRYPTED), KNOWN, [volume("1", "vfat", found="ext4")]).nothing


def test_a_key_file_is_of_a_volume_and_not_how_a_medium_is_shown() -> None:
    rules = '[[rule]]\nverdict = "sandbox"\nuuid = "77"\nkey_file = "/a"\nhide = true'
    assert judge(policy(rules), KNOWN, [volume("1", uuid="77")]).options == Options(hide=True)


# --- what may be written to ------------------------------------------------------------------------------------------
def test_each_may_be_written_to_if_the_rule_that_decides_of_it_says_so() -> None:
    rules = '[[rule]]\nverdict = "sandbox"\nlabel = "EVIDENCE"\naccess = "read-only"'
    found = [volume("1", label="EVIDENCE"), volume("2"), volume("3", label="EVIDENCE", chosen=False)]
    assert judge(policy(rules), KNOWN, found).read_only == {"1"}
    others = 'access = "read-only"\n[[rule]]\nverdict = "sandbox"\nfstype = "vfat"\naccess = "on-demand"'
    assert judge(policy(others), KNOWN, [volume("1", "vfat"), volume("2")]).read_only == {"2"}
    assert judge(policy(f"{others}\n{REFUSE}"), KNOWN, [volume("1", "vfat"), volume("2")]).read_only == set()


def test_what_it_lies_in_and_each_type_that_it_may_be_must_be_such_that_it_is_written_to() -> None:
    rules = policy('[[rule]]\nverdict = "sandbox"\nfstype = "crypto_LUKS"\naccess = "read-only"')
    found = [volume("2", "crypto_LUKS", chosen=False), volume("2/0", layers=("2",)), volume("1")]
    assert judge(rules, KNOWN, found).read_only == {"2/0"}
    assert judge(rules, KNOWN, [volume("1", "ext4", found="crypto_LUKS")]).read_only == {"1"}


def test_what_is_said_of_something_encrypted_holds_for_what_is_in_it() -> None:
    found = [volume("2", "crypto_LUKS", uuid="77", chosen=False), volume("2/0", layers=("2",)), volume("1")]
    assert judge(policy(""), KNOWN, found).read_only == {"2/0"}
    rule = '[[rule]]\nverdict = "sandbox"\nuuid = "77"\naccess = "on-demand"'
    assert judge(policy(rule), KNOWN, found).read_only == set()
    assert judge(policy(f'access = "read-only"\n{rule}'), KNOWN, found).read_only == {"1"}
    inside = '[[rule]]\nverdict = "sandbox"\nfstype = "ext4"\naccess = "read-only"'
    assert judge(policy(f"{rule}\n{inside}"), KNOWN, found).read_only == {"1", "2/0"}


def test_that_it_may_be_written_to_is_of_a_volume_and_not_how_a_medium_is_shown() -> None:
    rules = '[[rule]]\nverdict = "sandbox"\naccess = "read-only"'
    assert judge(policy(rules), KNOWN, [volume("1")]).options == Options()
