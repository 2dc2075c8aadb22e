"""A trusted device is known by what it says of itself, and by all of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.policy import trust
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Policy, Verdict

STICK = Facts(device="sdb", fstype="vfat", bus="usb", vendor="SanDisk", model="Ultra Fit", serial="4C53")


def decide(text: str, facts: Facts) -> Verdict:
    policy = Policy.parse([(trust.NAME, text)])
    assert not policy.broken, policy.broken
    return policy.decide(facts).verdict


def test_a_trusted_device_is_left_to_the_system_and_no_other() -> None:
    text = trust.with_rule("", STICK)
    assert decide(text, replace(STICK, device="sdc1", fstype="ext4")) == Verdict.KERNEL
    for other in ({"serial": "4C54"}, {"vendor": "X"}, {"model": "Ultra"}, {"bus": "mmc"}, {"serial": ""}):
        assert decide(text, replace(STICK, **other)) == Verdict.SANDBOX


def test_trust_can_be_taken_back_and_others_keep_theirs() -> None:
    other = replace(STICK, serial="99")
    text = trust.with_rule(trust.with_rule(trust.with_rule("", STICK), other), STICK)
    assert len(trust.trusted(text)) == 2
    text = trust.without_rule(text, STICK)
    assert (decide(text, STICK), decide(text, other)) == (Verdict.SANDBOX, Verdict.KERNEL)
    assert trust.trusted(trust.without_rule(text, other)) == []


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_whatever_a_device_says_the_file_can_be_read_and_holds_for_it(serial: str, model: str) -> None:
    from mountsafe.text import printable

    stick = replace(STICK, serial=printable(serial), model=printable(model))
    text = trust.with_rule("", stick)
    assert decide(text, stick) == Verdict.KERNEL
    assert decide(text, replace(stick, serial=stick.serial + "x")) == Verdict.SANDBOX


def test_what_is_no_such_file_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected"):
        trust.trusted("[[rule")


def test_trust_in_a_virtual_machine_takes_the_place_of_other_trust() -> None:
    refused = Policy.parse(
        [(trust.NAME, trust.with_rule("", STICK, Verdict.SANDBOX)), ("p", '[[rule]]\nverdict="refuse"')]
    )
    assert refused.decide(STICK).verdict == Verdict.SANDBOX
    assert refused.decide(replace(STICK, serial="99")).verdict == Verdict.REFUSE
    text = trust.with_rule(trust.with_rule("", STICK), STICK, Verdict.SANDBOX)
    assert [rule["verdict"] for rule in trust.trusted(text)] == ["sandbox"]
    assert trust.trusted(trust.without_rule(text, STICK)) == []
