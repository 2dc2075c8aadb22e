"""`doctor`: what is missing or degraded on this host, and the command that repairs it."""

import grp
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

from mountsafe import distribution, landlock, sandbox
from mountsafe.appliance import build, hardware, kernel, saving
from mountsafe.appliance.acceleration import KVM
from mountsafe.cli import depth, screen
from mountsafe.cli.options import Json
from mountsafe.cli.typers import App, option
from mountsafe.encrypted import keys, serving
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.sealed import can_seal
from mountsafe.process import Guard, surroundings
from mountsafe.session import runtime
from mountsafe.session.mounter import require_fuse
from mountsafe.text import printable

OK, DEGRADED, BROKEN = "ok", "degraded", "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `state` is ok, degraded (slower or less, but it works) or missing (nothing works)."""

    what: str
    state: str
    detail: str = ""
    mend: str = ""


def register(app: App) -> None:
    """Add the verb."""
    app.command(epilog="Exit code: 0 if mounts can work, 5 if something they need is missing.")(doctor)


def doctor(
    sandbox: Annotated[
        bool, option("--sandbox", help="Show what holds the processes of each mount in, as the kernel tells it.")
    ] = False,
    json: Json = False,
) -> None:
    """Look at everything that a mount needs, and say how to mend what is missing."""
    if sandbox:
        depth.show(json)
        return
    findings = [check() for check in CHECKS]
    if json:
        screen.print_json([asdict(finding) for finding in findings])
    else:
        screen.table(["", "STATE", "DETAIL", "MEND"], [[f.what, f.state, f.detail, f.mend] for f in findings])
    if any(finding.state == BROKEN for finding in findings):
        raise SystemExit(int(ExitCode.DEPENDENCY))


def _program(name: str, package: str) -> Callable[[], Finding]:
    def check() -> Finding:
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        return (
            Finding(name, OK, path) if path else Finding(name, BROKEN, "not installed", distribution.install(package))
        )

    return check


def _module(name: str, package: str, missing: str = BROKEN, use: str = "") -> Callable[[], Finding]:
    def check() -> Finding:
        done = subprocess.run([sandbox.PYTHON, "-I", "-c", f"import {name}"], capture_output=True, check=False)
        if done.returncode == 0:
            return Finding(f"Python {name}", OK, sandbox.PYTHON)
        return Finding(
            f"Python {name}", missing, f"{sandbox.PYTHON} cannot import it{use}", distribution.install(package)
        )

    return check


def _plaintext() -> Finding:
    lacks = "encrypted media stay locked, and nothing can be written to"
    try:
        serving.require()
        lacks = "encrypted media stay locked"
        keys.require()
    except UserError as error:
        return Finding("unlocking", DEGRADED, f"{error.message}: {lacks}", error.hint)
    return Finding("unlocking", OK, "nbdkit and argon2 are there")


def _fuse() -> Finding:
    try:
        require_fuse()
    except UserError as error:
        return Finding("FUSE", BROKEN, error.message, error.hint)
    return Finding("FUSE", OK, "/dev/fuse can be opened")


def _kernel() -> Finding:
    try:
        chosen = kernel.best()
    except UserError as error:
        return Finding("kernel image", BROKEN, error.message, error.hint)
    return Finding("kernel image", OK, str(chosen.image))


def _box() -> Finding:
    box = sandbox.Box(1 << 20, 1 << 30, 16)
    command = box.command(["true"], sandbox.outer_uid())
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=surroundings(), process_group=Guard.group()
        )
    except OSError as error:
        return Finding("sandbox", BROKEN, str(error), distribution.install("bubblewrap"))
    if done.returncode == 0:
        return Finding("sandbox", OK, "bubblewrap makes one")
    hint = "sudo sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
    return Finding("sandbox", BROKEN, done.stderr.strip()[-200:], hint)


