"""What processes tell each other, as objects: it comes back as it was, and what is anything else is a fault."""

import json
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe import channel, codec
from mountsafe.codec import OtherVersion
from mountsafe.errors import ExitCode, ProtocolFault
from mountsafe.medium.formats import Format
from mountsafe.session.conversation import GIVEN, SAID, Ready, Stream
from mountsafe.session.messages import (
    ANSWERS,
    ORDERS,
    REPORTS,
    Done,
    Failed,
    Found,
    Incident,
    Judged,
    Mounted,
    Progress,
    Request,
    Verb,
    Warned,
)
from mountsafe.session.order import KNOWN, VERSION, Begin, MountOptions, Order
from mountsafe.session.record import Held, Missing, Mount, Record

NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1)
st.register_type_strategy(int, NUMBERS)
st.register_type_strategy(float, st.floats(0, 1 << 40))
st.register_type_strategy(str, st.text(st.characters(), max_size=8))
TOLD = [Progress, Warned, Found, Mounted, Failed, Incident]


def through(message: dict[str, Any]) -> dict[str, Any]:
    return channel.decode(json.dumps(message).encode())


# --- there and back -------------------------------------------------------------------------------------------------
@given(st.one_of(*map(st.from_type, TOLD)))
def test_a_report_comes_back(told: Any) -> None:
    assert REPORTS.read(through(REPORTS.told(told))) == told


@given(st.one_of(*map(st.from_type, [Order, Judged])))
def test_an_order_comes_back(told: Any) -> None:
    assert ORDERS.read(through(ORDERS.told(told))) == told


@given(st.one_of(*map(st.from_type, [Mounted, Failed, Done])))
def test_an_answer_comes_back(told: Any) -> None:
    assert ANSWERS.read(through(ANSWERS.told(told))) == told


@given(st.one_of(*map(st.from_type, GIVEN.kinds.values())))
def test_what_a_session_process_is_given_comes_back(given_: Any) -> None:
    assert GIVEN.read(through(GIVEN.told(given_))) == given_


@given(st.one_of(*map(st.from_type, SAID.kinds.values())))
def test_what_a_session_process_says_comes_back(said: Any) -> None:
    assert SAID.read(through(SAID.told(said))) == said


@given(st.from_type(Record))
def test_a_record_comes_back(record: Record) -> None:
    assert Record.restored(through(record.saved())) == record


@pytest.mark.parametrize("request_", [Request(Verb.STATUS), Request(Verb.UNMOUNT, True)])
def test_a_request_comes_back(request_: Request) -> None:
    assert Request.read(through(codec.plain(request_))) == request_


def test_the_words_are_those_of_programs() -> None:
    assert REPORTS.told(Progress("starting")) == {"progress": "starting", "version": VERSION}
    failed = Failed("no", "try", ExitCode.SOURCE)
    assert REPORTS.told(failed) == {"failed": {"message": "no", "hint": "try", "code": 3}, "version": VERSION}
    assert codec.plain(Begin(True)) == {"verbose": True, "spare": False}


# --- other versions -------------------------------------------------------------------------------------------------
MOUNT = Mount("/m", "sda", 0, "0", "ext4", "", "", (), True, 5, 3)
RECORD = Record("x.img", "/m", 1, mounts=(MOUNT,), missing=(Missing("sdb", 1, "", "", "no", ExitCode.SOURCE),))
# As they were before a version was written.
FIRST = {
    "source": "x.img",
    "target": "/m",
    "format": "qcow2",
    "sector_size": None,
    "created": ["/m"],
    "supervisor": 7,
    "accelerator": "kvm",
    "virtual_machine": None,
    "container": 9,
    "mounts": [codec.plain(MOUNT)],
    "missing": [],
    "held": {"mounts": [[1, 2, [0, 45], "mountsafe:x"]], "planned": ["/m"], "created": [["/m", 3, 4]], "name": "n"},
}


