"""Runs inside the machine, as root and as the user at the seat: executes what comes over a virtio port. Stdlib only.

A question is a line of JSON, {"id", "argv", "input", "seconds"}, and so is its answer, {"id", "code", "out", "err"};
bytes are in base64. The first line tells which boot this is. One question at a time.
"""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TOO_LONG = 124  # the exit code of a command that was ended, as timeout(1) has it


def answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        process = subprocess.Popen(
            question["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return {"id": question["id"], "code": 127, "out": "", "err": _text(str(error).encode())}
    try:
        out, err = process.communicate(base64.b64decode(question["input"]), timeout=question["seconds"])
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = TOO_LONG
    return {"id": question["id"], "code": code, "out": _text(out), "err": _text(err)}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main(port: str) -> None:
    with open(port, "r+b", buffering=0) as channel:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        rest = b""
        message: dict[str, Any] = {"boot": boot}
        while True:
            line = json.dumps(message).encode() + b"\n"
            while line:
                line = line[channel.write(line) :]
            while b"\n" not in rest:
                data = channel.read(1 << 16)
                if not data:
                    return
                rest += data
            first, rest = rest.split(b"\n", 1)
            message = answer(json.loads(first))


if __name__ == "__main__":
    main(sys.argv[1])
