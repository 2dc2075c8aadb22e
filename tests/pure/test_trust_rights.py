"""Trust that is asked of the daemon, with the rights of its unit: root may not enter polkit's folder, if it is that."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing

POLKITS = 61000
FOLDERS = ("udev/rules.d", "polkit-1/rules.d", "modprobe.d", "mountsafe")

# What systemd-run does: somebody with all rights runs the words behind "--", and we end as they do.
STAND_IN = """#!/usr/bin/bash
until [[ $1 == -- ]]; do shift; done; shift
printf '%q ' "$@" >{folder}/order
exit "$(cat {folder}/done)"
"""
MANAGER = 'while order=$(cat "$0/order"); do bash -c "$order" >>"$0/said" 2>&1; echo $? >"$0/done"; done'

SCENE = """
cd {repository}
for name in {folders}; do
    mkdir -p /etc/$name {folder}/etc/$name && mount --bind {folder}/etc/$name /etc/$name
done
mkdir -p /var/lib/mountsafe {folder}/state && mount --bind {folder}/state /var/lib/mountsafe
{python} -m mountsafe policy install
chown {polkits} /etc/polkit-1/rules.d && chmod 700 /etc/polkit-1/rules.d
mkfifo {folder}/order {folder}/done
bash -c '{manager}' {folder} </dev/null >/dev/null 2>&1 &
setpriv --bounding-set=-all,{capabilities} --inh-caps=-all --no-new-privs {python} - <<'END'
from pathlib import Path
from mountsafe.errors import UserError
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Verdict
from mountsafe.system import trusting, units
units.SYSTEMD = Path("{systemd}")
facts = Facts(device="sdz", serial="A123", vendor="v", model="m", bus="usb", fstype="vfat", size=1)
rules = Path("/etc/mountsafe")
try:
    trusting.put_in_force(rules, lambda: trusting.to_trust(rules, facts, Verdict.KERNEL))
except UserError as error:
    print("refused:", error.message)
END
"""


@pytest.mark.parametrize("systemd", [True, False])
def test_what_the_daemon_may_not_do_the_service_manager_does(repository: Path, tmp_path: Path, systemd: bool) -> None:
    """Without one it is said, and nothing has changed."""
    if os.geteuid() != 0:
        missing("root")
    unit = (repository / "systemd/mountsafe.service").read_text()
    (capabilities,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    program = tmp_path / "bin/systemd-run"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(folder=tmp_path))
    program.chmod(0o755)
    scene = SCENE.format(
        repository=repository,
        folder=tmp_path,
        folders=" ".join(FOLDERS),
        python=sys.executable,
        polkits=POLKITS,
        manager=MANAGER,
        capabilities=",".join("+" + name.removeprefix("CAP_").lower() for name in capabilities.split()),
        systemd=tmp_path if systemd else tmp_path / "none",
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "bash", "-e", "-c", scene],
        env={"PATH": f"{program.parent}:/usr/bin:/bin:/usr/sbin:/sbin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    udev = (tmp_path / "etc/udev/rules.d/61-mountsafe.rules").read_text()
    trusted = tmp_path / "etc/mountsafe/policy.d/50-trusted.toml"
    if systemd:
        assert "refused" not in done.stdout
        assert "A123" in udev
        assert "A123" in trusted.read_text()
    else:
        assert "refused: /etc/polkit-1/rules.d" in done.stdout
        assert "A123" not in udev
        assert not trusted.exists()
