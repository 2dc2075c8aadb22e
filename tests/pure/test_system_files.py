"""Generated files come and go without a trace, whatever was there before and whenever a step fails."""

from pathlib import Path

import pytest

from mountsafe.errors import UserError
from mountsafe.system import files
from mountsafe.system.files import Files

RULES, MODPROBE = "/etc/udev/rules.d/61-x.rules", "/etc/modprobe.d/x.conf"
WANTED = {RULES: "one\n", MODPROBE: "two\n"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/modprobe.d").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "etc/modprobe.d/x.conf").write_bytes(b"theirs \xff\n")
    (tmp_path / "etc/modprobe.d/x.conf").chmod(0o640)
    return tmp_path


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    found = sorted(path for path in root.rglob("*") if path.relative_to(root).parts[:3] != ("var", "lib", "mountsafe"))
    return {str(path): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"") for path in found}


def install(root: Path, wanted: dict[str, str], force: bool = False) -> list[str]:
    made = Files(root)
    plan = made.plan_install(wanted, force)
    made.carry_out(plan)
    return [change.verb for change in plan.changes]


def uninstall(root: Path, force: bool = False) -> None:
    made = Files(root)
    made.carry_out(made.plan_uninstall(force))


def test_install_and_uninstall_leave_every_byte_as_it_was(root: Path) -> None:
    before = snapshot(root)
    assert install(root, WANTED) == ["create", "replace"]
    assert (root / RULES[1:]).read_text() == "one\n"
    assert (root / RULES[1:]).stat().st_mode & 0o777 == 0o644
    uninstall(root)
    assert snapshot(root) == before


def test_a_second_install_keeps_what_is_right_and_forgets_nothing(root: Path) -> None:
    before = snapshot(root)
    install(root, WANTED)
    assert install(root, WANTED) == ["keep", "keep"]
    assert install(root, {RULES: "three\n"}) == ["replace", "replace"]
    assert (root / MODPROBE[1:]).read_bytes() == b"theirs \xff\n"
    uninstall(root)
    assert snapshot(root) == before
    uninstall(root)
    assert snapshot(root) == before


def test_a_plan_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    Files(root).plan_install(WANTED)
    assert snapshot(root) == before
    assert not (root / files.RECORD).exists()


def test_what_somebody_changed_is_left_alone_unless_forced(root: Path) -> None:
    before = snapshot(root)
    install(root, WANTED)
    (root / RULES[1:]).write_text("mine\n")
    for act in (lambda: install(root, WANTED), lambda: uninstall(root)):
        with pytest.raises(UserError, match="was changed"):
            act()
    assert (root / RULES[1:]).read_text() == "mine\n"
    assert install(root, WANTED, force=True) == ["replace", "keep"]
    uninstall(root, force=True)
    assert snapshot(root) == before


def test_what_was_removed_by_hand_comes_back(root: Path) -> None:
    install(root, WANTED)
    (root / RULES[1:]).unlink()
    assert install(root, WANTED) == ["create", "keep"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_step_that_fails_undoes_those_before_it(root: Path, failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(root)
    real, calls = files.put, [0]

    def put(path: Path, content: bytes | None, mode: int) -> None:
        calls[0] += 1
        if calls[0] == failing + 1:
            raise OSError(28, "No space left on device")
        real(path, content, mode)

    with monkeypatch.context() as patch:
        patch.setattr(files, "put", put)
        with pytest.raises(OSError, match="No space"):
            install(root, WANTED)
    after = snapshot(root)
    assert {path: after[path] for path in after if Path(path).is_file()} == {
        path: before[path] for path in before if Path(path).is_file()
    }
    assert not (root / files.RECORD).exists()


def test_a_machine_that_stopped_in_the_middle_can_go_on_either_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(root)

    class PowerCut(BaseException):
        pass

    real, calls = files.put, [0]

    def put(path: Path, content: bytes | None, mode: int) -> None:
        calls[0] += 1
        if calls[0] > 2:
            raise PowerCut
        real(path, content, mode)

    for go_on in (lambda: install(root, WANTED), lambda: None):
        calls[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(files, "put", put)
            with pytest.raises(PowerCut):
                install(root, WANTED)
        assert (root / RULES[1:]).exists()
        go_on()
        uninstall(root)
        assert snapshot(root) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "files": {"a": 1}, "folders": []}'])
def test_a_record_that_cannot_be_read_is_an_error_and_nothing_is_touched(root: Path, text: str) -> None:
    before = snapshot(root)
    (root / files.RECORD).parent.mkdir()
    (root / files.RECORD).write_text(text)
    with pytest.raises(UserError, match="cannot read"):
        install(root, WANTED)
    assert snapshot(root) == before


def test_a_link_in_the_place_of_a_file_is_not_followed(root: Path) -> None:
    (root / "etc/udev/rules.d").mkdir(parents=True)
    (root / RULES[1:]).symlink_to(root / "etc/modprobe.d/x.conf")
    with pytest.raises(UserError, match="symbolic link"):
        install(root, WANTED)
