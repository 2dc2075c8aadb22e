"""Rules decide in their order, conditions mean what the default file says, and what cannot be read refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.policy import files
from mountsafe.policy.conditions import CHECKS, PolicyError
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Access, Policy, Rule, Verdict, parse_rules

STICK = Facts(
    device="sdb1", fstype="vfat", label="PHOTOS", uuid="1234-ABCD", bus="usb", external=True, removable=True,
    vendor="SanDisk", model="Ultra", serial="4C53", size=16 << 30, seat="seat0",
)  # fmt: skip
INSIDE = replace(STICK, device="sda1", bus="ata", external=False)


def decide(text: str, facts: Facts = STICK) -> Verdict:
    policy = Policy.parse([("test", text)])
    assert not policy.broken
    return policy.decide(facts).verdict


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ('fstype = "vfat"', True),
        ('fstype = ["exfat", "vfat"]', True),
        ('fstype = "ext*"', False),
        ('fstype = ""', False),
        ('risk = "low"', True),
        ('risk = ["high", "critical"]', False),
        ('bus = "usb"', True),
        ('bus = "mmc"', False),
        ("external = true", True),
        ("external = false", False),
        ("removable = true", True),
        ("locked = true", False),
        ('vendor = "San*"', True),
        ('vendor = "san*"', False),
        ('model = "Ultr?"', True),
        ('serial = "4C53"', True),
        ('label = ["X", "PHOTOS"]', True),
        ('uuid = "1234-ABCE"', False),
        ('seat = "seat1"', False),
        ('min_size = "16 GiB"', True),
        ('min_size = "17GiB"', False),
        ('max_size = "16384 MiB"', True),
        ('max_size = "1"', False),
        ("", True),
    ],
)
def test_a_condition(condition: str, holds: bool) -> None:
    assert decide(f'[[rule]]\nverdict = "refuse"\n{condition}') == (Verdict.REFUSE if holds else Verdict.SANDBOX)


def test_every_condition_must_hold() -> None:
    rule = '[[rule]]\nverdict = "kernel"\nfstype = "vfat"\nserial = "{}"'
    assert decide(rule.format("4C53")) == Verdict.KERNEL
    assert decide(rule.format("other")) == Verdict.SANDBOX


def test_the_first_rule_that_holds_decides_and_is_named() -> None:
    rules = '[[rule]]\nverdict = "ask"\nbus = "{}"\n[[rule]]\nname = "all"\nverdict = "refuse"\nreason = "no"\n'
    assert decide(rules.format("usb")) == Verdict.ASK
    decision = Policy.parse([("a.toml", rules.format("mmc"))]).decide(STICK)
    assert (decision.rule, decision.origin, decision.reason) == ("all", "a.toml, rule 2", "no")


def test_without_a_rule_what_is_external_goes_to_a_virtual_machine() -> None:
    assert decide("") == Verdict.SANDBOX
    assert decide("", INSIDE) == Verdict.KERNEL


BROKEN = {
    "no TOML": "[[rule",
    "an unknown key": '[[rule]]\nverdict = "kernel"\nfilesystem = "vfat"',
    "no verdict": '[[rule]]\nfstype = "vfat"',
    "an unknown verdict": '[[rule]]\nverdict = "trust"',
    "a number for a text": '[[rule]]\nverdict = "kernel"\nserial = 12',
    "an empty list": '[[rule]]\nverdict = "kernel"\nserial = []',
    "an unknown risk": '[[rule]]\nverdict = "kernel"\nrisk = "none"',
    "a text for a switch": '[[rule]]\nverdict = "kernel"\nexternal = "yes"',
    "a size that is none": '[[rule]]\nverdict = "kernel"\nmax_size = "big"',
    "a size of too many digits": f'[[rule]]\nverdict = "refuse"\nmax_size = "{"1" * 5000} GiB"',
    "a number of too many digits": f"version = {'1' * 5000}",
    "lists in lists": "rule = " + "[" * 2000,
    "a number for a size": '[[rule]]\nverdict = "kernel"\nmax_size = 7',
    "another owner": '[[rule]]\nverdict = "sandbox"\nowner = "root"',
    "another version": "version = 2",
    "a rule that is no table": "rule = 1",
    "a list that holds no tables": "rule = [1]",
    "a table of another name": '[[rules]]\nverdict = "kernel"',
    "a reason that is no text": '[[rule]]\nverdict = "kernel"\nreason = 5',
    "a text for encrypted": '[[rule]]\nverdict = "refuse"\nencrypted = "LUKS"',
    "a list of key files": '[[rule]]\nverdict = "sandbox"\nkey_file = ["/a"]',
    "an access that is none": '[[rule]]\nverdict = "sandbox"\naccess = "read-write"',
    "a switch for access": "access = true",
    "a list for access": '[[rule]]\nverdict = "sandbox"\naccess = ["read-only"]',
    "hide that is no switch": '[[rule]]\nverdict = "kernel"\nhide = 1',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_read_refuses_everything_external(text: str) -> None:
    with pytest.raises(PolicyError, match="broken"):
        parse_rules("broken", text)
    everything = '[[rule]]\nverdict = "kernel"'
    for texts in ([("broken", text), ("good", everything)], [("good", everything), ("broken", text)]):
        policy = Policy.parse(texts)
        assert policy.broken
        assert policy.decide(STICK).verdict == Verdict.REFUSE
        assert policy.decide(INSIDE).verdict == Verdict.KERNEL


@given(st.text(max_size=200))
def test_no_text_does_anything_but_rule_or_refuse(text: str) -> None:
    assert Policy.parse([("text", text)]).decide(STICK).verdict in (Verdict.SANDBOX, Verdict.REFUSE)


# --- files -----------------------------------------------------------------------------------------------------------
def test_local_files_come_first_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "policy.d").mkdir()
    for name, verdict in (("policy.d/20.toml", "ask"), ("policy.d/10.toml", "refuse"), ("policy.toml", "kernel")):
        (tmp_path / name).write_text(f'[[rule]]\nverdict = "{verdict}"')
    assert [rule.verdict for rule in files.load(tmp_path).rules] == [Verdict.REFUSE, Verdict.ASK, Verdict.KERNEL]


def test_no_file_is_no_rule(tmp_path: Path) -> None:
    policy = files.load(tmp_path)
    assert (policy.rules, policy.broken) == ((), "")


@pytest.mark.parametrize("content", [b"\xff", None], ids=["no UTF-8", "a folder"])
def test_a_file_that_cannot_be_read_refuses(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        (tmp_path / "policy.toml").mkdir()
    else:
        (tmp_path / "policy.toml").write_bytes(content)
    assert files.load(tmp_path).decide(STICK).verdict == Verdict.REFUSE


# --- the example -----------------------------------------------------------------------------------------------------
def _worked() -> tuple[list[Rule], list[Rule]]:
    """The rules in the example's comments: the one that explains every key, and those to copy."""
    head, _, tail = files.EXAMPLE.read_text(encoding="utf-8").partition("# Thirteen rules")
    parts = (
        "\n".join(line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   "))
        for text in (head, tail)
    )
    explained, worked = (parse_rules("example", part) for part in parts)
    return explained, worked


def test_the_example_as_it_is_changes_nothing() -> None:
    assert parse_rules("example", files.EXAMPLE.read_text(encoding="utf-8")) == []


def test_the_example_explains_every_condition_as_it_is() -> None:
    """Its example, without the comment signs, is a policy."""
    (rule,), _ = _worked()
    assert set(rule.conditions) == set(CHECKS)


DISK = Facts(fstype="ext4", label="DATA", bus="usb", size=1 << 30)
WORKED = {
    "my camera": (replace(DISK, vendor="Canon_Inc", serial="0123456789"), Verdict.KERNEL),
    "backups": (replace(DISK, uuid="6f1c2a34-0000-4000-8000-5a3b2c1d0e9f"), Verdict.KERNEL),
    "nobody is there": (replace(DISK, locked=True), Verdict.REFUSE),
    "unmaintained": (replace(DISK, fstype="jfs"), Verdict.REFUSE),
    "not recognised": (replace(DISK, fstype=""), Verdict.ASK),
    "the visitors' seat": (replace(DISK, seat="seat1"), Verdict.REFUSE),
    "too large to be true": (replace(DISK, removable=True, size=8 << 40), Verdict.ASK),
    "discs": (Facts(fstype="iso9660", bus="optical", removable=True), Verdict.SANDBOX),
    "installers": (replace(DISK, label="Debian 13.1.0 amd64 n"), Verdict.SANDBOX),
    "foreign images": (Facts(fstype="udf", bus="loop", external=False), Verdict.SANDBOX),
    "the backup stick": (replace(DISK, fstype="crypto_LUKS", uuid="0b9d2f60-0000-4000-8000-7c1e5a9d3f21"), "sandbox"),
    "only what is encrypted": (replace(DISK, removable=True), Verdict.REFUSE),
    "evidence": (replace(DISK, label="EVIDENCE 7"), Verdict.SANDBOX),
}


@pytest.mark.parametrize("name", WORKED)
def test_each_of_the_worked_rules_decides_what_it_says(name: str) -> None:
    facts, verdict = WORKED[name]
    _, worked = _worked()
    decision = Policy(worked).decide(facts)
    assert (decision.rule, decision.verdict) == (name, verdict)
    assert {rule.name for rule in worked} == set(WORKED)
    assert Policy(worked).decide(DISK).rule == ""


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (
            '[[rule]]\nverdict = "ask"\n\n[[rule]]\nverdict = "ask"\nfilesystem = "vfat"\n',
            "a.toml, line 6 (rule 2)",
            "fstype",
        ),
        ('[[rule]]\nverdict = "ask"\nlabels = "x"\n', "a.toml, line 3 (rule 1)", "do you mean label?"),
        ('version = 1\nverdict = "ask"\n', "a.toml, line 2", "[[rule]]"),
        (
            '[[rule]]\nverdict = "ask"\n[[rule]]\nfstype = "x"\n',
            "a.toml, line 3 (rule 2)",
            "sandbox, kernel, ask, refuse",
        ),
        (
            '[[rule]]\nverdict = "ask"\nreason = """\n[[rule]]\n"""\nbuss = "usb"\n',
            "a.toml, rule 1",
            "do you mean bus?",
        ),
    ],
)
def test_an_error_says_where_it_is_and_what_would_be_right(text: str, where: str, words: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_rules("a.toml", text)
    assert str(error.value).startswith(f"{where}: ")
    assert words in str(error.value)


def test_a_rules_mount_options() -> None:
    (rule,) = parse_rules(
        "x", '[[rule]]\nverdict = "sandbox"\nfstype = "vfat"\nmount_options = ["codepage=850", "utf8=1"]'
    )
    assert rule.options.mount_options == ("codepage=850", "utf8=1")


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('mount_options = ["rw"]', "no type takes a mount option rw"),
        ('mount_options = "codepage=x"', "the number of a code page"),
        ("mount_options = [7]", "a text or a list of texts"),
        ('fstype = "vfat"\nmount_options = ["map=off"]', "vfat takes no mount option map. vfat takes codepage="),
        ('fstype = ["romfs"]\nmount_options = ["map=off"]', "There are none for romfs"),
        ('mount_options = ["map=off", "map=off"]', "given twice"),
    ],
)
def test_mount_options_that_cannot_be(rest: str, words: str) -> None:
    with pytest.raises(PolicyError, match=rf"^x, line \d \(rule 1\): .*{words}"):
        parse_rules("x", f'[[rule]]\nverdict = "sandbox"\n{rest}')
    with pytest.raises(PolicyError, match="not for kernel"):
        parse_rules("x", '[[rule]]\nverdict = "kernel"\nmount_options = ["map=off"]')


