"""The key process in its box, and what the host believes of its words."""

import fcntl
import os
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio

from mountsafe import channel, trios
from mountsafe.encrypted import keys, tcrypt, told
from mountsafe.encrypted.description import MAX_SLOTS, Description, Form, Kind, Slot
from mountsafe.encrypted.faults import Fault
from mountsafe.encrypted.keys import KeyProcess, Secret, key_memory
from mountsafe.encrypted.messages import ANSWERS, Answer, Described, Failed, Opened
from mountsafe.errors import DeadlinePassed, ExitCode, GuestGone, ProtocolFault, UserError
from mountsafe.medium import libgcrypt
from mountsafe.medium.encryption import Cipher, Layer, Layout, Segment, SegmentKind, Stack
from mountsafe.process import Child, descendants
from tests import encrypted
from tests.encrypted import FAST, FAST2, LUKS2, SECRET

T = TypeVar("T")
PASSPHRASE = Secret(Form.PASSPHRASE)
DESCRIPTION = Description(Kind.LUKS, 2, "aes-xts-plain64", 512, 512)
LAYOUT = Layout(Cipher.AES_XTS, 64, 512, 512, 4096, (Segment(0, 4096, SegmentKind.CRYPT, 512, 0),))


@pytest.fixture(autouse=True, scope="module")
def programs(program: Callable[[str], str]) -> None:
    program("bwrap")
    program("cryptsetup")


def given(secret: bytes) -> int:
    """A descriptor of a secret."""
    fd = os.memfd_create("secret", os.MFD_CLOEXEC)
    os.write(fd, secret)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def ask(
    path: Path, what: Callable[[KeyProcess], Awaitable[T]], fstype: str | None = None, stack: Stack | None = None
) -> T:
    """Do something with the key process of a volume in a file."""
    size = path.stat().st_size

    async def run() -> T:
        fd = os.open(path, os.O_RDONLY)
        try:
            process = KeyProcess.start(stack or Stack(True, size, 0, size), [fd], fstype)
        finally:
            os.close(fd)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.log_words)
                result = await what(process)
                nursery.cancel_scope.cancel()
            return result
        finally:
            await process.stop()

    return trios.run(run)


def unlock(
    path: Path, *secrets: bytes, secret: Secret = PASSPHRASE, others: Sequence[bytes] = (), **how: Any
) -> tuple[Layout, bytes]:
    """Try secrets, all but the last of which are wrong; return the layout and the key."""

    async def run(process: KeyProcess) -> tuple[Layout, bytes]:
        memory = key_memory()
        try:
            for each in secrets:
                fds = [given(data) for data in (each, *others)]
                try:
                    layout = await process.unlock(secret, fds, memory)
                    return layout, os.pread(memory, 1000, 0)
                except UserError as error:
                    if error.code is not ExitCode.LOCKED or each == secrets[-1]:
                        raise
                finally:
                    channel.close(fds)
            raise AssertionError("no secret")
        finally:
            os.close(memory)

    return ask(path, run, **how)


