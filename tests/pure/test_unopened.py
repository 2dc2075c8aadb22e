"""What is recognised and cannot be opened: it is said what it is, and what to do."""

import pytest

from mountsafe import wire
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.choosing import choose
from mountsafe.medium.unopened import NO_DRIVER, UNOPENED, without_driver
from tests.pure.test_volumes import TABLE, partition, told, volumes


@pytest.mark.parametrize("fstype", UNOPENED)
def test_each_is_named_where_there_is_nothing_else(fstype: str) -> None:
    whole = volumes(told(fstype=fstype.encode(), usage=b"other"))
    part = volumes(TABLE, partition(1, fstype.encode(), usage=b"other"))
    for found, which in ((whole, "it"), (part, "partition 1")):
        with pytest.raises(UserError) as failure:
            choose(found, None, None, "disk.img")
        what = UNOPENED[fstype]
        assert failure.value.message == f"no file system was found on disk.img: {which} is {what.what}"
        assert failure.value.hint == what.what_to_do
        assert failure.value.code == ExitCode.SOURCE


def test_a_search_that_was_ended_is_not_called_an_empty_medium() -> None:
    found = volumes(TABLE._replace(resorts=wire.Resort.UNFINISHED), partition(1, b"swap", usage=b"other"))
    with pytest.raises(UserError, match="was ended before a file system was found") as failure:
        choose(found, None, None, "disk.img")
    assert failure.value.code == ExitCode.DEADLINE


def test_it_is_not_in_the_way_of_a_file_system() -> None:
    found = volumes(TABLE, partition(1, b"swap", usage=b"other"), partition(2))
    assert [volume.number for volume in choose(found, None, None)] == [2]


def test_a_driver_that_is_not_there_is_named_with_what_to_do() -> None:
    why = "Invalid argument: unknown filesystem type 'ReFS'."
    assert without_driver("ReFS", why) == (NO_DRIVER, "Windows reads it.")
    reason, hint = without_driver("newfs", why.replace("ReFS", "newfs")) or ("", "")
    assert reason == NO_DRIVER
    assert hint
    assert without_driver("ReFS", "Input/output error") is None
