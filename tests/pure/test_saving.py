"""States of VMs for each accelerator: when they are made, whether one is kept, and what they hold for.

QEMU is a program of ours that knows so much of its monitor as saving and proving takes, and goes wrong where a test
says so.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe.appliance import acceleration, build, freeze, saving, thaw
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.errors import MountsafeError, UserError
from mountsafe.limits import GUEST_MEMORY_MIB
from tests.pure.test_appliance_build import touch_later

# Its arguments name how it goes: with a word in "wrong", the first or the second time.
FAKE_QEMU = """\
#!{python} -I
import array, json, os, socket, sys, time
accelerator, wrong = {accelerator!r}, {wrong!r}
thaws = "-incoming" in sys.argv
log = open({log!r}, "a")
log.write(accelerator + (" thaws" if thaws else " boots") + "\\n")
log.flush()

def listen(name):
    if os.path.exists(name):
        os.unlink(name)
    made = socket.socket(socket.AF_UNIX)
    made.bind(name)
    made.listen()
    return made

if not thaws:
    if wrong == "is silent":
        time.sleep(60)
    if wrong == "crashes":
        print("[    0.7] Kernel panic - not syncing: No working init found.")
    if wrong in ("ends", "crashes"):
        sys.exit(1)
channel, monitor = listen("channel"), listen("monitor")
if not thaws:
    print("mountsafe: settled", flush=True)
qmp, _ = monitor.accept()
say = lambda what: qmp.sendall(json.dumps(what).encode() + b"\\r\\n")
say({{"QMP": {{}}}})
fds = []
while True:
    data, came, _, _ = socket.recv_fds(qmp, 65536, 1)
    if not data:
        break
    fds += came
    command = json.loads(data)["execute"]
    if command == "migrate":
        os.write(fds[0], b"state of " + accelerator.encode())
        os.close(fds[0])
    if command == "migrate-incoming" and wrong == "takes no state":
        sys.exit(1)
    status = {{"query-migrate": "completed" if wrong != "saves nothing" else "failed", "query-status": "running"}}
    say({{"return": {{"status": status[command]}} if command in status else {{}}}})
    if command == "migrate-incoming":
        while os.read(fds[0], 65536):
            pass
        daemon, _ = channel.accept()
        if wrong != "has a silent daemon":
            daemon.sendall(b"\\xf5\\xf5\\x5f\\xf5" if wrong != "has a strange daemon" else b"1234")
    if command == "device_add" and wrong != "has a silent agent":
        say({{"event": "VSERPORT_CHANGE", "data": {{"id": "proof", "open": True}}}})
"""
WRONG_WAYS = (
    *("is silent", "crashes", "ends", "saves nothing", "takes no state"),
    *("has a silent daemon", "has a strange daemon", "has a silent agent"),
)


class Host:
    """A host whose QEMU goes wrong as `wrong` says for each accelerator. `ran`: how it was run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.appliance = folder / "appliance"
        self.appliance.mkdir()
        (folder / "current").symlink_to("appliance")
        self.work = folder / "work"
        self.work.mkdir()
        self.device = folder / "kvm"
        self.device.touch()
        self.device.chmod(0o666)
        self.acceleration = Acceleration(folder / "kvm.json", self.device)
        self.wrong: dict[str, str] = {}
        self.lie = ""
        self.trials = 0
        self.qemu = folder / "qemu"
        self.qemu.touch()
        self.said: list[str] = []
        monkeypatch.setattr(saving.features, "record", lambda *_: str(self.qemu))  # type: ignore[attr-defined]
        monkeypatch.setattr(freeze, "_arguments", self._arguments)
        monkeypatch.setattr(freeze, "_changed", lambda arguments, scratch: arguments)
        monkeypatch.setattr(saving, "_against_kvm", self._against_kvm)
        monkeypatch.setattr(thaw, "DEADLINE", 1.0)
        monkeypatch.setattr(freeze.Patience, "__new__", self._patience(freeze.Patience.__new__))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def _patience(self, made: Callable[..., freeze.Patience]) -> Callable[..., freeze.Patience]:
        return lambda of, *seconds: made(of, 1.0, 2.0)

    def _against_kvm(self) -> str:
        self.trials += 1
        return self.lie

    def _arguments(self, appliance: Path, qemu: str, memory_mib: int, accelerator: str, scratch: Path) -> list[str]:
        told = {"python": sys.executable, "accelerator": accelerator, "wrong": self.wrong.get(accelerator, "")}
        status = self.qemu.stat()
        self.qemu.write_text(FAKE_QEMU.format(**told, log=str(self.work.parent / "ran")).ljust(8000))
        self.qemu.chmod(0o755)
        os.utime(self.qemu, ns=(status.st_atime_ns, status.st_mtime_ns))  # to others it is the same QEMU
        return []

    @property
    def ran(self) -> list[str]:
        try:
            return (self.work.parent / "ran").read_text().splitlines()
        except FileNotFoundError:
            return []

    def prepare(self) -> None:
        saving.prepare(self.appliance, self.work, self.acceleration, self.said.append)

    def outdated(self) -> bool:
        return saving.outdated(self.appliance, self.acceleration, self.said.append)

    def fitting(self) -> list[str]:
        return [each for each in ("kvm", "tcg") if thaw.fits(self.appliance, GUEST_MEMORY_MIB, each)]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


