"""What decides whether an appliance is current, what a build refuses, chooses and leaves behind. No supermin runs."""

import fcntl
import gzip
import lzma
import os
import pwd
import shutil
import struct
import tarfile
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from mountsafe.appliance import build, contents, freeze, kernel, modules, saving
from mountsafe.appliance.dpkg import Database
from mountsafe.appliance.inputs import CODE, PACKAGE, PARTS, Inputs
from mountsafe.cli import diagnose
from mountsafe.errors import ExitCode, MountsafeError, UserError

VERSION = "6.1.0-9-amd64"


def paragraph(name: str, version: str = "1.0", depends: str = "", provides: str = "", state: str = "ok") -> str:
    lines = [f"Package: {name}", f"Status: install {state} {'installed' if state == 'ok' else 'config-files'}"]
    lines += [
        f"Version: {version}",
        f"Depends: {depends}" if depends else "",
        f"Provides: {provides}" if provides else "",
    ]
    return "\n".join(filter(None, lines))


def install(root: Path, *paragraphs: str) -> None:
    """Write dpkg's database."""
    status = root / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text("\n\n".join(paragraphs) + "\n")


PROGRAMS = (paragraph("dash", depends="libc6 (>= 2.3), debconf | debconf-2.0"), paragraph("libc6", "2.36"))


