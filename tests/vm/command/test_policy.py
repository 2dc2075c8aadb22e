"""`policy explain`: what would be done with an image or a device, and why."""

from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode
from tests.vm.command.stage import Person

Image = Callable[[str], Path]

RULES = """
[[rule]]
name = "old stuff"
verdict = "refuse"
fstype = "{}"
reason = "nobody needs it"
"""


@pytest.fixture
def rules(person: Person) -> Path:
    return person.folder()


def test_without_rules_every_file_system_goes_to_a_virtual_machine(person: Person, rules: Path, image: Image) -> None:
    told = person.run("policy", "explain", image("disk-gpt"), "--rules", rules, "--json").ok().json()
    expected = [v.filesystem for v in images.volumes("disk-gpt")]
    assert [(each["facts"]["fstype"], each["verdict"]) for each in told["decisions"]] == [
        (fstype, "sandbox") for fstype in expected
    ]


def test_the_rule_that_decided_is_named(person: Person, rules: Path, image: Image) -> None:
    fstype = images.volumes("disk-gpt")[-1].filesystem
    (rules / "policy.toml").write_text(RULES.format(fstype))
    told = person.run("policy", "explain", image("disk-gpt"), "--rules", rules, "--json").ok().json()
    decided = {each["facts"]["fstype"]: (each["verdict"], each["rule"], each["reason"]) for each in told["decisions"]}
    assert decided.pop(fstype) == ("refuse", "old stuff", "nobody needs it")
    assert {verdict for verdict, _, _ in decided.values()} == {"sandbox"}
    shown = person.run("policy", "explain", image("disk-gpt"), "--rules", rules).ok().out
    assert "old stuff" in shown
    assert str(rules / "policy.toml") in shown


def test_a_policy_that_cannot_be_read_refuses_and_says_where(person: Person, rules: Path, image: Image) -> None:
    (rules / "policy.toml").write_text("[[rule")
    done = person.run("policy", "explain", image("ext4"), "--rules", rules).ok()
    assert str(rules / "policy.toml") in done.err
    told = person.run("policy", "explain", image("ext4"), "--rules", rules, "--json").ok().json()
    assert str(rules / "policy.toml") in told["policy_error"]
    assert [each["verdict"] for each in told["decisions"]] == ["refuse"]


def test_what_is_not_there_is_an_error(person: Person, rules: Path) -> None:
    done = person.run("policy", "explain", rules / "absent", "--rules", rules)
    assert done.code == ExitCode.SOURCE
    assert "does not exist" in done.err


# --- the system rules: what they do is tested in tests/hotplug -------------------------------------------------------
def test_rendering_needs_no_right(person: Person, rules: Path) -> None:
    told = person.run("policy", "render", "--rules", rules, "--strict", "critical", "--json").ok().json()
    assert {Path(path).parent.name for path in told["files"]} == {"rules.d", "modprobe.d"}
    person.run("policy", "render", "--rules", rules, "--output", rules / "made").ok()
    made = (rules / "made/etc/udev/rules.d/61-mountsafe.rules").read_text()
    assert made == told["files"]["/etc/udev/rules.d/61-mountsafe.rules"]


def test_a_policy_that_cannot_be_read_is_not_installed(person: Person, rules: Path) -> None:
    (rules / "policy.toml").write_text("[[rule")
    done = person.run("policy", "install", "--rules", rules, "--root", rules / "root")
    assert done.code == ExitCode.SOURCE
    assert str(rules / "policy.toml") in done.err
    assert not (rules / "root").exists()


def test_a_staged_install_comes_and_goes(person: Person, rules: Path) -> None:
    root = person.folder()
    shown = person.run("policy", "install", "--rules", rules, "--root", root, "--dry-run", "--json").ok().json()
    assert [each["change"] for each in shown["files"]] == ["create"] * 3
    assert list(root.rglob("*")) == []
    assert person.run("policy", "diff", "--rules", rules, "--root", root).code == ExitCode.FAILURE
    person.run("policy", "install", "--rules", rules, "--root", root).ok()
    assert person.run("policy", "diff", "--rules", rules, "--root", root).ok().out == ""
    person.run("policy", "uninstall", "--root", root).ok()
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_installing_needs_root_and_says_so(user: Person) -> None:
    done = user.run("policy", "install", "--rules", user.folder())
    assert done.code == ExitCode.DEPENDENCY
    assert done.err.splitlines()[-1].startswith("sudo mountsafe policy install --rules ")


def test_only_a_device_can_be_trusted(person: Person, rules: Path, image: Image) -> None:
    done = person.run("trust", image("ext4"), "--rules", rules)
    assert done.code == ExitCode.SOURCE
    assert "udev does not know" in done.err
