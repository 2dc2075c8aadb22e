"""Make the test images and their manifest: images/make [NAME...] [--out DIR].

Needs, from Debian 12: the packages in PACKAGES below; no root, no KVM. The content, UUIDs, serial numbers and
file times are fixed, and the guest's clock is set before each file system is written. What the tools still draw
or count themselves (see README.md) differs between two runs, so the manifest is written in the same run.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from images import guest, packing, tree
from images.disks import TABLES, Table
from images.images import FOLDER, Entry, ImageError, printable, sha256, stream
from images.recipes import DESCRIPTIONS, PACKED, PLANS, Packed, Plan
from images.tree import Item

PACKAGES = {
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mkfs.exfat": "exfatprogs",
    "tune.exfat": "exfatprogs",
    "mkntfs": "ntfs-3g",
    "hformat": "hfsutils",
    "mkudffs": "udftools",
    "mkfs.minix": "util-linux",
    "mkswap": "util-linux",
    "sfdisk": "fdisk",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.f2fs": "f2fs-tools",
    "mkfs.jfs": "jfsutils",
    "jfs_tune": "jfsutils",
    "mkfs.nilfs2": "nilfs-tools",
    "xorriso": "xorriso",
    "mksquashfs": "squashfs-tools",
    "mkfs.erofs": "erofs-utils",
    "genromfs": "genromfs",
    "cryptsetup": "cryptsetup-bin",
    "guestfish": "libguestfs-tools",
}
ENVIRONMENT = {
    "SOURCE_DATE_EPOCH": str(tree.EPOCH),
    "E2FSPROGS_FAKE_TIME": str(tree.EPOCH),
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
}
MANY = "many"
Json = dict[str, Any]


def require_tools() -> None:
    """Raise ImageError with the apt-get command when a program is missing."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = {package for tool, package in PACKAGES.items() if shutil.which(tool) is None}
    if importlib.util.find_spec("guestfs") is None:
        missing.add("python3-guestfs")
    if missing:
        raise ImageError(f"programs are missing; get them with: apt-get install {' '.join(sorted(missing))}")


def run(command: list[str], path: Path, work: Path, *, stdin: bytes | None = None) -> None:
    """Run one of the commands of recipes.py on `path`, with fixed times in its environment."""
    known = {"{}": path.name, "FOLDER": "staged", "KEYFILE": "key"}
    words = [known.get(word, word) for word in command]
    done = subprocess.run(
        words,
        input=stdin,
        capture_output=True,
        cwd=work,
        env=ENVIRONMENT | {"PATH": os.environ["PATH"], "HOME": str(work)},
    )
    if done.returncode:
        raise ImageError(f"{path.stem}: {' '.join(words)}\n{done.stderr.decode(errors='replace')}")


def make_empty_file_system(plan: Plan, path: Path, work: Path) -> None:
    """mkfs; the guest fills it later."""
    print(f"  {plan.name}: mkfs", flush=True)
    with path.open("wb") as file:
        file.truncate(plan.size)
    if plan.passphrase is not None:
        (work / "key").write_text(plan.passphrase)
    for command in plan.mkfs:
        run(command, path, work)
    if plan.finish is not None:
        plan.finish(path)


def make_packed(packed: Packed, path: Path, work: Path) -> None:
    """A read-only file system, made whole by its tool."""
    print(f"  {packed.name}: packing", flush=True)
    items = tree.as_kept(packed.items, packed.keeps)
    if packed.is_from_archive:
        run(packed.command, path, work, stdin=tree.archive(items, xattrs=True))
    else:
        guest.stage(items, work / "staged")
        run(packed.command, path, work)


def make_table(table: Table, path: Path, files: dict[str, Path], work: Path) -> None:
    """A disk: the partition table, then the finished file systems copied to their places."""
    with path.open("wb") as file:
        file.truncate(table.size)
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "{}"], path, work, stdin=table.script.encode())
    for first_sector, plan in table.partitions.values():
        where = [f"if={files[plan.name].name}", f"of={path.name}", "bs=512", f"seek={first_sector}"]
        run(["dd", *where, "conv=notrunc,sparse", "status=none"], path, work)


def entry_json(entry: Entry) -> Json:
    """Names as hex, because JSON has no bytes; beside it a form for people. What does not apply is left out."""
    known: Json = {"path": printable(entry.path), "path_hex": entry.path.hex(), "kind": entry.kind}
    known["mode"] = None if entry.mode is None else f"{entry.mode:04o}"
    known["size"], known["sha256"], known["rdev"] = entry.size, entry.sha256, entry.rdev
    known["target_hex"] = None if entry.target is None else entry.target.hex()
    known["link_of_hex"] = None if entry.link_of is None else entry.link_of.hex()
    known["xattrs_hex"] = {name: value.hex() for name, value in entry.xattrs.items()} or None
    return {key: value for key, value in known.items() if value is not None}


def volume_json(filesystem: str, label: bytes, items: list[Item], keeps: frozenset[str], partition: int = 0) -> Json:
    """A volume of the manifest. The folder of many files is the same everywhere and stands there once."""
    many = {item.path for item in tree.many()}
    kept = tree.as_kept(items, keeps)
    return {
        "partition": partition,
        "filesystem": filesystem,
        "label": printable(label),
        "label_hex": label.hex(),
        "keeps_mode": "mode" in keeps,
        "trees": [MANY] if any(item.path in many for item in kept) else [],
        "entries": [entry_json(item.entry()) for item in kept if item.path not in many],
    }