def _seal() -> Finding:
    """What keeps boxes from opening an image anew for writing."""
    mount, version = can_seal(), landlock.version()
    switch = "Switch Landlock on: lsm=landlock,... on the kernel's command line."
    if mount and version:
        return Finding("unchanged media", OK, f"read-only mounts of single files, and Landlock {version}")
    if mount:
        return Finding("unchanged media", DEGRADED, "read-only mounts of single files; no Landlock", switch)
    if version:
        detail = f"no read-only mounts of single files: Landlock {version} alone"
        return Finding("unchanged media", DEGRADED, detail, "Linux 5.12 or later has them.")
    return Finding("unchanged media", BROKEN, "neither read-only mounts of single files nor Landlock", switch)


def _appliance() -> Finding:
    found = build.find()
    if (found is None or not found.current) and (obstacle := build.obstacle()) is not None:
        return Finding("appliance", BROKEN, f"it cannot be built: {obstacle.message}", obstacle.hint)
    if found is None:
        return Finding("appliance", DEGRADED, "not built: the first mount does it", "mountsafe appliance build")
    if not found.current:
        return Finding("appliance", DEGRADED, "outdated: the next mount builds it", "mountsafe appliance build")
    why, mendable = saving.missing(found.path, build.acceleration())
    if why:
        sudo = "" if os.access(found.path.parent, os.W_OK) else "sudo "
        mend = f"{sudo}mountsafe appliance build" if mendable else ""
        return Finding("appliance", DEGRADED, f"virtual machines boot each time: {printable(why)}", mend)
    return Finding("appliance", OK, f"{found.path}, kernel {found.kernel_version}")


def _kvm() -> Finding:
    acceleration = build.acceleration()
    if why := acceleration.usable():
        return Finding("KVM", DEGRADED, f"{why}: virtual machines start slowly", _kvm_mend())
    verdict = acceleration.remembered()
    if verdict == "tcg":
        detail = "/dev/kvm answers, but a virtual machine did not start with it: software emulation is used"
        return Finding("KVM", DEGRADED, detail, "Enable nested virtualisation on the outer host, then reboot.")
    return Finding("KVM", OK, "works" if verdict else "can be opened; the first mount tries it")


def _kvm_mend() -> str:
    """Return what lets this user open KVM's device, where there is one and a machine could run with it."""
    if not KVM.exists() or not hardware.virtualises():
        return ""
    group = KVM.stat().st_gid
    if os.geteuid() != 0 and group and KVM.stat().st_mode & 0o060 == 0o060:
        return f"sudo usermod -aG {_group(group)} $USER, then log in again."
    return "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _space() -> Finding:
    place = build.location()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if build.find() is None and free < build.NEEDED:
        return Finding(
            "disk space", BROKEN, f"{free >> 20} MiB free in {place}", f"Free {build.NEEDED >> 20} MiB there."
        )
    return Finding("disk space", OK, f"{free >> 20} MiB free in {place}")


def _temporary() -> Finding:
    try:
        path = runtime.base()
    except UserError as error:
        return Finding("runtime folder", BROKEN, error.message, error.hint)
    writable = os.access(path, os.W_OK)
    return Finding(
        "runtime folder", OK if writable else BROKEN, str(path), "" if writable else f"Make {path} writable."
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    _program("qemu-system-x86_64", "qemu-system-x86"),
    _program("supermin", "supermin"),
    _program("bwrap", "bubblewrap"),
    _program("fusermount3", "fuse3"),
    _module("guestfs", "python3-guestfs"),
    _module("pyfuse3", "python3-pyfuse3"),
    _module("trio", "python3-trio"),
    _module("seccomp", "python3-seccomp"),
    _module("nbd", "python3-libnbd", DEGRADED, ": no qcow2, vmdk and the like"),
    _plaintext,
    _fuse,
    _kernel,
    _box,
    _seal,
    _appliance,
    _kvm,
    _space,
    _temporary,
)
