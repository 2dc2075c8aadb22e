"""Who reads a secret keeps its memory to itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mountsafe.cli.unlocking import Keys

READ = """
import ctypes, os, resource, sys
from mountsafe.cli.unlocking import Keys, secret_of
from mountsafe.session.messages import Locked

form, fd = secret_of(Keys(fd=0), Locked("it", "LUKS2", "", "", "", ""), 1)
assert os.read(fd, 100) == b"secret"
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))  # PR_GET_DUMPABLE
"""


def test_a_command_that_has_a_secret_is_not_dumped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ], input=b"secret", capture_output=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.split() == [b"0", b"0", b"0"]


@pytest.mark.parametrize(
    ("keys", "fstype", "named"),
    [
        (Keys(), None, False),
        (Keys(recovery=True), None, False),
        (Keys(fd=0), "VeraCrypt", True),
        (Keys((Path("key"),)), None, True),
        (Keys((Path("photo"),)), "VeraCrypt", False),  # beside a passphrase, which somebody types
    ],
)
def test_a_key_is_named_if_nobody_has_to_type_one(keys: Keys, fstype: str | None, named: bool) -> None:
    assert keys.named(fstype) is named