def test_a_supervisor_that_outlived_an_upgrade_is_understood() -> None:
    record = Record.restored(FIRST)
    assert (record.format, record.container, record.mounts) == (Format.QCOW2, 9, (MOUNT,))
    assert record.held == Held(((1, 2, (0, 45), "mountsafe:x"),), ("/m",), (("/m", 3, 4),), "n")
    assert ANSWERS.read({"mounted": FIRST}) == Mounted(record)
    assert ANSWERS.read({"done": "unmount"}) == Done(Verb.UNMOUNT)
    request = codec.plain(Request(Verb.UNMOUNT, True))
    assert (request["do"], request["force"]) == ("unmount", True)


@pytest.mark.parametrize("version", [0, VERSION + 1, -1, 1 << 70])
def test_another_version_is_told_as_such(version: int) -> None:
    told = {"progress": "x", "version": version}
    for read in (REPORTS.read, ORDERS.read, ANSWERS.read, Record.restored, Request.read):
        with pytest.raises(OtherVersion, match="another version of mountsafe"):
            read(told)


def test_an_order_is_of_this_very_version() -> None:
    told = ORDERS.told(Judged((), ""))
    for version in KNOWN:
        if version != VERSION:
            with pytest.raises(OtherVersion):
                ORDERS.read(told | {"version": version})


def test_what_is_told_may_have_more_and_what_is_ordered_may_not() -> None:
    told = through(REPORTS.told(Mounted(RECORD)))
    told["mounted"]["new"] = 1
    told["mounted"]["mounts"][0]["newer"] = [1]
    assert REPORTS.read(told) == Mounted(RECORD)
    with pytest.raises(ProtocolFault, match="unknown key"):
        Request.read({"do": "status", "new": 1})


# --- what is none ----------------------------------------------------------------------------------------------------
ORDER = Order("x", 512, False, Format.RAW, None, "/m", True, 1, 1, MountOptions(partition="vg/a"))
SAMPLES = [
    Ready("ext4", 0, 0, True, 0o755),
    Stream(1),
    ORDER,
    RECORD,
    Failed("a", "b", ExitCode.OK),
    Judged((1,), "x"),
    MOUNT,
]
NONE_OF_ANY = ({}, {"a": 1}, [[[]]], 1 << 64, -(1 << 63) - 1, float("inf"), float("nan"))


def leaves(told: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in an object, that are no object themselves."""
    inner = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else []
    return [at] * (not isinstance(told, dict)) + [leaf for key, value in inner for leaf in leaves(value, (*at, key))]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_a_value_of_another_kind_is_a_fault(sample: Any) -> None:
    for place in leaves(codec.plain(sample)):
        for wrong in NONE_OF_ANY:
            told = through(codec.plain(sample))
            where = told
            for key in place[:-1]:
                where = where[key]
            where[place[-1]] = wrong
            with pytest.raises(ProtocolFault):
                codec.read(type(sample), told)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_what_has_no_default_must_be_there(sample: Any) -> None:
    for field in fields(sample):
        told = through(codec.plain(sample))
        del told[field.name]
        try:
            codec.read(type(sample), told)
        except ProtocolFault as fault:
            assert field.name in str(fault)  # noqa: PT017  # those with a default raise nothing
        else:
            assert replace(sample, **{field.name: getattr(codec.read(type(sample), told), field.name)}) is not None


@dataclass(frozen=True)
class Plain:
    flag: bool
    number: int
    real: float
    text: str


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("flag", 1), ("flag", None), ("number", True), ("number", 1.0), ("real", True), ("real", "1"), ("text", 1)],
)
def test_nothing_is_converted(name: str, wrong: Any) -> None:
    told = {"flag": True, "number": 1, "real": 1, "text": "x"}
    assert codec.read(Plain, told) == Plain(True, 1, 1.0, "x")
    with pytest.raises(ProtocolFault, match=name):
        codec.read(Plain, told | {name: wrong})


@pytest.mark.parametrize("told", [{}, {"version": 2}, {"progress": "x", "warning": "y"}, {"unknown": 1}, {"order": 1}])
def test_a_message_is_of_one_known_kind(told: dict[str, Any]) -> None:
    with pytest.raises(ProtocolFault):
        REPORTS.read(told)


def test_every_message_is_a_dataclass_that_stays_as_it_is() -> None:
    for kind in (*TOLD, Order, Judged, Done, Begin, Request):
        assert is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