@pytest.fixture
def host(tmp_path: Path) -> Inputs:
    """A small host: one kernel, libguestfs's parts, two packages and an optional one that is absent."""
    root, package = tmp_path / "root", tmp_path / "mountsafe"
    files = {
        f"boot/vmlinuz-{VERSION}": "kernel",
        f"lib/modules/{VERSION}/modules.dep": "kernel/fs/ext4/ext4.ko:\n",
        **{f"usr/lib/x86_64-linux-gnu/guestfs/supermin.d/{part}": "libxml2\ncurl\n" for part in PARTS},
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    install(root, *PROGRAMS, paragraph("libxml2"))
    (package / "appliance").mkdir(parents=True)
    for folder in ("agent", "wire"):
        (package / folder).mkdir()
    for name in (*CODE, "appliance/init"):
        (package / name).write_text(f"# {name}\n")
    (package / "appliance/packages").write_text("# data\ndash  # a shell\nntfs-3g optional  # ntfs\n")
    return Inputs(root, package, Database(root))


@pytest.fixture
def place(tmp_path: Path, host: Inputs, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `build` puts its result; it sees `host`, and its supermin writes three small files."""
    place = tmp_path / "place"
    monkeypatch.setenv("MOUNTSAFE_APPLIANCE", str(place))
    monkeypatch.setattr(build, "Inputs", lambda: Inputs(host.root, host.package, Database(host.root)))
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/usr/bin/{name}")
    monkeypatch.setattr(modules, "prune", lambda source, target: shutil.copytree(source, target))
    monkeypatch.setattr(modules, "filesystems", lambda folder: ("ext4",))
    monkeypatch.setattr(contents, "prepare", lambda inputs, folder, packages: folder.mkdir())
    monkeypatch.setattr(build, "_run_supermin", pretend_supermin)
    monkeypatch.setattr(saving, "prepare", lambda output, work, acceleration, progress: None)
    return place


def pretend_supermin(supermin: str, work: Path, output: Path, chosen: kernel.Kernel, pruned: Path) -> None:
    output.mkdir(mode=0o700)
    for name in ("kernel", "initrd", "root"):
        (output / name).write_text(name)


def versions(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name not in ("lock", "current"))


# --- fingerprint -----------------------------------------------------------------------------------------------------
def touch_later(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def upgrade(host: Inputs) -> None:
    install(host.root, PROGRAMS[0], paragraph("libc6", "2.37"), paragraph("libxml2"))


def add_optional(host: Inputs) -> None:
    install(host.root, *PROGRAMS, paragraph("libxml2"), paragraph("ntfs-3g"))


def add_kernel(host: Inputs) -> None:
    shutil.copytree(host.root / f"lib/modules/{VERSION}", host.root / "lib/modules/6.1.0-10-amd64")
    (host.root / "boot/vmlinuz-6.1.0-10-amd64").touch()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda host: (host.package / "agent/tree.py").write_text("# other\n"), id="agent"),
        pytest.param(lambda host: (host.package / "wire/frames.py").write_text("# other\n"), id="wire"),
        pytest.param(lambda host: (host.package / "appliance/init").write_text("# other\n"), id="init"),
        pytest.param(lambda host: touch_later(host.root / f"boot/vmlinuz-{VERSION}"), id="kernel-reinstalled"),
        pytest.param(lambda host: touch_later(host.root / f"lib/modules/{VERSION}/modules.dep"), id="modules"),
        pytest.param(add_kernel, id="newer-kernel"),
        pytest.param(upgrade, id="dependency-upgraded"),
        pytest.param(add_optional, id="optional-installed"),
        pytest.param(lambda host: touch_later(host.libguestfs() / "daemon.tar.gz"), id="guestfsd"),
        pytest.param(lambda host: shutil.rmtree(host.libguestfs()), id="libguestfs-removed"),
    ],
)
def test_a_changed_input_makes_the_appliance_outdated(place: Path, host: Inputs, change: object) -> None:
    assert build.build(lambda _: None).current
    assert callable(change)
    change(host)
    found = build.find()
    assert found is not None
    assert not found.current


def test_an_unrelated_package_does_not(place: Path, host: Inputs) -> None:
    built = build.build(lambda _: None)
    install(host.root, *PROGRAMS, paragraph("libxml2"), paragraph("vim"))
    assert build.find() == built


def test_looking_reads_dpkgs_database_only_when_it_changed(
    place: Path, host: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build.build(lambda _: None)
    monkeypatch.setattr(Database, "packages", property(lambda self: pytest.fail("it was read")))
    assert build.find() == built


def test_what_an_appliance_says_of_itself(place: Path) -> None:
    built = build.build(lambda _: None)
    assert built.kernel_version == VERSION
    assert built.packages == ("dash 1.0", "libc6 2.36", "libxml2 1.0")
    assert built.filesystems == ("ext4",)
    assert built.size > 0
    assert built.path.parent == place.resolve()
    assert {path.name for path in built.path.iterdir()} == {"kernel", "initrd", "root", "README.fixed", "info.json"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in built.path.iterdir())
    assert built.path.stat().st_mode & 0o777 == 0o755


# --- refusals --------------------------------------------------------------------------------------------------------
def refusal(expected: str, hint: str) -> UserError:
    with pytest.raises(UserError, match=expected) as caught:
        build.ensure(lambda _: None)
    assert hint in caught.value.hint
    return caught.value


def foretold(expected: str, hint: str) -> UserError:
    """What is refused, and that `doctor` says so before."""
    error = refusal(expected, hint)
    finding = diagnose._appliance()
    assert (finding.state, finding.mend) == (diagnose.BROKEN, error.hint)
    assert error.message in finding.detail
    return error


def test_no_supermin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert foretold("supermin is missing", "apt install supermin").code == ExitCode.DEPENDENCY


def test_no_libguestfs(place: Path, host: Inputs) -> None:
    shutil.rmtree(host.root / "usr")
    assert foretold("supermin.d", "python3-guestfs").code == ExitCode.DEPENDENCY


def test_no_kernel(place: Path, host: Inputs) -> None:
    shutil.rmtree(host.root / "boot")
    assert foretold("no kernel", "linux-image-amd64").code == ExitCode.DEPENDENCY


def test_a_kernel_that_only_root_may_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        if path.name.startswith("vmlinuz"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", refuse)
    error = foretold(f"may not read the kernel .*vmlinuz-{VERSION}", "dpkg-statoverride --add root root 0644")
    assert "chmod +r" in error.hint
    assert error.code == ExitCode.DEPENDENCY


def test_a_necessary_package_is_absent(place: Path, host: Inputs) -> None:
    install(host.root, PROGRAMS[1], paragraph("libxml2"), paragraph("dash", state="deinstall ok"))
    assert foretold("not installed: dash", "apt install dash").code == ExitCode.DEPENDENCY


def test_an_optional_package_is_absent(place: Path) -> None:
    said: list[str] = []
    build.build(said.append)
    assert any("without ntfs-3g" in line for line in said)


def test_a_host_without_dpkg(place: Path, host: Inputs) -> None:
    shutil.rmtree(host.root / "var")
    assert foretold("dpkg", "Debian").code == ExitCode.DEPENDENCY


def test_an_installation_without_the_agent_is_a_bug(place: Path, host: Inputs) -> None:
    (host.package / "agent/tree.py").unlink()
    with pytest.raises(MountsafeError, match=r"agent/tree\.py is missing") as caught:
        build.ensure(lambda _: None)
    assert not isinstance(caught.value, UserError)


def test_a_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NEEDED", 1 << 62)
    refusal("not enough space", "MOUNTSAFE_APPLIANCE")


def test_a_disk_that_fills_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(modules, "prune", fill)
    refusal("not enough space", "MiB")
    assert versions(place) == []


def test_supermins_words_are_shown_escaped(tmp_path: Path, host: Inputs) -> None:
    supermin = tmp_path / "supermin"
    supermin.write_text("#!/bin/sh\nprintf 'one\\nbad \\033[31m file\\n'\nexit 1\n")
    supermin.chmod(0o755)
    with pytest.raises(UserError, match=r"one / bad \\x1b\[31m file") as caught:
        build._run_supermin(str(supermin), tmp_path, tmp_path / "output", host.kernel(), tmp_path)
    assert caught.value.code == ExitCode.APPLIANCE


# --- what stays behind -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), UserError("no"), RuntimeError("bug")])
def test_a_failed_build_leaves_the_old_appliance_and_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(supermin: str, work: Path, *_: object) -> None:
        (work / "half").write_text("written")
        raise failure

    built = build.build(lambda _: None)
    monkeypatch.setattr(build, "_run_supermin", fail)
    with pytest.raises(type(failure)):
        build.build(lambda _: None)
    assert build.find() == built
    assert versions(place) == [built.path.name]


def test_a_killed_builds_leftovers_go_and_so_does_the_old_version(place: Path) -> None:
    old = build.build(lambda _: None)
    (place / "building-killed/appliance").mkdir(parents=True)
    (place / "building-link").symlink_to("nowhere")
    new = build.build(lambda _: None)
    assert new.path != old.path
    assert versions(place) == [new.path.name]


def test_a_version_that_a_vm_starts_from_stays_until_it_is_free(place: Path) -> None:
    old = build.build(lambda _: None)
    with old.held():
        new = build.build(lambda _: None)
        assert versions(place) == sorted([old.path.name, new.path.name])
    assert versions(build.build(lambda _: None).path.parent) == [(place / "current").readlink().name]


def test_the_second_of_two_builders_takes_the_firsts_result(place: Path) -> None:
    built = build.build(lambda _: None)
    said, waits, found = list[str](), threading.Event(), list[build.Appliance]()

    def second() -> None:
        found.append(build.build(progress))

    def progress(line: str) -> None:
        said.append(line)
        waits.set()

    with open(place / "lock", "a+b") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
    thread.join(10)
    assert found == [built]
    assert said == ["waiting for another build of the appliance"]


# --- the place -------------------------------------------------------------------------------------------------------
def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOUNTSAFE_APPLIANCE", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert build.location() == Path("/var/lib/mountsafe/appliance")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert build.location() == Path("/home/u/.cache/mountsafe/appliance")
    with monkeypatch.context() as homeless:
        homeless.delenv("HOME")
        homeless.setattr(pwd, "getpwuid", {}.__getitem__)
        assert build.location() == build.SYSTEM
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert build.location() == Path("/cache/mountsafe/appliance")
    monkeypatch.setenv("MOUNTSAFE_APPLIANCE", "/else")
    assert build.location() == Path("/else")


def test_a_user_takes_the_systems_appliance_if_his_own_is_not_current(
    place: Path, host: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SYSTEM", place)
    system = build.build(lambda _: None)
    monkeypatch.delenv("MOUNTSAFE_APPLIANCE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "location", lambda: tmp_path / "cache")
    assert build.find() == system
    assert build.ensure(lambda _: pytest.fail("it builds")) == system


def test_an_appliance_of_another_user_is_not_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build.build(lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    if os.stat(built.path).st_uid == 0:
        os.chown(built.path, 4712, 4712)
    assert build.find() is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"packages": 1}', "\x00"])
def test_a_broken_description_is_no_appliance(place: Path, content: str) -> None:
    built = build.build(lambda _: None)
    (built.path / "info.json").write_text(content)
    assert build.find() is None


# --- packages --------------------------------------------------------------------------------------------------------
def test_the_package_list_names_programs_once_and_says_why() -> None:
    lines = (PACKAGE / "appliance/packages").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    names = [line.split()[0] for line in entries]
    assert len(names) == len(set(names))
    assert all("#" in line for line in entries)
    assert not [name for name in names if name.startswith("lib") and name != "libc-bin"]


def test_dependencies_follow_alternatives_and_provided_names(tmp_path: Path) -> None:
    install(
        tmp_path,
        paragraph("top", depends="one (>= 1.0~rc1), two:any | three, virtual"),
        paragraph("one", depends="top"),
        paragraph("three"),
        paragraph("four", provides="virtual (= 1)"),
        paragraph("gone", state="deinstall ok"),
        paragraph("other"),
    )
    found = Database(tmp_path).closure(["top"])
    assert [str(package) for package in found] == ["four 1.0", "one 1.0", "three 1.0", "top 1.0"]


# --- kernel ----------------------------------------------------------------------------------------------------------
def test_the_newest_kernel_is_best_but_not_a_clouds(host: Inputs) -> None:
    for version in ("6.1.0-10-amd64", "6.1.0-2-amd64", "6.12.1-cloud-amd64", "6.13-without-modules"):
        (host.root / f"boot/vmlinuz-{version}").touch()
        if "without" not in version:
            shutil.copytree(host.root / f"lib/modules/{VERSION}", host.root / f"lib/modules/{version}")
    assert host.kernel().version == "6.1.0-10-amd64"


def elf(note: int = 18) -> bytes:
    notes = struct.pack("<III", 4, 4, 6) + b"Xen\0" + b"none" + struct.pack("<III", 4, 8, note) + b"Xen\0" + bytes(8)
    header = b"\x7fELF\x02\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4) + notes


def bzimage(payload: bytes) -> bytes:
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload) + 4)
    return bytes(image) + bytes(16) + payload + struct.pack("<I", 0) + b"the rest"


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_the_elf_image_is_taken_out_of_a_bzimage(pack: object) -> None:
    assert callable(pack)
    assert kernel.bare(bzimage(pack(elf()))) == elf()


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(b"MZ" + bytes(2000), id="other-architecture"),
        pytest.param(bzimage(lzma.compress(elf(note=17))), id="no-pvh-entry"),
        pytest.param(bzimage(lzma.compress(b"text")), id="no-elf"),
        pytest.param(bzimage(b"\xfd7zXZ\0broken"), id="broken-xz"),
        pytest.param(bzimage(b"BZh9unknown"), id="unknown-compression"),
    ],
)
def test_an_image_that_qemu_could_not_start_bare(image: bytes) -> None:
    assert kernel.bare(image) is None


# --- modules ---------------------------------------------------------------------------------------------------------
def test_selection_keeps_disks_file_systems_and_what_they_need() -> None:
    chosen = modules.select(
        {
            "kernel/fs/ext4/ext4.ko.xz": ["kernel/fs/jbd2/jbd2.ko.xz"],
            "kernel/fs/jbd2/jbd2.ko.xz": [],
            "kernel/fs/nfs/nfs.ko": ["kernel/net/sunrpc/sunrpc.ko"],
            "kernel/net/sunrpc/sunrpc.ko": [],
            "kernel/drivers/md/dm-crypt.ko.zst": ["kernel/drivers/dax/dax.ko.zst"],
            "kernel/drivers/dax/dax.ko.zst": [],
            "kernel/drivers/scsi/virtio_scsi.ko": [],
            "kernel/drivers/scsi/megaraid/megaraid_sas.ko": [],
            "kernel/drivers/net/virtio_net.ko": [],
            "kernel/drivers/virtio/virtio_pci.ko": ["kernel/drivers/virtio/virtio_ring.ko"],
            "kernel/drivers/virtio/virtio_ring.ko": [],
            "kernel/fs/gfs2/gfs2.ko": ["kernel/fs/dlm/dlm.ko"],
            "kernel/fs/dlm/dlm.ko": [],
        }
    )
    assert [Path(module).name.partition(".")[0] for module in chosen] == [
        *("dax", "dm-crypt", "virtio_scsi", "virtio_pci", "virtio_ring", "dlm", "ext4", "gfs2", "jbd2")
    ]


def test_no_file_system_of_this_hosts_kernel_is_lost() -> None:
    kernels = kernel.installed()
    if not kernels:
        pytest.skip("no kernel with modules on this host")
    folder = kernels[0].modules
    known, types = modules.dependencies(folder), modules.filesystems(folder)
    chosen = {Path(module).name.partition(".")[0].replace("-", "_") for module in modules.select(known)}
    lines = [line.split() for line in (folder / "modules.alias").read_text().splitlines()]
    lost = [words[1] for words in lines if words[1].removeprefix("fs-") in types and words[2] not in chosen]
    assert types
    assert lost == []


def test_types_come_from_modules_and_from_the_kernel_itself(tmp_path: Path) -> None:
    (tmp_path / "modules.alias").write_text("# made\nalias fs-xfs xfs\nalias fs-nfs nfs\nalias pci:v1 ahci\n")
    (tmp_path / "modules.builtin.modinfo").write_bytes(b"ext4.alias=fs-ext4\0proc.alias=fs-proc\0ext4.license=GPL\0")
    assert modules.filesystems(tmp_path) == ("ext4", "xfs")


def test_a_modules_signature_is_cut_off() -> None:
    module, signature = b"\x7fELF module", b"s" * 300
    signed = module + signature + struct.pack(">8xI", len(signature)) + b"~Module signature appended~\n"
    assert modules.unsigned(signed) == module
    assert modules.unsigned(module) == module
    broken = b"short" + struct.pack(">8xI", 1 << 30) + b"~Module signature appended~\n"
    assert modules.unsigned(broken) == broken


def test_modules_are_unpacked() -> None:
    assert modules.unpacked(lzma.compress(b"m"), "a/b.ko.xz") == (b"m", "a/b.ko")
    assert modules.unpacked(gzip.compress(b"m"), "a/b.ko.gz") == (b"m", "a/b.ko")
    assert modules.unpacked(b"m", "a/b.ko") == (b"m", "a/b.ko")


# --- the archive and the saved VM ------------------------------------------------------------------------------------
def test_our_archive_is_roots_and_the_same_each_time(tmp_path: Path) -> None:
    files = {"init": (0o755, b"#!/bin/sh\n"), "usr/lib/mountsafe/agent.py": (0o644, b"pass\n")}
    for name in ("one", "two"):
        contents.pack(files, tmp_path / f"{name}.tar.gz")
    with tarfile.open(tmp_path / "one.tar.gz") as one, tarfile.open(tmp_path / "two.tar.gz") as two:
        entries = one.getmembers()
        assert [entry.get_info() for entry in entries] == [entry.get_info() for entry in two.getmembers()]
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0, 0, 0)}
    modes = {entry.name: entry.mode for entry in entries}
    assert modes["init"] == modes["usr/lib/mountsafe"] == 0o755
    assert {"proc", "sys", "dev", "tmp"} <= set(modes)


@pytest.mark.parametrize(
    ("says", "fault"),
    [
        ("echo a; sleep 1; echo 'mountsafe: settled'", ""),
        ("sleep 1; echo 'mountsafe: settled'", "did not boot"),
        ("echo a; sleep 9", "did not boot"),
        ("echo a", "ended"),
        ("printf '[ 1.2] Kernel panic - not '; sleep 1; echo 'syncing: No working init found.'; sleep 9", "No working"),
        ("seq 99999; printf '[ 1.2] kernel BUG at mm/x.c:3!'", "BUG at mm"),
    ],
    ids=["slow", "silent", "too slow", "ended", "panics", "crashes and ends"],
)
def test_a_vm_to_be_saved_is_given_time_if_it_says_something(says: str, fault: str, tmp_path: Path) -> None:
    with (
        pytest.raises(MountsafeError, match=fault) if fault else nullcontext(),
        freeze._running(["sh", "-c", says], tmp_path) as process,
    ):
        freeze._wait_until_settled(process, freeze.Patience(0.5, 3.0))


@pytest.fixture
def crashing(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host whose QEMU shows a kernel that finds no init, and does not start it."""
    qemu = tmp_path / "qemu"
    panic = "[    0.7] Kernel panic - not syncing: No working init found.  Try passing init= option\x1b[2J"
    qemu.write_text(f"#!/bin/sh\necho booting; echo '{panic}'\n")
    qemu.chmod(0o755)
    monkeypatch.setattr(saving, "prepare", PREPARE)
    monkeypatch.setattr(saving.features, "record", lambda *_: str(qemu))
    monkeypatch.setattr(freeze, "_arguments", lambda *_: [])
    return place


PREPARE = saving.prepare


def test_a_build_whose_machine_crashes_fails_with_its_words(crashing: Path) -> None:
    with pytest.raises(UserError, match="No working init found") as caught:
        build.build(lambda _: None)
    assert caught.value.code == ExitCode.APPLIANCE
    assert caught.value.message.isprintable()
    assert build.find() is None
    assert versions(crashing) == []


def test_a_machine_that_crashes_takes_no_appliances_place(place: Path, request: pytest.FixtureRequest) -> None:
    before = build.build(lambda _: None)
    request.getfixturevalue("crashing")
    with pytest.raises(UserError, match="No working init found"):
        build.build(lambda _: None)
    assert build.find() == before
