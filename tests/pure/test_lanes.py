"""Which tests run beside which."""

from pathlib import Path

import pytest

from tests import lanes


def test_each_test_is_in_one_lane(repository: Path) -> None:
    first, second = lanes.lanes(["tests"])
    assert sorted([*first, *second]) == lanes.files(["tests"])
    assert {str(path.relative_to(repository)) for path in repository.glob("tests/**/test_*.py")} == {*first, *second}


def test_who_attaches_a_loop_device_is_where_all_of_them_are_claimed(repository: Path) -> None:
    """And watched: by the hostile trials, for what the kernel says of them."""
    first, second = lanes.lanes(["tests"])
    assert {"tests/hotplug/test_daemon.py", "tests/hostile/test_hostile.py"} <= {*first}
    attaching = {name for name in first + second if "losetup" in (repository / name).read_text()}
    assert "tests/vm/command/test_device.py" in attaching
    assert attaching - {"tests/pure/test_lanes.py"} <= {*first}


def test_a_lane_without_files_is_none() -> None:
    assert lanes.lanes(["tests/fuse/test_life.py"]) == [["tests/fuse/test_life.py"]]
    with pytest.raises(AssertionError, match="no tests"):
        lanes.lanes(["tests/nothing"])
