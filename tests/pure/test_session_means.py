"""What a session process has loaded when it is closed: nothing that it will have no use for."""

import json
import subprocess
import sys

import pytest

from mountsafe import codec
from mountsafe.session.conversation import SessionSettings

LOADED = """
import json, sys
from mountsafe import codec
from mountsafe.session.conversation import SessionSettings
from mountsafe.session.server import Means
Means.load(codec.read(SessionSettings, json.loads(sys.argv[1])))
print(*sorted(name for name in sys.modules if name.startswith(("mountsafe", "pyfuse3"))))
"""
TO_CHANGE = {f"mountsafe.filesystem.{name}" for name in ("changing", "journal", "changelog", "replay")}
TO_DECRYPT = {"mountsafe.medium.decrypted", "mountsafe.medium.aes"}


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("decrypts", [False, True])
def test_what_a_process_has_no_use_for_is_not_loaded(writes: bool, decrypts: bool) -> None:
    settings = json.dumps(codec.plain(SessionSettings(3, 4, decrypts, writes)))
    command = [sys.executable, "-c", LOADED, settings]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert loaded & TO_CHANGE == (TO_CHANGE if writes else set())
    assert loaded & TO_DECRYPT == (TO_DECRYPT if decrypts else set())


@pytest.mark.parametrize("fuse", [False, True])
def test_a_stream_is_served_without_libfuse(fuse: bool) -> None:
    settings = json.dumps(codec.plain(SessionSettings(3, 4, fuse=fuse)))
    command = [sys.executable, "-c", LOADED, settings]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert ("pyfuse3" in loaded) == fuse
    assert "mountsafe.filesystem.streaming" in loaded
