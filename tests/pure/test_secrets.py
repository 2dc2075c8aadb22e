"""Who reads a secret keeps its memory to itself."""

import os
import subprocess
import sys

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
