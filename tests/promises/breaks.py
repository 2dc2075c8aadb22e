"""How each promise of SECURITY.md is broken on purpose: `old` for `new` in a file of mountsafe/, wherever it stands.

Each leaves a program that runs, and does what nobody should be able to.
"""

from typing import NamedTuple

FOR_EVER = 'float("inf")'


class Break(NamedTuple):
    """One change."""

    file: str
    old: str
    new: str


BREAKS: dict[int, list[Break]] = {
    1: [
        Break("medium/source.py", "os.O_RDONLY | os.O_CLOEXEC", "os.O_RDWR | os.O_CLOEXEC"),
        Break("medium/source.py", "found = sealed(fd, source)", "found = None"),
        Break("appliance/qmp.py", '"read-only": True', '"read-only": False'),
        Break("appliance/guest.py", 'MEDIUM, "read-only": not writable', 'MEDIUM, "read-only": False'),
        Break("agent/mounting.py", 'READ_ONLY = "ro,', 'READ_ONLY = "rw,'),
    ],
    2: [Break("sandbox.py", '"--unshare-all", ', '"--unshare-all", "--share-net", ')],
    3: [Break("sandbox.py", "if os.geteuid() != 0:\n        return None", "if True:\n        return None")],
    4: [
        Break("boxuser.py", "start = os.getpid()", "start = 0"),
        Break(
            "boxuser.py",
            "if not _has_account(uid) and _locked(LOCKS / str(uid)) and uid not in _running():",
            "if True:",
        ),
    ],
    5: [Break("filesystem/untrusted.py", 'if b"/" in untrusted_name or b"\\0" in untrusted_name:', "if False:")],
    6: [
        Break(
            "appliance/client.py",
            'raise GuestFault(f"an answer to request {untrusted_frame.ident}, which nobody made")',
            "return",
        )
    ],
    7: [Break("medium/extents.py", "if physical < 0 or physical + length > window.size:", "if physical < 0:")],
    8: [Break("filesystem/reader.py", "if told == data[: len(told)]:", "if True:")],
    9: [
        Break("session/mounter.py", "0 if request.follow_links else MOUNT_ATTR_NOSYMFOLLOW", "0"),
        Break("filesystem/links.py", 'if untrusted_target.startswith(b"/"):', "if False:"),
        Break("filesystem/links.py", "if not climbing or climbed > depth - 1:", "if False:"),
    ],
    10: [
        Break("session/mounter.py", "MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC", "0"),
        Break("session/mounter.py", 'f"{access},nosuid,nodev,noexec,', 'f"{access},suid,dev,exec,'),
    ],
    11: [Break("filesystem/index.py", "stat.S_ISREG(entry.mode)\n        and others", "True\n        or others")],
    12: [
        Break("filesystem/index.py", "if told >= MAX_DIRECTORY_ENTRIES or not untrusted_entries:", "if False:"),
        Break("filesystem/index.py", "if not again and untrusted_entries and all(", "if False and all("),
    ],
    13: [Break("text.py", "if unicodedata.category(char) not in _ESCAPED_CATEGORIES:", "if True:")],
    14: [Break("appliance/client.py", "with trio.move_on_after(deadline)", f"with trio.move_on_after({FOR_EVER})")],
    15: [Break("sandbox.py", ', "--die-with-parent"', ""), Break("process.py", "kill -s KILL 0", ":")],
    16: [
        Break("cli/opening.py", "                target.remove()  # unless", "                pass  # unless"),
        Break("session/supervisor.py", "            self._folders.remove()\n", "            pass\n"),
    ],
    17: [Break("text.py", "import unicodedata\n", "import unicodedata\n\nimport guestfs\n")],
    18: [Break("medium/source.py", "os.O_EXCL if exclusive else 0", "0")],
    19: [
        Break("policy/udev.py", 'ENV{{ID_FS_TYPE}}="{MASK}", ENV{{ID_FS_USAGE}}="other"\n', ""),
        Break("policy/udev.py", 'ENV{UDISKS_IGNORE}="1", ENV{UDISKS_AUTO}="0", ', ""),
        Break("policy/udev.py", 'ENV{UDISKS_SYSTEM}="1", ENV{SYSTEMD_READY}="0"', 'ENV{MOUNTSAFE_SEEN}="1"'),
    ],
    20: [Break("medium/claim.py", "os.O_RDONLY | os.O_EXCL", "os.O_RDONLY")],
    21: [Break("policy/rules.py", "return cls([], str(error), Access.READ_ONLY)", "return cls([])")],
    22: [Break("system/generated.py", "    if not found:\n        return\n    told", "    return\n    told")],
    23: [Break("daemon/authority.py", "if answer is not True:", "if False:")],
    24: [Break("daemon/control.py", "if uid != 0:", "if False:")],
    25: [Break("desktop/notifications.py", "html.escape(notice.body, quote=False)", "notice.body")],
    26: [Break("sandbox.py", "if seccomp is not None:", "if False:")],
    27: [Break("filesystem/operations.py", "with trio.fail_after(seconds):", "with trio.CancelScope():")],
    28: [
        Break(
            "filesystem/index.py",
            "        if self._entries <= self._limit:\n            return\n        for ino",
            "        return\n        for ino",
        )
    ],
    29: [
        Break("appliance/client.py", "with trio.move_on_after(deadline)", f"with trio.move_on_after({FOR_EVER})"),
        Break("filesystem/agents.py", "with trio.move_on_after(CALL_DEADLINE):", "with trio.CancelScope():"),
        Break("filesystem/operations.py", "with trio.fail_after(seconds):", "with trio.CancelScope():"),
    ],
    30: [Break("agent/names.py", "if error.errno not in BROKEN:", "if True:")],
    31: [Break("limits.py", "UNMOUNT_DEADLINE = 20.0", "UNMOUNT_DEADLINE = 100000.0")],
    32: [
        Break(
            "medium/blocking.py",
            'raise MediumError(f"reading the medium at {offset}: {error.strerror}") from error',
            "data = bytes(length)",
        )
    ],
    33: [Break("limits.py", "AGENT_CHUNKS = 24", "AGENT_CHUNKS = 2400")],
    34: [Break("session/restarts.py", "time.monotonic()", "time.time()")],
    35: [
        Break("container/serve.py", "    if why is not None:\n        raise Refused(why.name)\n", ""),
        Break("container/serve.py", "resource.RLIMIT_NOFILE, (lowest, before[1])", "resource.RLIMIT_NOFILE, before"),
    ],
    36: [
        # not where the medium is opened: the test itself changes that line, in a copy
        Break("medium/sealed.py", '    made = _through_mount(fd, b"")\n', "    return None\n"),
        Break("appliance/serve.py", "    landlock.write_only_in(WRITABLE, [DEVICES])\n", ""),
        Break("container/serve.py", "    landlock.write_only_in(WRITABLE, [DEVICES])\n", ""),
    ],
    37: [
        Break("process.py", "    for pid in orphans():", "    for pid in list[int]():"),
        Break("process.py", "kill -s KILL 0", ":"),
    ],
    38: [Break("environment.py", "return value if is_roots_alone(value) else", "return value if True else")],
    39: [
        Break("session/mounter.py", "attach(made, request.place.fd)", "attach(made, os.open(request.place.path, 0))"),
        Break("session/mounter.py", 'cwd=f"/proc/self/fd/{request.place.fd}"', "cwd=request.place.path"),
        Break("session/mounter.py", "if mount.target == place.path:", "if True:"),
    ],
    40: [Break("pieces.py", "if len(whole) <= CONTROL_MESSAGE:", "if True:")],
    41: [Break("system/messages.py", "body > self._most", "False")],
    42: [
        Break(
            "daemon/bus.py",
            "if message.kind in (MessageType.method_call, MessageType.signal):",
            "if HeaderFields.reply_serial not in message.header.fields:",
        ),
        Break("daemon/bus.py", "(not asked.answerer or message.sender in (asked.answerer, BUS))", "True"),
    ],
    43: [
        Break("daemon/keeper.py", 'with self._surviving(IncidentKind.OPEN, ""):', "with suppress(UserError):"),
        Break("daemon/keeper.py", 'with self._surviving(IncidentKind.OPEN, "it cannot be kept"):', "if True:"),
    ],
    44: [Break("session/machines.py", " and self._life.number == number", "")],
    45: [Break("session/logs.py", "if not share.takes(size):", "if False:")],
    46: [Break("medium/block.py", "return self._file and os.fstat(self._fd).st_size < self._size", "return False")],
    47: [
        Break("medium/volumes.py", "if index < 0 or physical + size_ > ends[index]:", "if False:"),
        Break("medium/volumes.py", "if size_ <= 0 or offset < last or offset + size_ > length:", "if False:"),
    ],
    48: [Break("medium/volumes.py", "if any(len(parent.layers) >= MAX_DEPTH for parent in parents):", "if False:")],
    49: [
        Break(
            "system/answers.py",
            "found = [each for each in self._waiting if each.sender == self._owner]",
            "found = self._waiting",
        )
    ],
    51: [Break("medium/conditions.py", "words += resorts.words(untrusted.resorts)", "pass")],
    50: [Break("daemon/keeper.py", "judged=True", "judged=False")],
    52: [
        Break(
            "session/chase.py",
            "theirs = status.st_uid in self._owners and all(map(self._is_theirs, self._held))",
            "theirs = True",
        )
    ],
    54: [Break("fsoptions.py", "not re.fullmatch(known.pattern, value)", "False")],
    55: [Break("cli/completion.py", "return bool(_PLAIN.fullmatch(word)) and printable", "return printable")],
    56: [
        Break("cli/mounting.py", "judged=True", "judged=False"),
        Break("policy/inside.py", "[seen.fstype, seen.found or seen.fstype]", "[seen.fstype]"),
    ],
    53: [Break("appliance/guest.py", '{"size": size} if size is not None else {}', "{}")],
    57: [Break("session/unlocked.py", "self._key = key", "self._key = key\n        self._read = os.pread(key, 64, 0)")],
    58: [
        Break(
            "medium/encryption.py",
            "if not zero and not 0 <= segment.physical <= within - segment.length:",
            "if False:",
        )
    ],
    59: [
        Break("encrypted/kdf.py", "if seconds > self.seconds:", "if False:"),
        Break("encrypted/kdf.py", "if memory > budget.memory:", "if False:"),
        Break("encrypted/luks2header.py", "or len(found) > MAX_SLOTS", ""),
    ],
    60: [
        Break(
            "session/supervisor.py",
            "        return self._machines[-1]\n",
            "        self._machines[0].storage = disk\n        return self._machines[0]\n",
        )
    ],
    61: [
        Break("daemon/requests.py", "if (await self._at_seat()).uid != person.uid:", "if False:"),
        Break("daemon/requests.py", "if self._keepers.get(keeper.device.name) is not keeper:", "if False:"),
    ],
    62: [Break("system/messages.py", "self._brought[0][0] <= end", "True")],
    63: [Break("daemon/keys.py", "status.st_uid != 0 or stat.S_IMODE(status.st_mode) not in MODES", "False")],
    64: [Break("medium/flag.py", "            set_read_only(self._fd, True)", "            pass")],
    65: [Break("session/writing.py", "self._losses.add(untrusted_why, count, untrusted_names)", "pass")],
    66: [
        Break(
            "filesystem/changing.py",
            "        info = self._opened(node)\n",
            "        await self._journal.run(self._journal._require_writing)\n        info = self._opened(node)\n",
        )
    ],
    67: [Break("medium/writable.py", "if not 0 <= offset <= size - length:", "if False:")],
    68: [Break("medium/windows.py", "if _takes(other) and not", "if False and not")],
    69: [
        Break("session/boxes.py", "medium.fd if raw else None", "(medium.writable_fd or medium.fd) if raw else None"),
        Break("session/boxes.py", "[medium.fd] if raw else []", "[medium.writable_fd or medium.fd] if raw else []"),
    ],
    70: [Break("filesystem/replay.py", "in enumerate(self._changes):", "in enumerate(self._changes[:0]):")],
    71: [Break("filesystem/changing.py", "        await self._journal.sync()\n", "        pass\n")],
    72: [Break("encrypted/serve.py", "if _not_kept is not None:", "if False:")],
    73: [Break("library/results.py", "if named and (fault := fault_of_name(untrusted.name)):", "if False:")],
    74: [
        Break("session/supervisor.py", "self._nursery.start_soon(self._end_when_gone)", "pass"),
        Break(
            "filesystem/streaming.py",
            "                    self._over.cancel()\n",
            "                    await trio.sleep_forever()\n",
        ),
    ],
    75: [Break("library/copying.py", "os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW", "os.O_RDONLY | os.O_DIRECTORY")],
}
