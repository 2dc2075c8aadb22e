"""Unmounting, as it is asked for: by a client, at the session's end and at the supervisor's, sometimes all at once."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from mountsafe.mountinfo import Mounted, mounted
from mountsafe.session import mounter
from mountsafe.session.attached import FSTYPE, MountId
from mountsafe.session.mounter import FuseMount


class FakeKeeper:
    """In the place of fusermount3's process."""

    let_goes = 0

    def __init__(self) -> None:
        self._second = Barrier(2)

    def let_go(self) -> None:
        self.let_goes += 1
        with suppress(BrokenBarrierError):
            self._second.wait(0.2)  # for another one that should not come


def test_many_unmount_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unmounted: list[Mounted] = []
    there = Mounted((0, 52), str(tmp_path), FSTYPE, "x", id=7)
    monkeypatch.setattr(mounter, "find", lambda which: None if unmounted else there)
    monkeypatch.setattr(mounter, "_unmount_at", lambda found, which, lazy: unmounted.append(found) or "")
    keeper = FakeKeeper()
    mount = FuseMount(MountId(7, 0, (0, 52), "x"), -1, True, keeper)  # type: ignore[arg-type]
    together = Barrier(8)

    def one(_: int) -> None:
        together.wait()
        mount.unmount()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert unmounted == [there]
    assert keeper.let_goes == 1


@pytest.mark.parametrize(
    ("line", "point"),
    [
        ("36 35 0:52 / /mnt/a rw,nosuid - fuse.mountsafe x ro", "/mnt/a"),
        (r"36 35 0:52 / /mnt/a\040b\011c\134d rw,nosuid shared:1 - fuse.mountsafe x ro", "/mnt/a b\tc\\d"),
    ],
)
def test_mount_points_are_read_as_the_kernel_writes_them(tmp_path: Path, line: str, point: str) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(line + "\n")
    assert mounted(table) == [Mounted((0, 52), point, "fuse.mountsafe", "x", ("rw", "nosuid"), 36, 35, ("ro",))]