def plan_volume(plan: Plan, partition: int = 0) -> Json:
    """What must be found in the file system of a plan."""
    if plan.passphrase is not None:
        inside = volume_json("vfat", b"INSIDE", plan.items, plan.keeps)
        return volume_json(plan.filesystem, plan.label, [], plan.keeps, partition) | {
            "passphrase": plan.passphrase,
            "inside": inside,
        }
    volume = volume_json(plan.filesystem, plan.label, [*plan.items, *plan.late_items], plan.keeps, partition)
    if plan.is_dirty:
        volume["only_after_replay_hex"] = [item.path.hex() for item in plan.late_items]
        volume["gone_after_replay_hex"] = [item.path.hex() for item in plan.lost_items]
    return volume


def build(wanted: list[str], work: Path) -> dict[str, tuple[Path, list[Json]]]:
    """Make the wanted images below `work`. Returns each one's file and volumes."""
    tables = [table for table in TABLES if table.name in wanted]
    plans = [plan for plan in PLANS if plan.name in wanted]
    plans += [plan for table in tables for _, plan in table.partitions.values()]
    files = {plan.name: work / f"{plan.name}.img" for plan in plans}
    for plan in plans:
        make_empty_file_system(plan, files[plan.name], work)
    to_populate = {files[plan.name]: plan for plan in plans if plan.items}
    if to_populate:
        guest.populate(to_populate)
    made = {plan.name: (files[plan.name], [plan_volume(plan)]) for plan in plans if plan in PLANS}
    for packed in PACKED:
        if packed.name in wanted:
            path = work / f"{packed.name}.img"
            make_packed(packed, path, work)
            made[packed.name] = (path, [volume_json(packed.filesystem, packed.label, packed.items, packed.keeps)])
    for table in tables:
        path = work / f"{table.name}.img"
        make_table(table, path, files, work)
        made[table.name] = (path, [plan_volume(plan, number) for number, (_, plan) in table.partitions.items()])
    return made


def store(name: str, path: Path, volumes: list[Json], out: Path) -> Json:
    """Write the stored form of an image; returns its entry of the manifest."""
    packed = out / f"{name}.parts.xz"
    packing.pack(path, packed)
    print(f"  {name}: {path.stat().st_size} bytes, stored in {packed.stat().st_size}", flush=True)
    return {
        "description": DESCRIPTIONS[name],
        "source": {"stored": packed.name},
        "size": path.stat().st_size,
        "sha256": sha256(path),
        "stored_size": packed.stat().st_size,
        "stored_sha256": sha256(packed),
        "volumes": volumes,
    }


def generated(ext4: Path | None, work: Path) -> dict[str, Json]:
    """The images that are made when they are unpacked."""
    sources: dict[str, tuple[Json, bytes]] = {
        "empty": ({"zeros": 1 << 20}, bytes(1 << 20)),
        "garbage": ({"stream": 64 << 10}, stream(64 << 10)),
    }
    if ext4 is not None:
        whole = ext4.read_bytes()
        half = len(whole) // 2
        sources["truncated"] = ({"cut_from": "ext4", "length": half}, whole[:half])
    made: dict[str, Json] = {}
    for name, (source, data) in sources.items():
        path = work / f"{name}.img"
        path.write_bytes(data)
        made[name] = {
            "description": DESCRIPTIONS[name],
            "source": source,
            "size": len(data),
            "sha256": sha256(path),
            "volumes": [],
        }
    return made


def write_manifest(made: dict[str, Json], out: Path) -> None:
    """Put the images that were made into the manifest, and the table into README.md."""
    path = out / "manifest.json"
    images: dict[str, Json] = json.loads(path.read_text())["images"] if path.exists() else {}
    images |= made
    ordered = {name: images[name] for name in DESCRIPTIONS if name in images}
    many = [entry_json(item.entry()) for item in tree.many()]
    path.write_text(json.dumps({"images": ordered, "trees": {MANY: many}}, indent=1) + "\n")
    write_readme(ordered, out)


def write_readme(images: dict[str, Json], out: Path) -> None:
    """README.md from its template and the manifest."""
    rows = ["| image | file systems | size | stored | what it is |", "|---|---|---|---|---|"]
    for name, image in images.items():
        kinds = ", ".join(volume["filesystem"] for volume in image["volumes"]) or "-"
        stored = f"{image['stored_size'] / 1024:.0f} KiB" if "stored_size" in image else "generated"
        rows.append(f"| {name} | {kinds} | {image['size'] / 2**20:.3g} MiB | {stored} | {image['description']} |")
    text = (FOLDER / "README.template.md").read_text()
    (out / "README.md").write_text(text.replace("TABLE", "\n".join(rows)))


def main(arguments: list[str]) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="Make the test images and their manifest.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="DIR", help="where to write (default: beside this script)"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(DESCRIPTIONS):
        parser.error(f"no such image: {', '.join(sorted(unknown))}")
    wanted: list[str] = options.names or list(DESCRIPTIONS)
    if "truncated" in wanted or "ext4" in wanted:
        wanted = sorted({*wanted, "ext4", "truncated"})
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        require_tools()
        with tempfile.TemporaryDirectory(prefix="images-") as folder:
            work = Path(folder)
            built = build(wanted, work)
            made = {name: store(name, path, volumes, options.out) for name, (path, volumes) in built.items()}
            made |= {
                name: image
                for name, image in generated(built["ext4"][0] if "ext4" in built else None, work).items()
                if name in wanted
            }
            write_manifest(made, options.out)
    except ImageError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    return 0
