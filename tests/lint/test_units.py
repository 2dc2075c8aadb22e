"""systemd's units: right for systemd, as closed as is known to work, and open where they must be."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SERVICE = "systemd/mountsafe.service"
APPLIANCE = "systemd/mountsafe-appliance.service"
AGENT = "systemd/user/mountsafe-agent.service"
MEDIUM = "systemd/mountsafe-medium-.service.d/mountsafe-medium.conf"  # of each mountsafe-medium-*.service
UNITS = (SERVICE, APPLIANCE, AGENT, MEDIUM, "systemd/mountsafe.slice")

# What `systemd-analyze security` says of them, times ten: 0 is closed, 100 is open. It may only fall.
EXPOSURE = {SERVICE: 35, MEDIUM: 48, APPLIANCE: 37, AGENT: 59}

# Settings that give a service a mount namespace, whose mounts the host does not see: exec_needs_mount_namespace() and
# what it calls, in systemd 252's src/core/execute.c.
OWN_MOUNTS = re.compile(
    r"^(Root(Directory|Image)|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths|TemporaryFileSystem"
    r"|Extension(Images|Directories)|Mount(Images|Flags|APIVFS)|Private(Tmp|Devices|Mounts|Users|IPC)|IPCNamespacePath"
    r"|Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)|ProcSubset|DynamicUser"
    r"|LogNamespace)=.*",
    re.MULTILINE,
)


def written(repository: Path, unit: str, folder: Path) -> Path:
    """Return a file of a unit that starts a program which exists."""
    text = (repository / unit).read_text().replace("/usr/local/bin/mountsafe", "/bin/true")
    if unit == MEDIUM:
        text = text.replace("[Service]\n", "[Service]\nExecStart=/bin/true\n")
    path = folder / ("mountsafe-medium-1.service" if unit == MEDIUM else Path(unit).name)
    path.write_text(text)
    return path


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_it(repository: Path, program: Callable[[str], str], tmp_path: Path, unit: str) -> None:
    """Every unit beside the others, with a program that exists; what verify says at all is a fault."""
    files = {each: written(repository, each, tmp_path) for each in UNITS}
    mode = "--user" if "user" in unit else "--system"
    command = [program("systemd-analyze"), mode, "verify", "--man=no", files[unit]]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "info"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", EXPOSURE)
def test_it_is_as_closed_as_it_was(repository: Path, program: Callable[[str], str], tmp_path: Path, unit: str) -> None:
    threshold = f"--threshold={EXPOSURE[unit]}"
    command = [program("systemd-analyze"), "security", "--no-pager", "--offline=true", threshold]
    command.append(written(repository, unit, tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", [MEDIUM, APPLIANCE])
def test_bubblewrap_finds_openat2_where_boxes_are_made(repository: Path, unit: str) -> None:
    """systemd's filter for RestrictSUIDSGID cannot look at its flags, and has it fail as in a kernel without it."""
    assert not re.search(r"^RestrictSUIDSGID=(?!no)", (repository / unit).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("unit", [SERVICE, MEDIUM])
def test_the_host_sees_what_it_mounts(repository: Path, unit: str) -> None:
    assert [found[0] for found in OWN_MOUNTS.finditer((repository / unit).read_text())] == []
