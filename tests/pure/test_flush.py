"""The script of the server that writes: what the medium did not keep once it never has."""

import importlib
import sys
import types
from typing import Any

import pytest

from mountsafe.encrypted.tally import Tally
from mountsafe.errors import MediumError


class Disk:
    """One whose kernel tells an error once, as Linux does, and takes the pages for written from then on."""

    def __init__(self) -> None:
        self.fails = False
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1
        if self.fails:
            self.fails = False
            raise MediumError("the medium did not keep what was written: Input/output error")


def test_a_flush_that_failed_is_never_answered_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbdkit", types.ModuleType("nbdkit"))
    monkeypatch.delitem(sys.modules, "mountsafe.encrypted.serve", raising=False)
    serve: Any = importlib.import_module("mountsafe.encrypted.serve")
    monkeypatch.delitem(sys.modules, "mountsafe.encrypted.serve")
    disk, tally = Disk(), Tally.made()
    serve._writable = disk, tally
    serve.flush(True, 0)
    disk.fails = True
    for _ in range(3):
        with pytest.raises(MediumError):
            serve.flush(True, 0)
    assert disk.flushed == 2
    assert tally.read().failures == 1
    tally.close()