# --- what is encrypted -----------------------------------------------------------------------------------------------
def test_a_type_that_is_not_known_is_neither_encrypted_nor_not() -> None:
    for encrypted in ("true", "false"):
        assert decide(f'[[rule]]\nverdict = "refuse"\nencrypted = {encrypted}', Facts()) == Verdict.SANDBOX
    yes = '[[rule]]\nverdict = "refuse"\nencrypted = true'
    for fstype in ("crypto_LUKS", "BitLocker", "cs_fvault2", "veracrypt"):
        assert decide(yes, Facts(fstype=fstype)) == Verdict.REFUSE
        assert decide(yes.replace("true", "false"), Facts(fstype=fstype)) == Verdict.SANDBOX
    assert decide(yes, Facts(fstype="vfat")) == Verdict.SANDBOX
    assert decide(yes, Facts(fstype="vfat", unlocked=True)) == Verdict.REFUSE
    assert decide(yes.replace("true", "false"), Facts(fstype="vfat")) == Verdict.REFUSE


def test_without_a_rule_what_is_encrypted_is_opened_as_all_else_is() -> None:
    decision = Policy([]).decide(Facts(fstype="crypto_LUKS"))
    assert (decision.verdict, decision.reason.partition(";")[0]) == (Verdict.SANDBOX, "it is external")
    assert "it needs a key" in decision.reason


