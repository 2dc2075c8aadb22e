"""A virtual machine that is started again: not with another medium than the one that was judged and mounted."""

import os
from pathlib import Path

import pytest

from mountsafe.medium import swapped
from mountsafe.medium.source import Medium
from mountsafe.session.storage import Storage


@pytest.mark.parametrize("now", [5, 6])
async def test_no_virtual_machine_is_given_the_next_medium(monkeypatch: pytest.MonkeyPatch, now: int) -> None:
    monkeypatch.setattr(swapped, "number_of", lambda _: now)
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        monkeypatch.setattr(Storage, "_measure", lambda *_: None)
        storage = Storage(Medium(Path("/dev/sdb"), fd, 512, block_device=True, sequence=5), None)  # type: ignore[arg-type]
        if now == 5:
            async with storage.lent(to_qemu=True) as lent:
                assert lent == fd
        else:
            with pytest.raises(swapped.Exchanged):
                async with storage.lent(to_qemu=True):
                    pass
    finally:
        os.close(fd)
