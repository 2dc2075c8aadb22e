"""What the policy says about a medium that somebody opens by hand, asked once it is known what is inside."""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.source import Medium
from mountsafe.policy import files
from mountsafe.policy.facts import Facts
from mountsafe.policy.inside import Judgement, Seen, judge
from mountsafe.policy.rules import Decision
from mountsafe.session.start import Judge
from mountsafe.text import shown_path


def judge_of(medium: Medium, warn: Callable[[str], None]) -> Judge:
    """Return who judges what is found in a medium: what the policy refuses is not shown.

    What it asks about is: naming a medium by hand is the answer. `warn` hears the reason. How it is mounted is for who
    does it by hand to say.
    """
    policy = files.load()
    known = _known(medium)

    def judged(found: Sequence[Seen]) -> Judgement:
        judgement = judge(policy.decide, known, found)
        if judgement.nothing:
            raise _refusal(medium, next(iter(judgement.refused.values())))
        if judgement.asks is not None:
            warn(f"the policy asks before it opens {medium.name}: {judgement.asks.reason}")
        return replace(judgement, mount_options={}, read_only=frozenset())

    return judged


def _known(medium: Medium) -> Facts:
    """Return what is known from outside: of an image nothing but its size, as `policy explain` has it."""
    if not medium.block_device:
        return Facts(bus="image", size=medium.size)
    from mountsafe.hotplug.devices import facts_of  # loads libudev, which few verbs need

    name = Path(os.path.realpath(medium.path)).name
    try:
        found = facts_of(medium.path)
    except UserError:  # no udev here: then nobody can say that it is inside the machine
        return Facts(device=name, size=medium.size)
    made_here = Facts(device=name, size=medium.size, external=False)
    return next((facts for facts in found if facts.device == name), made_here)


def _refusal(medium: Medium, decision: Decision) -> UserError:
    rule = f' (rule "{decision.rule}")' if decision.rule else ""
    hint = f"mountsafe policy explain {shlex.quote(shown_path(medium.path))} says where that is written."
    return UserError(f"the policy refuses {medium.name}: {decision.reason}{rule}", hint, ExitCode.SOURCE)
