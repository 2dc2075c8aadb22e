"""What is known about the contents of one medium, and what the policy says about that."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mountsafe.daemon.contents import Contents
from mountsafe.daemon.keys import Keys
from mountsafe.errors import UserError
from mountsafe.hotplug.devices import Device
from mountsafe.medium.volumes import ENCRYPTED
from mountsafe.policy.facts import Facts
from mountsafe.policy.inside import Judgement, Seen, judge
from mountsafe.policy.rules import Access, Decision, Options, Verdict
from mountsafe.session.messages import Locked
from mountsafe.session.record import Mount


class HeldBack(UserError):
    """What was found inside is not to be shown, or not yet."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.reason)
        self.decision = decision


class Otherwise(UserError):
    """What was found inside is to be shown in another way, elsewhere perhaps."""

    def __init__(self, options: Options) -> None:
        super().__init__("it is to be shown in another way")
        self.options = options


class Inside:
    """Of one medium. `approved`: somebody was asked, and wants it opened.

    `contents`: what is told of it. `judge` and `key_file` run in another thread, while the medium's task waits for it.
    """

    def __init__(self, device: Device, decide: Callable[[Facts], Decision]) -> None:
        self.contents = Contents.known(device)
        self.approved = False
        self._outside = self.contents  # what is known of it without a key
        self._facts = device.facts or Facts()
        self._decide = decide

    def found(self, mounts: Sequence[Mount]) -> None:
        """Take note of what is shown."""
        self.contents = self.contents.found(mounts)

    def lock(self) -> None:
        """Forget what was seen in what is encrypted."""
        self.contents = self._outside

    def judge(self, keys: Keys, wished: Options | None, found: Sequence[Seen]) -> Judgement:
        """Ask the policy again, now that it is known what is inside; in a thread. Raises HeldBack, Otherwise."""
        self.contents = self.contents.found([each for each in found if each.chosen] or found)
        if not keys.asked:
            self._outside = self.contents
        judgement = judge(self._decide, self._facts, found)
        if judgement.nothing:
            raise HeldBack(next(iter(judgement.refused.values())))
        if judgement.asks is not None and not self.approved:
            raise HeldBack(judgement.asks)
        if wished is not None:
            kept_out = {*judgement.refused, *judgement.read_only}
            writable = any(each.chosen and each.name not in kept_out for each in found)
            access = Access.ON_DEMAND if writable else wished.access
            if wished.general != judgement.options or wished.access != access:
                raise Otherwise(replace(judgement.options, access=access))
        return judgement

    def key_file(self, locked: Locked) -> str:
        """Return which key file the policy names for what is locked; in a thread."""
        known = self._facts.fstype
        fstype = next((fstype for fstype, kind in ENCRYPTED.items() if locked.kind.startswith(kind)), known)
        decision = self._decide(replace(self._facts, fstype=fstype, uuid=locked.uuid, label=locked.label))
        return decision.options.key_file if decision.verdict in (Verdict.SANDBOX, Verdict.ASK) else ""