@pytest.mark.parametrize(
    "options",
    [
        ("--type", "luks1", *FAST),
        FAST2,
        (
            *LUKS2,
            "--pbkdf",
            "argon2id",
            "--pbkdf-force-iterations",
            "4",
            "--pbkdf-memory",
            "65536",
            "--pbkdf-parallel",
            "4",
        ),
    ],
)
def test_a_key_comes_out_of_the_box(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = encrypted.luks(tmp_path / "x", *options)
    path.chmod(0o600)  # the process has a descriptor, and no right to a path
    layout, key = unlock(path, b"wrong", b"", SECRET + b"\n")  # a last newline is nobody's passphrase
    assert key == encrypted.volume_key(path)
    assert layout.cipher is Cipher.AES_XTS


def test_a_wrong_key_is_locked(tmp_path: Path) -> None:
    path = encrypted.luks(tmp_path / "x", *FAST2)
    with pytest.raises(UserError) as failure:
        unlock(path, b"wrong")
    assert failure.value.code is ExitCode.LOCKED
    with pytest.raises(UserError) as failure:
        unlock(path, SECRET + b"\n", secret=Secret(Form.KEY_FILE))  # of a key file every byte counts
    assert failure.value.code is ExitCode.LOCKED
    with pytest.raises(UserError) as failure:
        unlock(path, bytes(8 << 20), secret=Secret(Form.KEY_FILE))
    assert failure.value.message == told.WORDS[Fault.WRONG_KEY][0]
    with pytest.raises(UserError) as failure:
        unlock(path, bytes((8 << 20) + 1))
    assert failure.value.message == told.WORDS[Fault.SECRET_TOO_LONG][0]


def test_the_memory_of_the_key_changes_no_more(tmp_path: Path) -> None:
    path = encrypted.luks(tmp_path / "x", *FAST2)

    async def run(process: KeyProcess) -> None:
        memory, secret = key_memory(), given(SECRET)
        await process.unlock(PASSPHRASE, [secret], memory)
        assert os.fstat(memory).st_size == 64
        for change in (
            lambda: os.pwrite(memory, b"x", 0),
            lambda: os.ftruncate(memory, 1),
            lambda: os.ftruncate(memory, 99),
        ):
            with pytest.raises(PermissionError):
                change()
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        with pytest.raises(ProcessLookupError):  # it is gone, with all that it knew
            os.kill(process.pid, 0)
        channel.close([memory, secret])

    ask(path, run)


def test_what_it_is_said_without_a_key(tmp_path: Path) -> None:
    path = encrypted.luks(tmp_path / "x", *FAST2, "--label", "x\x1b[2J")
    said = ask(path, KeyProcess.describe, fstype="crypto_LUKS")
    assert (said.title, said.label) == ("LUKS2", "x\\x1b[2J")
    (tmp_path / "noise").write_bytes(os.urandom(4096))
    with pytest.raises(UserError) as failure:
        ask(tmp_path / "noise", KeyProcess.describe)
    assert failure.value.code is ExitCode.SOURCE
    assert ask(tmp_path / "noise", KeyProcess.describe, fstype="VeraCrypt").title == "VeraCrypt"


def test_a_header_and_key_files_come_along(tmp_path: Path) -> None:
    head = tmp_path / "header"
    path = encrypted.luks(tmp_path / "x", *FAST2[:2], "--pbkdf", "pbkdf2", *FAST, "--header", head, size=1 << 20)
    layout, key = unlock(path, SECRET, secret=replace(PASSPHRASE, header=True), others=[head.read_bytes()])
    assert (key, layout.size) == (encrypted.volume_key(head), 1 << 20)
    files = [b"one", b"two", b"three"]
    mixed = tcrypt.mixed(Kind.VERACRYPT, SECRET, files)
    header = encrypted.tcrypt_header(encrypted.tcrypt_plain(bytes(range(64))), mixed, "sha512", 16000)
    (tmp_path / "vera").write_bytes(encrypted.tcrypt({0: header}))
    secret = Secret(Form.PASSPHRASE, pim=1, keyfiles=3)
    _, key = unlock(tmp_path / "vera", SECRET, secret=secret, others=files, fstype="VeraCrypt")
    assert key == bytes(range(64))


def test_a_volume_that_lies_inside_others(tmp_path: Path) -> None:
    """Its bytes are in two pieces of a partition."""
    data = encrypted.luks(tmp_path / "x", *FAST2).read_bytes()
    half = 1 << 20
    (tmp_path / "y").write_bytes(bytes(512) + data[half:] + data[:half])
    size = len(data)
    places = ((0, size - half, half), (half, 0, size - half))
    stack = Stack(True, size + 512, 512, size, (Layer(places, size, None),))
    _, key = unlock(tmp_path / "y", SECRET, stack=stack)
    assert key == encrypted.volume_key(tmp_path / "x")


def many_slots(told: dict[str, Any]) -> None:
    """Each in an area of its own: but for their number it would open."""
    slot = told["keyslots"]["0"]
    area, size = slot["area"], int(slot["area"]["size"])
    places = [int(area["offset"]) + number * size for number in range(MAX_SLOTS + 1)]
    slots = [slot | {"area": area | {"offset": str(place)}} for place in places]
    told["keyslots"] = {str(number): each for number, each in enumerate(slots)}
    told["digests"]["0"]["keyslots"] = list(told["keyslots"])


def costs(**kdf: Any) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        told["keyslots"]["0"]["kdf"] = {"salt": "c2FsdHNhbHRzYWx0"} | kdf

    return change


ROOMY = ("--type", "luks2", "--luks2-metadata-size", "64k", "--luks2-keyslots-size", "16m", "--pbkdf", "pbkdf2", *FAST)
COSTLY: dict[str, tuple[Callable[[dict[str, Any]], None], Fault]] = {
    "time": (costs(type="pbkdf2", hash="sha256", iterations=2_000_000_000), Fault.TOO_COSTLY),
    "memory": (costs(type="argon2id", time=4, memory=3 << 20, cpus=1), Fault.TOO_COSTLY),
    "passes": (costs(type="argon2id", time=4_000_000_000, memory=1 << 18, cpus=1), Fault.TOO_COSTLY),
    "slots": (many_slots, Fault.DAMAGED),
}


@pytest.mark.parametrize("what", COSTLY)
def test_a_hostile_header_ends_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """It is told what is wrong with it long before the deadline, and not that the key was."""
    monkeypatch.setattr(keys, "KEY_DEADLINE", 30.0)
    change, fault = COSTLY[what]
    path = encrypted.luks(tmp_path / "x", *ROOMY, size=18 << 20)
    path.write_bytes(encrypted.with_json(path.read_bytes(), change))
    with pytest.raises(UserError) as failure:
        unlock(path, SECRET)
    sentence, _, code = told.WORDS[fault]
    assert failure.value.message.startswith(sentence.partition("{}")[0])
    assert failure.value.code is code is ExitCode.SOURCE


def test_memory_that_is_not_there_is_no_wrong_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--pbkdf-force-iterations", "4", "--pbkdf-memory", "400000", "--pbkdf-parallel", "1")
    path = encrypted.luks(tmp_path / "x", *LUKS2, "--pbkdf", "argon2id", *options)
    monkeypatch.setattr(keys, "KEY_ADDRESS_SPACE", -(1 << 30) + (350 << 20))
    with pytest.raises(UserError) as failure:
        unlock(path, SECRET)
    assert failure.value.code is ExitCode.DEPENDENCY
    assert "memory" in failure.value.message


def test_nothing_of_it_is_to_be_seen(tmp_path: Path) -> None:
    """Not its memory by its own user, and no core; no file is open but what it was given."""
    path = encrypted.luks(tmp_path / "x", *FAST2)

    def look(box: int) -> None:
        pids = [pid for pid in descendants(box) if b"derive" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        inner = Path(f"/proc/{pids[-1]}")
        assert (inner / "environ").stat().st_uid == 0  # undumpable: root's, whoever runs it
        assert re.search(r"Max core file size +0 +0 ", (inner / "limits").read_text())
        names = {os.readlink(link) for link in (inner / "fd").iterdir()}
        assert {name for name in names if name.startswith("/") and name != "/dev/null"} == {str(path)}

    async def run(process: KeyProcess) -> None:
        await process.describe()
        look(process.pid)

    ask(path, run)


# --- a process that was taken over -----------------------------------------------------------------------------------
class Silent:
    """A process that says nothing to the log, and has ended in some way."""

    last_line = ""
    pid = -1

    def __init__(self, code: int = 0) -> None:
        self._code = code
        self.hushed = False

    def hush(self) -> None:
        self.hushed = True

    async def wait(self) -> int:
        return self._code

    async def stop(self) -> None:
        pass


def heard(said: Answer | bytes | None, code: int = 0, describe: bool = False, size: int = 1 << 20) -> Any:
    """What the host makes of an answer."""

    async def run() -> Any:
        ours, theirs = channel.pair()
        process = KeyProcess(size, cast("Child", Silent(code)), ours)
        memory, secret = key_memory(), given(SECRET)
        try:
            with theirs:
                if said is not None:
                    theirs.send(said if isinstance(said, bytes) else channel.encode(ANSWERS.told(said)))
                else:
                    theirs.shutdown(2)
                return await (process.describe() if describe else process.unlock(PASSPHRASE, [secret], memory))
        finally:
            channel.close([memory, secret])
            with suppress(OSError):
                process._control.close()

    return trios.run(run)


def test_what_it_says_is_not_logged_once_it_has_a_secret() -> None:
    async def run() -> None:
        memory, secret = key_memory(), given(SECRET)
        silent = Silent()
        ours, theirs = channel.pair()
        with theirs:
            process = KeyProcess(1 << 20, cast("Child", silent), ours)
            for answer in (Described(DESCRIPTION), Opened(LAYOUT)):
                theirs.send(channel.encode(ANSWERS.told(answer)))
            await process.describe()
            assert not silent.hushed
            await process.unlock(PASSPHRASE, [secret], memory)
            assert silent.hushed
        channel.close([memory, secret])

    trios.run(run)


def test_a_layout_that_can_be() -> None:
    assert heard(Opened(LAYOUT)) == LAYOUT


@pytest.mark.parametrize(
    "layout",
    [
        replace(LAYOUT, size=1 << 40),
        replace(LAYOUT, key_size=1 << 30),
        replace(LAYOUT, sector=0),
        replace(LAYOUT, segments=()),
        replace(LAYOUT, segments=(Segment(0, 4096, SegmentKind.CRYPT, 1 << 20, 0),)),
        replace(LAYOUT, segments=(Segment(0, 4096, SegmentKind.CRYPT, -512, 0),)),
    ],
)
def test_a_layout_that_cannot_be(layout: Layout) -> None:
    with pytest.raises(ProtocolFault):
        heard(Opened(layout))


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"opened":5}', b'{"failed":{"fault":"x","detail":""}}', b"{}"])
def test_what_is_no_answer(said: bytes) -> None:
    for describe in (False, True):
        with pytest.raises(ProtocolFault):
            heard(said, describe=describe)


def test_an_answer_to_another_question() -> None:
    with pytest.raises(ProtocolFault):
        heard(Opened(LAYOUT), describe=True)
    with pytest.raises(ProtocolFault):
        heard(Described(DESCRIPTION))


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_has_words_of_ours(fault: Fault) -> None:
    with pytest.raises(UserError) as failure:
        heard(Failed(fault, "\x1b[2J" + "x" * 5000))
    assert failure.value.message.isprintable()
    assert len(failure.value.message) < 300
    locked = {Fault.WRONG_KEY, Fault.NO_SLOT, Fault.NOT_TEXT, Fault.NOT_A_RECOVERY_KEY, Fault.NOT_A_KEY_FILE}
    if fault is Fault.NO_MEMORY:
        assert failure.value.code is ExitCode.DEPENDENCY
    else:
        is_locked = fault in locked | {Fault.SECRET_TOO_LONG}
        assert failure.value.code is (ExitCode.LOCKED if is_locked else ExitCode.SOURCE)


def test_who_is_killed_wanted_memory() -> None:
    for code in (-signal.SIGKILL, 137):
        with pytest.raises(UserError) as failure:
            heard(None, code)
        assert failure.value.code is ExitCode.DEPENDENCY
    with pytest.raises(GuestGone):
        heard(None, 1)


def test_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KEY_DEADLINE", 0.1)

    async def run() -> None:
        ours, theirs = channel.pair()
        memory = key_memory()
        with theirs:
            process = KeyProcess(4096, cast("Child", Silent()), ours)
            try:
                await process.unlock(Secret(Form.CLEAR_KEY), [], memory)
            finally:
                process._control.close()
                os.close(memory)

    with pytest.raises(DeadlinePassed):
        trios.run(run)


def test_texts_are_shown_escaped_and_bounded() -> None:
    evil = "\x1b[2J\u202e" + "x" * 5000
    slot = Slot(evil, Form.PASSPHRASE, evil)
    said = heard(
        Described(replace(DESCRIPTION, cipher=evil, label=evil, uuid=evil, slots=(slot,), words=((evil, evil),))),
        describe=True,
    )
    for text in (said.cipher, said.label, said.uuid, said.slots[0].name, said.slots[0].kdf, *said.words[0]):
        assert text.isprintable()
        assert len(text) < 600


@pytest.mark.parametrize(
    "description",
    [
        replace(DESCRIPTION, slots=(Slot("0", None, "x"),) * (MAX_SLOTS + 1)),
        replace(DESCRIPTION, words=(("a", "b"),) * 100),
        replace(DESCRIPTION, key_bits=-1),
        replace(DESCRIPTION, slots=(Slot("0", None, "x", iterations=-1),)),
    ],
)
def test_a_description_that_cannot_be(description: Description) -> None:
    with pytest.raises(ProtocolFault):
        heard(Described(description), describe=True)


def test_too_many_key_files_are_said() -> None:
    async def run() -> None:
        ours, theirs = channel.pair()
        with theirs:
            process = KeyProcess(4096, cast("Child", Silent()), ours)
            try:
                await process.unlock(Secret(Form.PASSPHRASE, keyfiles=50), [], -1)
            finally:
                process._control.close()

    with pytest.raises(UserError) as failure:
        trios.run(run)
    assert failure.value.code is ExitCode.USAGE


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    keys.require()
    monkeypatch.setattr(libgcrypt, "LIBRARY", "libgcrypt.so.99")
    with pytest.raises(UserError, match="libgcrypt") as failure:
        keys.require()
    assert failure.value.code is ExitCode.DEPENDENCY
    monkeypatch.setattr(keys, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="argon2"):
        keys.require()
