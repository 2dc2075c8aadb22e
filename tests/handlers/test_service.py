"""What was approved is done to that very medium, shown to that very user, or not at all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock, call

import pytest
import trio

from mountsafe import trios
from mountsafe.daemon import service as serving
from mountsafe.daemon.service import Service
from mountsafe.errors import UserError
from mountsafe.hotplug.devices import Device
from mountsafe.medium.claim import Swapped
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision, Options, Verdict
from mountsafe.session.messages import KeyForm
from mountsafe.system import trusting


def keeper(uid: int) -> Any:
    device = SimpleNamespace(name="sdb", node="/dev/sdb", drive="")
    told = Mock(return_value={"mounts": []})
    return SimpleNamespace(
        device=device,
        person=SimpleNamespace(uid=uid),
        told=told,
        open=Mock(),
        eject=AsyncMock(),
        unlock=AsyncMock(),
        lock=AsyncMock(),
    )


@pytest.mark.parametrize("method", ["Open", "Eject", "Lock"])
@pytest.mark.parametrize("meanwhile", ["another medium", "another user", "gone", "nothing"])
def test_an_approval_is_for_one_medium(tmp_path: Path, method: str, meanwhile: str) -> None:
    async def ask() -> Any:
        service = Service(tmp_path, Mock(), 4)
        kept = service._keepers["sdb"] = keeper(1000)
        request = await service.asked(method, "/dev/sdb")
        assert (request.device, request.owner) == ("sdb", 1000)
        match meanwhile:
            case "another medium":
                service._keepers["sdb"] = keeper(1000)
            case "another user":
                kept.person = SimpleNamespace(uid=1001)
            case "gone":
                service._keepers.clear()
        if meanwhile == "nothing":
            await request.run()
        else:
            with pytest.raises(Swapped):
                await request.run()
        return kept

    kept = trios.run(ask)
    assert (kept.open.called or kept.eject.called or kept.lock.called) == (meanwhile == "nothing")


@pytest.mark.parametrize(
    "meanwhile", ["another medium", "another user", "nobody", "a locked screen", "gone", "nothing"]
)
def test_an_approved_key_is_for_one_medium_and_for_who_sits_there(tmp_path: Path, meanwhile: str) -> None:
    async def ask() -> Any:
        seat: Any = SimpleNamespace(uid=1000, locked=False)
        service = Service(tmp_path, SimpleNamespace(person=lambda: seat), 4)  # type: ignore[arg-type]
        kept = service._keepers["sdb"] = keeper(1001)
        request = await service.asked("Unlock", "/dev/sdb", "passphrase", 7)
        assert (request.device, request.owner) == ("sdb", 1000), "it is shown to who is at the seat"
        match meanwhile:
            case "another medium":
                service._keepers["sdb"] = keeper(1001)
            case "another user":
                seat = SimpleNamespace(uid=1002, locked=False)
            case "nobody":
                seat = None
            case "a locked screen":
                seat = SimpleNamespace(uid=1000, locked=True)
            case "gone":
                service._keepers.clear()
        if meanwhile == "nothing":
            await request.run()
        else:
            with pytest.raises(UserError):
                await request.run()
        return kept

    kept = trios.run(ask)
    assert kept.unlock.call_args_list == ([call(KeyForm.PASSPHRASE, 7, 1000)] if meanwhile == "nothing" else [])


@pytest.mark.parametrize(
    ("seat", "form"),
    [
        (None, "passphrase"),
        (SimpleNamespace(uid=1000, locked=True), "passphrase"),
        (SimpleNamespace(uid=1, locked=False), "x"),
    ],
)
def test_no_key_is_asked_about_that_nobody_could_use(tmp_path: Path, seat: Any, form: str) -> None:
    async def ask() -> None:
        service = Service(tmp_path, SimpleNamespace(person=lambda: seat), 4)  # type: ignore[arg-type]
        service._keepers["sdb"] = keeper(1000)
        with pytest.raises(UserError):
            await service.asked("Unlock", "/dev/sdb", form, 7)

    trios.run(ask)


def test_trust_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rules = tmp_path / "file/mountsafe"
    facts = Facts(device="sdb", fstype="vfat", size=1)
    with pytest.raises(UserError, match="cannot write to"):
        trusting.put_in_force(rules, lambda: trusting.to_trust(rules, facts, Verdict.SANDBOX))


@pytest.mark.parametrize("meanwhile", ["gone", "another medium"])
def test_a_medium_that_changes_while_trust_is_changed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Two partitions are kept apart: while the first is seen off, the second goes, and another may come."""
    monkeypatch.setattr(serving.trusting, "put_in_force", Mock())
    monkeypatch.setattr(serving.inforce, "look_again", Mock())
    first, second, new = (
        Mock(device=SimpleNamespace(name=name), lost=False, end=AsyncMock()) for name in ("sdb1", "sdb2", "sdb2")
    )

    async def change() -> dict[str, Any]:
        service = Service(tmp_path, Mock(), 4)
        monkeypatch.setattr(service, "_reload", AsyncMock())
        monkeypatch.setattr(service, "_look_at", Mock())
        service._keepers = {"sdb1": first, "sdb2": second}

        async def end() -> None:
            del service._keepers["sdb2"]
            if meanwhile == "another medium":
                service._keepers["sdb2"] = new

        first.end = end
        async with trio.open_nursery() as nursery:
            service._nursery = nursery
            nodes: Any = [SimpleNamespace(name=name, disk="sdb") for name in service._keepers]
            await service._change_trust(nodes, Mock())
        return dict(service._keepers)

    left = trios.run(change)
    assert left == ({"sdb2": new} if meanwhile == "another medium" else {})
    assert not second.end.called
    assert not new.end.called


