"""What a file is taken for by its first bytes, and why it is not opened."""

import os
from pathlib import Path

import pytest

from mountsafe.cli import options
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.formats import Fault, Format, Read, detect, fault, refusal
from mountsafe.medium.source import open_medium
from tests import containers

RAW = bytes(64 << 10)
FORMATS = {
    Format.QCOW2: containers.qcow2(),
    Format.VMDK: containers.vmdk(),
    Format.VDI: containers.vdi(),
    Format.VPC: containers.vhd() + RAW,
    Format.VHDX: containers.vhdx(),
}
OUTSIDE = "RW 2048 FLAT"


def reading(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length]


def fault_of(format_: Format, data: bytes) -> Fault | None:
    return fault(format_, reading(data), len(data))


@pytest.mark.parametrize("format_", FORMATS)
def test_each_is_what_it_is_and_nothing_speaks_against_it(format_: Format) -> None:
    data = FORMATS[format_]
    assert detect(reading(data), len(data)) is format_
    assert fault_of(format_, data) is None
    for other in set(FORMATS) - {format_}:
        assert fault_of(other, data) is Fault.OTHER


@pytest.mark.parametrize("data", [b"", b"Q", RAW, b"x" + containers.qcow2(), RAW + b"conectiy".ljust(512)])
def test_everything_else_is_raw(data: bytes) -> None:
    assert detect(reading(data), len(data)) is Format.RAW


def test_a_vhd_of_fixed_size_has_its_mark_at_the_end() -> None:
    data = RAW + containers.vhd(2)
    assert detect(reading(data), len(data)) is Format.VPC
    assert fault_of(Format.VPC, data) is None


def test_what_could_be_two_things_is_asked_about() -> None:
    data = containers.qcow2()[:32769] + b"CD001"
    with pytest.raises(UserError, match="at once") as failure:
        detect(reading(data), len(data))
    assert failure.value.code == ExitCode.SOURCE
    assert "--format qcow2" in failure.value.hint


@pytest.mark.parametrize(
    ("format_", "data", "why"),
    [
        pytest.param(Format.QCOW2, containers.qcow2(backing=b"/etc/passwd"), Fault.BACKING, id="qcow2-backing"),
        pytest.param(Format.QCOW2, containers.qcow2(backing=b"x", version=2), Fault.BACKING, id="qcow2-2-backing"),
        pytest.param(Format.QCOW2, containers.qcow2(version=1, encryption=2), Fault.OLD, id="qcow-1"),
        pytest.param(Format.QCOW2, containers.qcow2(backing=b'json:{"driver":"nbd"}'), Fault.BACKING, id="qcow2-json"),
        pytest.param(Format.QCOW2, containers.qcow2(features=4, data_file=b"x"), Fault.DATA_FILE, id="qcow2-data"),
        pytest.param(Format.QCOW2, containers.qcow2(encryption=2), Fault.ENCRYPTED, id="qcow2-luks"),
        pytest.param(Format.VMDK, containers.vmdk_text(f'{OUTSIDE} "x"').encode(), Fault.EXTENTS, id="vmdk-text"),
        pytest.param(Format.VMDK, b"COWD" + RAW, Fault.EXTENTS, id="vmdk-part-of-esx"),
        pytest.param(Format.VMDK, containers.vmdk(sectors=0), Fault.EXTENTS, id="vmdk-no-size"),
        pytest.param(Format.VMDK, containers.vmdk(descriptor=0), Fault.EXTENTS, id="vmdk-part"),
        pytest.param(Format.VMDK, containers.vmdk(descriptor=1 << 55), Fault.EXTENTS, id="vmdk-far-description"),
        pytest.param(Format.VMDK, containers.vmdk(extents=f'{OUTSIDE} "x" 0'), Fault.EXTENTS, id="vmdk-flat"),
        pytest.param(Format.VMDK, containers.vmdk(extents='RW 1 SPARSE "/a"'), Fault.EXTENTS, id="vmdk-path"),
        pytest.param(Format.VMDK, containers.vmdk(extents='RW 1 SPARSE "nbd:x"'), Fault.EXTENTS, id="vmdk-url"),
        pytest.param(Format.VMDK, containers.vmdk(extents='RW 1 SPARSE "a"\n' * 2), Fault.EXTENTS, id="vmdk-two"),
        pytest.param(Format.VMDK, containers.vmdk(extents=""), Fault.EXTENTS, id="vmdk-none"),
        pytest.param(Format.VMDK, containers.vmdk(parent="12345678"), Fault.BACKING, id="vmdk-parent"),
        pytest.param(Format.VDI, containers.vdi(4), Fault.BACKING, id="vdi-differencing"),
        pytest.param(Format.VDI, containers.vdi(3), Fault.BACKING, id="vdi-undo"),
        pytest.param(Format.VPC, containers.vhd(4) + RAW, Fault.BACKING, id="vhd-differencing"),
        pytest.param(Format.VPC, containers.vhd(3) + RAW + containers.vhd(4), Fault.BACKING, id="vhd-at-the-end"),
        pytest.param(Format.VHDX, containers.vhdx(parent=True), Fault.BACKING, id="vhdx-parent"),
    ],
)
def test_what_is_not_in_the_file_alone_is_refused(format_: Format, data: bytes, why: Fault) -> None:
    assert detect(reading(data), len(data)) is format_
    assert fault_of(format_, data) is why
    told = refusal(why, "disk.img")
    assert told.code == ExitCode.SOURCE
    assert str(why) in told.message
    assert "qemu-img convert" in told.hint


def test_a_file_is_looked_at_and_a_wish_goes_before(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(containers.qcow2())
    for wanted, format_ in ((None, Format.QCOW2), (Format.RAW, Format.RAW), (Format.VDI, Format.VDI)):
        medium = open_medium(image, wanted)
        os.close(medium.fd)
        assert medium.format is format_


def test_the_command_line_names_every_format_and_auto() -> None:
    """typer wants an Enum of literals, so the names stand there a second time."""
    assert {each.value for each in options.Format} == {"auto", *Format}