def test_a_rules_key_file() -> None:
    (rule,) = parse_rules("x", '[[rule]]\nverdict = "ask"\nkey_file = "/etc/mountsafe/keys/a"')
    assert rule.options.key_file == "/etc/mountsafe/keys/a"
    assert rule.options.general.key_file == ""


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('verdict = "sandbox"\nkey_file = "keys/a"', "the whole path of a file"),
        ('verdict = "sandbox"\nkey_file = ""', "the whole path of a file"),
        ('verdict = "sandbox"\nkey_file = "/etc/keys/"', "the whole path of a file"),
        ('verdict = "sandbox"\nkey_file = "/a\\u001b"', "the whole path of a file"),
        ('verdict = "sandbox"\nkeyfile = "/a"', "do you mean key_file\\?"),
        ('verdict = "kernel"\nkey_file = "/a"', "not for kernel"),
        ('verdict = "refuse"\nkey_file = "/a"', "not for refuse"),
    ],
)
def test_key_files_that_cannot_be(rest: str, words: str) -> None:
    with pytest.raises(PolicyError, match=rf"^x, line 3 \(rule 1\): .*{words}"):
        parse_rules("x", f"[[rule]]\n{rest}")


# --- what may be written to ------------------------------------------------------------------------------------------
def access(*texts: str, facts: Facts = STICK) -> Access | None:
    policy = Policy.parse([(f"{number}.toml", text) for number, text in enumerate(texts)])
    assert not policy.broken
    return policy.decide(facts).access


