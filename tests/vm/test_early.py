"""What the host judges of changes, before a guest has made them, is what each type's driver says of them then."""

import stat
from pathlib import Path

import pytest
import trio

from mountsafe import changes, wire
from mountsafe.changes import Act, Change, Flag
from mountsafe.filesystem.early import ALIKE, KEEPING, Judge, changed
from mountsafe.filesystem.nodes import Listing, Node
from tests.vm.changed import OWNER, Changer
from tests.vm.test_changing import KINDS, MIB, check, in_vm, made

pytestmark = pytest.mark.usefixtures("looking")  # which builds the appliance

JUDGED = [name for name, kind in KINDS.items() if (kind.driver or name).encode() in KEEPING | ALIKE]
LETTERS = bytes(range(1, 127))
TRIED = [
    *(b"a" + bytes([letter]) + b"b" for letter in LETTERS if letter != ord("/")),
    *(bytes([letter]) + b"first" for letter in LETTERS if letter not in b"/."),
    *(b"last" + bytes([letter]) for letter in LETTERS if letter != ord("/")),
    *(
        b"x" * 255,
        b"long name of a file.and.dots.",
        b"CON",
        b"con.txt",
        b"aux",
        b"NUL.x",
        b"com1",
        b"LPT9.doc",
        b"clock$",
    ),
    *(b"Abc", b"aBC", b"LONGNA~1.TXT", b"a long name of a file.txt", b"...", b".hidden", b"  ", b"com0", b"prn .txt"),
    *("\N{LATIN SMALL LETTER U WITH DIAERESIS}".encode(), b"\xff", "u\N{COMBINING DIAERESIS}".encode()),
]


async def judged(vm: Changer, name: str) -> tuple[Judge, Node, Node]:
    """A judge of what is mounted, its root, and a folder in it whose entries are known."""
    mounted = await vm.mount(name)

    async def ask() -> wire.Statfs:
        return wire.unpack_statfs(await vm.ask(wire.Kind.STATFS))

    root = Node(1, None, mounted.root)
    root.listing = Listing(0)
    [told, _] = await vm.change(Act.MKDIR, b"d", mode=stat.S_IFDIR | 0o755)
    folder = Node(2, root, told)
    folder.listing = Listing(0)
    return Judge(mounted.fstype, root, ask), root, folder


@pytest.mark.parametrize("name", JUDGED)
def test_names_that_are_taken_for_good_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    image = made(name, tmp_path)

    async def work(vm: Changer) -> None:
        judge, _, folder = await judged(vm, name)
        assert folder.listing is not None
        taken = 0
        for tried in TRIED:
            change = Change(Act.MKNOD, b"d/" + tried, mode=stat.S_IFREG | 0o640, uid=OWNER[0], gid=OWNER[1])
            guess = await judge.made(folder, tried, change)
            if guess is None:
                continue
            taken += 1
            [told, above] = changes.unpack_changed(await vm.ask(wire.Kind.CHANGE, changes.pack_change(change)))
            assert told.name == tried
            assert told[1:5] == guess[0][1:5], (told, guess[0])  # mode, links, owner
            assert above.nlink == guess[1].nlink
            folder.listing.add(tried, Node(taken + 2, folder, told))
            folder.listing.folded = None
        assert taken > 100
        assert set(await vm.listed(b"d")) == set(folder.listing.names)
        await vm.unmount()

    in_vm(image, work)
    check(name, image)


@pytest.mark.parametrize("name", JUDGED)
def test_what_is_expected_of_a_change_is_what_the_guest_says(name: str, tmp_path: Path) -> None:
    image = made(name, tmp_path)

    async def work(vm: Changer) -> None:
        judge, _, folder = await judged(vm, name)
        create = Change(Act.CREATE, b"d/file", handle=1, mode=stat.S_IFREG | 0o604)
        create = create._replace(uid=OWNER[0], gid=OWNER[1])
        guess = await judge.made(folder, b"file", create)
        assert guess is not None
        [told, _] = changes.unpack_changed(await vm.ask(wire.Kind.CHANGE, changes.pack_change(create)))
        assert told[1:5] == guess[0][1:5]
        node = Node(3, folder, told)
        wrote = await judge.wrote(node, 5000, 3000)
        told = await vm.write(1, bytes(3000), 5000)
        assert wrote is not None
        assert (told.mode, told.size) == (wrote[0].mode, wrote[0].size)
        node.renew(told)
        flags = Flag.SET_MODE | Flag.SET_UID | Flag.SET_GID | Flag.SET_MTIME | Flag.SET_SIZE
        for change in (
            Change(Act.SETATTR, handle=1, flags=flags, mode=0o751, uid=7, gid=8, mtime=10**18, size=70_000),
            Change(Act.SETATTR, handle=1, flags=Flag.SET_MTIME | Flag.SET_SIZE, mtime=2 * 10**18, size=10),
        ):
            expected = await judge.set(node, change)
            if expected is None:
                continue
            [told] = changes.unpack_changed(await vm.ask(wire.Kind.CHANGE, changes.pack_change(change)))
            assert told[1:5] == expected[0][1:5]
            assert (told.size, told.mtime) == (expected[0].size, expected[0].mtime)
            assert changed(told, change).size == told.size
            node.renew(told)
        await vm.unmount()

    in_vm(image, work)
    check(name, image)


@pytest.mark.parametrize("name", ["ext4", "vfat", "exfat", "f2fs"])
def test_what_has_room_for_sure_has_it(name: str, tmp_path: Path) -> None:
    """Small files and large, as many as are promised, until nothing more is: the guest refuses none of them."""
    image = made(name, tmp_path, 128 * MIB if name == "f2fs" else 40 * MIB)

    async def work(vm: Changer) -> None:
        judge, _, folder = await judged(vm, name)
        assert folder.listing is not None
        number = promised = 0
        while number < 2500:
            tried, size = b"f%d" % number, (10, 5000, 300_000)[number % 3]
            create = Change(Act.CREATE, b"d/" + tried, handle=1, mode=stat.S_IFREG | 0o644)
            guess = await judge.made(folder, tried, create)
            if guess is None:
                break
            await vm.ask(wire.Kind.CHANGE, changes.pack_change(create))
            node = Node(number + 3, folder, guess[0])
            if await judge.wrote(node, 0, size) is None:
                break
            await vm.write(1, bytes(size))
            folder.listing.add(tried, node)
            number, promised = number + 1, promised + size
        assert promised > 15 * MIB
        await vm.sync()
        await vm.unmount()
        await trio.lowlevel.checkpoint()

    in_vm(image, work)
    check(name, image)
