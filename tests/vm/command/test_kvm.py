"""A /dev/kvm that opens: it is used if virtual machines start with it, and if not, it is tried once and remembered.

What the machine has decides which of three outcomes is asserted; none is skipped.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mountsafe.appliance import hardware
from tests.vm.command.stage import Person, Stage, sh

Image = Callable[[str], Path]
KVM = Path("/dev/kvm")


@pytest.fixture
def open_node(stage: Stage, root: Person) -> Iterator[bool]:
    """Make /dev/kvm one that everybody may use, in this session's mount namespace; yield whether there is one."""
    if not KVM.exists():
        yield False
        return
    node = stage.root / "kvm"
    os.mknod(node, stat.S_IFCHR | 0o666, KVM.stat().st_rdev)
    node.chmod(0o666)
    sh("mount", "--bind", node, KVM)
    try:
        yield True
    finally:
        sh("umount", KVM)
        node.unlink()


def state_of_kvm(person: Person, environment: dict[str, str]) -> dict[str, Any]:
    [finding] = [f for f in person.run("doctor", "--json", env=environment).json() if f["what"] == "KVM"]
    return dict(finding)


def test_kvm_is_tried_and_the_verdict_remembered(
    person: Person, stage: Stage, folder: Path, image: Image, open_node: bool
) -> None:
    place = folder / "state/appliance"
    place.mkdir(parents=True)
    (place / "current").symlink_to((stage.root / "state/appliance/current").resolve())
    for path in (place, place.parent):
        person.give(path)
    environment = {"MOUNTSAFE_APPLIANCE": str(place)}
    memory = place.parent / "kvm.json"
    before = state_of_kvm(person, environment)
    done = person.run("mount", image("romfs"), folder / "m", "--json", "--verbose", env=environment).ok()
    try:
        record = done.json()
        assert record["mounts"][0]["fstype"] == "romfs"
        after = state_of_kvm(person, environment)
        if not open_node:
            assert record["accelerator"] == "tcg"
            assert "does not exist" in after["detail"]
            assert after["state"] == "degraded"
            assert not memory.exists()
            return
        assert before["state"] == "ok"
        assert "first mount tries it" in before["detail"]
        assert json.loads(memory.read_text())["verdict"] == record["accelerator"]
        if record["accelerator"] == "kvm":
            assert after["state"] == "ok"
            assert after["detail"] == "works"
        else:
            assert "KVM does not work here" in done.err
            assert after["state"] == "degraded"
            assert "software emulation is used" in after["detail"]
            assert after["mend"]
    finally:
        person.run("unmount", "--all", env=environment).ok()
    again = person.run("mount", image("romfs"), folder / "m", "--json", "--verbose", env=environment).ok()
    assert again.json()["accelerator"] == record["accelerator"]
    assert "KVM does not work here" not in again.err  # it is not tried a second time
    person.run("unmount", "--all", env=environment).ok()


def test_a_node_that_only_root_may_open(user: Person, root: Person, folder: Path, image: Image) -> None:
    if not KVM.exists():
        assert state_of_kvm(user, {})["detail"].startswith("/dev/kvm does not exist")
        return
    node = folder / "kvm"
    os.mknod(node, stat.S_IFCHR | 0o600, KVM.stat().st_rdev)
    sh("mount", "--bind", node, KVM)
    try:
        for person in (user, root):
            finding = state_of_kvm(person, {})
            assert finding["state"] == "degraded"
            assert "slowly" in finding["detail"]
            assert bool(finding["mend"]) == hardware.virtualises()  # no right helps where the processor cannot
            record = person.run("mount", image("romfs"), person.home / "m", "--json").ok().json()
            assert record["accelerator"] == "tcg"
            person.run("unmount", person.home / "m").ok()
    finally:
        sh("umount", KVM)