def test_without_a_word_of_it_what_can_be_written_to_may_be() -> None:
    assert access("") is Access.ON_DEMAND
    assert access('[[rule]]\nverdict = "sandbox"') is Access.ON_DEMAND


def test_a_rule_says_it_for_its_media_and_a_file_for_all_others() -> None:
    read_only = '[[rule]]\nverdict = "sandbox"\nlabel = "{}"\naccess = "read-only"'
    assert access(read_only.format("PHOTOS")) is Access.READ_ONLY
    assert access(read_only.format("OTHERS")) is Access.ON_DEMAND
    default = 'access = "read-only"\n'
    assert access(default) is Access.READ_ONLY
    assert access(default + '[[rule]]\nverdict = "ask"') is Access.READ_ONLY
    assert access(default + '[[rule]]\nverdict = "ask"\naccess = "on-demand"') is Access.ON_DEMAND


def test_what_is_encrypted_is_only_read_where_nobody_says_that_it_is_not() -> None:
    """Who made it could have the passphrase written on it, and take it away again."""
    locked = replace(STICK, fstype="crypto_LUKS")
    for facts in (locked, replace(STICK, unlocked=True)):
        assert access("", facts=facts) is Access.READ_ONLY
        assert access('[[rule]]\nverdict = "sandbox"', facts=facts) is Access.READ_ONLY
        for text in ('access = "on-demand"', '[[rule]]\nverdict = "sandbox"\naccess = "on-demand"'):
            assert access(text, facts=facts) is Access.ON_DEMAND


def test_of_several_files_the_most_important_one_says_it() -> None:
    assert access('access = "on-demand"', 'access = "read-only"') is Access.ON_DEMAND
    assert access('access = "read-only"', 'access = "on-demand"') is Access.READ_ONLY
    assert access('[[rule]]\nverdict = "sandbox"', 'access = "read-only"') is Access.READ_ONLY


def test_a_policy_that_cannot_be_read_lets_nothing_be_written() -> None:
    assert Policy.parse([("a", "access = 1")]).decide(STICK).access is Access.READ_ONLY


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ('access = "rw"\n', "x, line 1", "one of read-only, on-demand"),
        ('[[rule]]\nverdict = "ask"\naccess = "rw"\n', "x, line 3 (rule 1)", "one of read-only, on-demand"),
        ('[[rule]]\nverdict = "ask"\naces = "read-only"\n', "x, line 3 (rule 1)", "do you mean access?"),
        ('[[rule]]\nverdict = "kernel"\naccess = "read-only"\n', "x, line 3 (rule 1)", "not for kernel"),
        ('[[rule]]\nverdict = "refuse"\naccess = "on-demand"\n', "x, line 3 (rule 1)", "not for refuse"),
        ('acess = "read-only"\n', "x, line 1", "a file has version, access and tables [[rule]]"),
    ],
)
def test_an_access_that_cannot_be(text: str, where: str, words: str) -> None:
    broken = Policy.parse([("x", text)]).broken
    assert broken.startswith(f"{where}: ")
    assert words in broken