# --- which ones ------------------------------------------------------------------------------------------------------
def test_where_kvm_works_its_state_is_all_that_a_user_needs(host: Host) -> None:
    host.prepare()
    assert host.ran == ["kvm boots", "kvm thaws"]
    assert host.fitting() == ["kvm"]
    assert thaw.state(host.appliance, "kvm").read_bytes() == b"state of kvm"
    assert host.acceleration.remembered() == "kvm"
    assert not host.outdated()


def test_what_root_builds_is_for_those_too_who_may_not_open_kvm(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host.prepare()
    assert host.fitting() == ["kvm", "tcg"]


def test_where_all_is_emulated_no_emulation_in_that_is_tried(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(saving, "QUICK", 0.0)
    host.prepare()
    assert host.fitting() == ["kvm"]


def test_where_kvm_lies_nothing_is_booted_with_it(host: Host) -> None:
    host.lie = "failed to set MSR 0x10a"
    for _ in range(2):
        host.prepare()
    assert host.ran == ["tcg boots", "tcg thaws"]
    assert host.fitting() == ["tcg"]
    assert host.trials == 1, "it is remembered"
    assert [line for line in host.said if "KVM does not work here (failed to set MSR 0x10a)" in line]


def test_without_a_device_kvm_is_not_even_tried(host: Host) -> None:
    host.device.unlink()
    host.prepare()
    assert (host.trials, host.fitting()) == (0, ["tcg"])


# --- whether one is kept ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", WRONG_WAYS)
def test_a_build_never_fails_for_kvm(host: Host, wrong: str) -> None:
    host.wrong["kvm"] = wrong
    host.prepare()
    assert host.fitting() == ["tcg"]
    assert not thaw.state(host.appliance, "kvm").exists()
    known = thaw.tried(host.appliance, GUEST_MEMORY_MIB, "kvm")
    assert known is not None
    assert known[0], "why"
    assert any(line.endswith("with KVM it will be booted each time") for line in host.said)
    assert host.acceleration.remembered() is None, "that says nothing of KVM"
    assert not host.outdated(), "it would go the same way again"


@pytest.mark.parametrize("wrong", [way for way in WRONG_WAYS if way != "crashes"])
def test_an_appliance_without_any_state_is_as_good(host: Host, wrong: str) -> None:
    host.wrong = {"kvm": wrong, "tcg": wrong}
    host.prepare()
    assert host.fitting() == []


def test_one_that_crashes_in_every_way_is_of_no_use(host: Host) -> None:
    host.wrong = {"kvm": "crashes", "tcg": "crashes"}
    with pytest.raises(UserError, match="No working init found"):
        host.prepare()


def test_a_state_that_does_not_come_to_life_takes_no_others_place(host: Host) -> None:
    host.prepare()
    host.wrong = {"kvm": "takes no state"}
    saving.renew(host.appliance, host.work, host.acceleration, host.said.append)
    assert not thaw.state(host.appliance, "kvm").exists()
    assert host.fitting() == ["tcg"]


# --- what it holds for -----------------------------------------------------------------------------------------------
def test_a_saved_vm_fits_only_what_it_was_saved_with(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host.prepare()
    assert not thaw.fits(host.appliance, GUEST_MEMORY_MIB // 2, "kvm")
    monkeypatch.setattr(thaw, "circumstances", lambda: [*acceleration.circumstances(), "another kernel"])
    assert host.fitting() == ["tcg"], "software emulation is the same everywhere"
    monkeypatch.undo()
    assert host.fitting() == ["kvm", "tcg"]
    thaw.state(host.appliance, "kvm").unlink()
    assert host.fitting() == ["tcg"]
    touch_later(host.qemu)
    assert host.fitting() == []


@pytest.mark.parametrize("record", ["", "{", "[]", '{"conditions": {}, "seconds": 0, "why": ""}', '{"why": 3}'])
def test_a_state_without_its_record_fits_nothing(host: Host, record: str) -> None:
    host.prepare()
    (host.appliance / "state-kvm.json").write_text(record)
    assert host.fitting() == []


def test_it_has_as_much_time_as_it_showed_to_need(host: Host) -> None:
    known = thaw.conditions(GUEST_MEMORY_MIB, "kvm", str(host.qemu))
    for seconds, patience in ((0.3, 20.0), (15.0, 150.0)):
        thaw.note(host.appliance, known, seconds)
        thaw.state(host.appliance, "kvm").touch()
        assert thaw.patience(host.appliance, GUEST_MEMORY_MIB, "kvm") == patience


# --- what doctor says of it ------------------------------------------------------------------------------------------
def test_why_machines_boot_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def why() -> tuple[str, bool]:
        return saving.missing(host.appliance, host.acceleration)

    assert why() == ("", False), "nobody knows yet whether KVM works"
    host.prepare()
    assert why() == ("", False)
    host.acceleration.distrust(thaw.state(host.appliance, "kvm"))
    assert why() == ("the saved one hung", True)
    host.wrong["kvm"] = "takes no state"
    saving.renew(host.appliance, host.work, host.acceleration, host.said.append)
    assert "could not be saved" in why()[0]
    assert not why()[1]
    monkeypatch.setattr(thaw, "circumstances", lambda: ["another kernel"])
    assert why() == ("none is saved that fits this kernel, processor and QEMU", True)
    host.device.unlink()
    assert why() == ("", False), "there is one for software emulation"


# --- made anew -------------------------------------------------------------------------------------------------------
def test_for_another_kernel_it_is_saved_anew(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.prepare()
    other = [*acceleration.circumstances(), "another kernel"]
    for module in (thaw, acceleration):
        monkeypatch.setattr(module, "circumstances", lambda: other)
    assert host.outdated()
    saving.renew(host.appliance, host.work, host.acceleration, host.said.append)
    assert host.fitting() == ["kvm"]
    assert not host.outdated()
    assert json.loads((host.appliance / "state-kvm.json").read_text())["conditions"]["host"] == other


def test_what_others_use_is_saved_anew_as_well_where_it_no_longer_fits(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host.prepare()
    thaw.state(host.appliance, "kvm").unlink()
    saving.renew(host.appliance, host.work, host.acceleration, host.said.append)
    assert host.ran.count("tcg boots") == 1, "that one fits still"
    touch_later(host.qemu)
    saving.renew(host.appliance, host.work, host.acceleration, host.said.append)
    assert host.fitting() == ["kvm", "tcg"]


def test_one_that_crashes_now_is_told(host: Host) -> None:
    host.prepare()
    host.wrong = {"kvm": "crashes", "tcg": "crashes"}
    saving.renew(host.appliance, host.work, host.acceleration, host.said.append)
    assert "No working init found" in host.said[-1]


def test_one_that_hung_is_saved_anew(host: Host) -> None:
    host.prepare()
    host.acceleration.distrust(thaw.state(host.appliance, "kvm"))
    assert host.acceleration.remembered() == "kvm"
    assert host.outdated()
    saving.renew(host.appliance, host.work, host.acceleration, host.said.append)
    assert not host.outdated()


@pytest.mark.parametrize("current", [True, False], ids=["it fits", "it does not"])
def test_appliance_build_saves_anew_what_does_not_fit(
    host: Host, monkeypatch: pytest.MonkeyPatch, current: bool
) -> None:
    class Built:
        path = host.appliance

    host.prepare()
    if not current:
        thaw.state(host.appliance, "kvm").unlink()
    before = len(host.ran)
    monkeypatch.setattr(build, "ensure", lambda progress: Built())
    monkeypatch.setattr(build, "acceleration", lambda: host.acceleration)
    build.refresh(host.said.append)
    assert (len(host.ran) == before) is current
    assert host.fitting() == ["kvm"]


def test_what_another_build_has_replaced_is_left_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Built:
        path = host.appliance

    (host.appliance.parent / "current").unlink()
    (host.appliance.parent / "current").symlink_to("another")
    monkeypatch.setattr(build, "ensure", lambda progress: Built())
    monkeypatch.setattr(build, "acceleration", lambda: host.acceleration)
    build.refresh(host.said.append)
    assert host.ran == []


def test_whoever_may_not_write_it_leaves_it_as_it_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Built:
        path = host.appliance

    monkeypatch.setattr(build, "ensure", lambda progress: Built())
    monkeypatch.setattr(build, "acceleration", lambda: host.acceleration)
    monkeypatch.setattr(os, "access", lambda path, how: False)
    build.refresh(host.said.append)
    assert host.ran == []


def test_an_error_of_the_host_fails_no_build(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Built:
        path = host.appliance

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "ensure", lambda progress: Built())
    monkeypatch.setattr(build, "acceleration", lambda: host.acceleration)
    monkeypatch.setattr(saving, "renew", full)
    build.refresh(host.said.append)
    assert "No space left" in host.said[-1]


def test_the_tiny_guest_that_cannot_be_run_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_box(*_: object) -> str:
        raise MountsafeError("bubblewrap is missing")

    monkeypatch.setattr("mountsafe.trios.run", no_box)
    assert saving._against_kvm() == ""
