"""The risk of each type: what is not known is not called harmless."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.policy.risk import RISKS, RiskClass, risk_of


@pytest.mark.parametrize(
    ("fstype", "level"),
    [
        ("efs", "critical"),
        ("jfs", "critical"),
        ("reiserfs", "critical"),
        ("minix", "critical"),
        ("hfsplus", "high"),
        ("ntfs", "high"),
        ("nilfs2", "high"),
        ("LVM2_member", "high"),
        ("ext4", "medium"),
        ("xfs", "medium"),
        ("vfat", "low"),
    ],
)
def test_known_types(fstype: str, level: str) -> None:
    assert risk_of(fstype).level == level


@given(st.text().filter(lambda name: name not in RISKS))
def test_unknown_types_are_unknown(fstype: str) -> None:
    assert risk_of(fstype).level is RiskClass.UNKNOWN


@pytest.mark.parametrize("fstype", RISKS)
def test_each_class_has_its_reason(fstype: str) -> None:
    risk = risk_of(fstype)
    assert risk.level is not RiskClass.UNKNOWN
    assert risk.reason
    assert risk.reason[0].islower()


def test_every_type_that_an_image_of_ours_holds_is_classed() -> None:
    shown = {"ext2", "ext4", "vfat", "exfat", "ntfs", "hfs", "hfsplus", "udf", "minix", "xfs", "btrfs", "f2fs", "jfs"}
    assert not {*shown, "nilfs2", "iso9660", "squashfs", "erofs", "romfs"} - RISKS.keys()
