"""The appliance as an ordinary user builds it, with the real supermin, and a VM of it, booted and thawed."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountsafe.appliance import features

USER, GROUP = "nobody", "nogroup"

BUILD = """
import dataclasses, json
from mountsafe.appliance import build
print(json.dumps(dataclasses.asdict(build.build(lambda line: None)), default=str))
assert build.find().current
"""

# Builds with another copy of the package, in another place, and says why that failed.
FAIL = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ["MOUNTSAFE_APPLIANCE"] = sys.argv[2]
from mountsafe.appliance import build
from mountsafe.errors import UserError
try:
    build.build(lambda line: None)
except UserError as error:
    print(error.message)
assert build.find() is None
"""

# Launches a VM as mountsafe's own process does, with the second argument's accelerator; the third says whether to thaw.
LAUNCH = """
import os, sys, guestfs
from collections.abc import Iterator
from pathlib import Path
from mountsafe.appliance import hardware, thaw
from mountsafe.limits import GUEST_MEMORY_MIB
appliance, accelerator, thawing, monitor = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "thaw", "monitor"
handle = guestfs.GuestFS(python_return_dict=True)
handle.set_backend("direct")
handle.set_backend_settings(["force_" + accelerator])
handle.set_recovery_proc(False)
handle.set_memsize(GUEST_MEMORY_MIB)
handle.set_smp(hardware.PROCESSORS)
handle.set_path(str(appliance))
for option, value in hardware.options(accelerator):
    handle.config(option, value)
handle.config("-qmp", f"unix:{monitor},server=on,wait=off")
handle.add_drive_opts("/dev/null", format="raw", readonly=True)
if thawing:
    assert thaw.fits(appliance, GUEST_MEMORY_MIB, accelerator)
    handle.config(*thaw.INCOMING)
    child = thaw.begin(thaw.state(appliance, accelerator), monitor)
handle.launch()
if thawing:
    assert os.waitpid(child, 0)[1] == 0
handle.ping_daemon()
handle.close()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Path]:
    """A folder of the ordinary user's, with a copy of the package: the checkout may be closed to him."""
    home = Path("/var/tmp") / f"mountsafe-{tmp_path_factory.getbasetemp().name}-{os.getpid()}"
    shutil.copytree(repository / "mountsafe", home / "mountsafe", ignore=shutil.ignore_patterns("__pycache__"))
    if os.geteuid() == 0:
        for path in (home, *home.rglob("*")):
            shutil.chown(path, USER, GROUP)
    yield home
    shutil.rmtree(home)


def run(home: Path, code: str, *arguments: str) -> str:
    """Run Python as the ordinary user and return what it prints."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [features.PYTHON, "-c", code, *arguments]
    user, group = (USER, GROUP) if os.geteuid() == 0 else (None, None)
    done = subprocess.run(
        command,
        user=user,
        group=group,
        extra_groups=[] if user else None,
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def appliance(home: Path, program: object) -> dict[str, object]:
    """The built appliance's description."""
    assert callable(program)
    for name in ("supermin", "qemu-system-x86_64"):
        program(name)
    return dict(json.loads(run(home, BUILD)))


def saved_with(appliance: dict[str, object]) -> str:
    """Return the accelerator that a VM is saved with: KVM where that works for the user, and then no other."""
    (state,) = Path(str(appliance["path"])).glob("state-*.json")
    return state.stem.removeprefix("state-")


def test_a_user_builds_it_in_his_cache(home: Path, appliance: dict[str, object]) -> None:
    path = Path(str(appliance["path"]))
    assert path.parent == home / ".cache/mountsafe/appliance"
    assert {entry.name for entry in path.iterdir()} == {
        *("kernel", "initrd", "root", "README.fixed", "info.json", "qemu-cache"),
        *(f"state-{saved_with(appliance)}", f"state-{saved_with(appliance)}.json"),
    }
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted(["current", "lock", path.name])
    assert list((path / "qemu-cache").glob("*.stat"))
    types = appliance["filesystems"]
    assert isinstance(types, list)
    assert {"ext4", "vfat", "exfat", "iso9660", "xfs", "btrfs", "hfsplus"} <= set(types)
    assert not {"nfs", "proc", "overlay"} & set(types)


def test_it_boots(home: Path, appliance: dict[str, object]) -> None:
    run(home, LAUNCH, str(appliance["path"]), saved_with(appliance), "boot")


def test_it_thaws(home: Path, appliance: dict[str, object]) -> None:
    run(home, LAUNCH, str(appliance["path"]), saved_with(appliance), "thaw")


def test_a_build_whose_machine_has_no_init_fails_with_the_kernels_words(home: Path, program: object) -> None:
    """It starts nothing, and would not do so later."""
    assert callable(program)
    for name in ("supermin", "qemu-system-x86_64"):
        program(name)
    broken = home / "broken"
    shutil.copytree(home / "mountsafe", broken / "mountsafe", ignore=shutil.ignore_patterns("__pycache__"))
    (broken / "mountsafe/appliance/init").write_text("#!/nowhere\n")
    if os.geteuid() == 0:
        for path in (broken, *broken.rglob("*")):
            shutil.chown(path, USER, GROUP)
    assert "Kernel panic - not syncing" in run(home, FAIL, str(broken), str(home / "place"))
    assert [path.name for path in (home / "place").iterdir()] == ["lock"]
