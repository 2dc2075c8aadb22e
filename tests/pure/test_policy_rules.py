"""Rules decide in their order, conditions mean what the default file says, and what cannot be read refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.policy import files
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Policy, PolicyError, Verdict, parse_rules

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


def test_the_default_file_is_the_default() -> None:
    text = (Path(files.__file__).parent / "default.toml").read_text(encoding="utf-8")
    assert parse_rules("default", text) == []


def test_the_default_file_explains_every_condition_as_it_is() -> None:
    """Its example, without the comment signs, is a policy."""
    text = (Path(files.__file__).parent / "default.toml").read_text(encoding="utf-8")
    lines = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    (rule,) = parse_rules("example", "\n".join(lines))
    from mountsafe.policy.rules import _CHECKS  # private, and the whole point

    assert set(rule.conditions) == set(_CHECKS)


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
    with pytest.raises(PolicyError, match=f"^x, rule 1: .*{words}"):
        parse_rules("x", f'[[rule]]\nverdict = "sandbox"\n{rest}')
    with pytest.raises(PolicyError, match="not for kernel"):
        parse_rules("x", '[[rule]]\nverdict = "kernel"\nmount_options = ["map=off"]')