@pytest.mark.parametrize("now", ["the same", "other words, decided alike", "other words", "other rules", "another one"])
def test_what_was_decided_by_the_last_mediums_words_is_decided_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    """The number of a card is the kernel's and changes at once; what udev knows of the last one stays for a moment."""

    def device(fstype: str, sequence: int) -> Device:
        facts = Facts(device="sdb", fstype=fstype, size=512)
        return Device("sdb", "sdb", "/dev/sdb", (8, 16), {"DISKSEQ": str(sequence)}, (), facts)

    shown = Decision(Verdict.SANDBOX, "", "", "external", Options())
    refused = Decision(Verdict.REFUSE, "no jfs", "", "it is jfs", Options())
    then = {
        "the same": (device("ext4", 7), shown),
        "other words, decided alike": (device("vfat", 7), shown),
        "other words": (device("jfs", 7), refused),
        "other rules": (device("ext4", 7), refused),  # they are for what is plugged in from then on
        "another one": (device("ext4", 8), shown),
    }[now]
    monkeypatch.setattr(serving.Keeper, "run", AsyncMock())
    monkeypatch.setattr(serving.Keeper, "end", AsyncMock())

    async def look() -> tuple[Any, Any]:
        service = Service(tmp_path, Mock(), 4)
        service._policy = Mock()
        async with trio.open_nursery() as nursery:
            service._nursery = nursery
            looks = iter([(device("ext4", 7), shown), then])
            monkeypatch.setattr(service, "_found", lambda _: (lambda one: ([one[0]], [one]))(next(looks)))
            await service._agree("sdb")
            before = service._keepers["sdb"]
            await service._agree("sdb")
        return before, service._keepers["sdb"]

    before, after = trios.run(look)
    assert (before is after) == (now in ("the same", "other words, decided alike", "other rules"))
    assert after.decision == (shown if before is after else then[1])


def test_what_was_pulled_out_too_early_is_told_until_another_medium_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = Decision(Verdict.SANDBOX, "", "", "external", Options())
    device = Device("sdb", "sdb", "/dev/sdb", (8, 16), {}, (), Facts(device="sdb", fstype="ext4", size=512))
    monkeypatch.setattr(serving.Keeper, "run", AsyncMock())
    monkeypatch.setattr(serving.Keeper, "end", AsyncMock())
    monkeypatch.setattr(serving.Keeper, "lost", True)

    async def look() -> None:
        service = Service(tmp_path, Mock(), 4)
        service._policy = Mock()
        async with trio.open_nursery() as nursery:
            service._nursery = nursery
            present = [device]
            monkeypatch.setattr(service, "_found", lambda _: (present, [(each, decision) for each in present]))
            await service._agree("sdb")
            assert len(service.media()) == 1
            present.clear()
            await service._agree("sdb")
            with trio.fail_after(60):
                while not service._lost:  # noqa: ASYNC110  # nothing tells of it
                    await trio.sleep(0.01)
            assert [each["device"] for each in service.media()] == ["sdb"]
            present.append(device)
            await service._agree("sdb")
            assert len(service.media()) == 1
            assert service._lost == {}

    trios.run(look)


def test_of_media_that_were_pulled_out_too_early_a_few_are_told(tmp_path: Path) -> None:
    async def see_off() -> None:
        service = Service(tmp_path, Mock(), 4)
        for number in range(20):
            keeper: Any = Mock(end=AsyncMock(), lost=True, told=dict)
            keeper.device.name = f"sd{number}"
            await service._see_it_off(keeper, trio.Event())
        assert list(service._lost) == [f"sd{number}" for number in range(12, 20)]

    trios.run(see_off)
