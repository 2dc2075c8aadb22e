"""The polkit rule: udisks may not mount, unlock or set up what is managed. Pure text.

It is a backstop for the mask that udev sets: udisks tells polkit the type it sees. polkit never asks about root.
"""

from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Policy, Verdict
from mountsafe.policy.udev import MASK

NAME = "10-mountsafe.rules"  # early: the first rule that has an answer decides

_RULE = """\
// Made by `mountsafe policy install` from /etc/mountsafe; changes here are lost.
// What mountsafe manages is mounted and unlocked by mountsafe alone. polkit never asks about root.
polkit.addRule(function(action, subject) {
    var forbidden = ["org.freedesktop.udisks2.filesystem-mount", "org.freedesktop.udisks2.encrypted-unlock"];
    for (var i = 0; i < forbidden.length; i++) {
        if (action.id.indexOf(forbidden[i]) === 0 && action.lookup("id.type") === "%s") {
            polkit.log("mountsafe: refused " + action.id + " of " + action.lookup("device"));
            return polkit.Result.NO;
        }
    }
    return polkit.Result.NOT_HANDLED;
});
"""
_LOOPS = """\
// A rule of the policy manages loop devices: nobody but root makes one.
polkit.addRule(function(action, subject) {
    return action.id === "org.freedesktop.udisks2.loop-setup" ? polkit.Result.NO : polkit.Result.NOT_HANDLED;
});
"""


def render(policy: Policy) -> dict[str, str]:
    """Return the file by name."""
    loops = policy.decide(Facts(bus="loop", external=False)).verdict != Verdict.KERNEL
    return {NAME: _RULE % MASK + (_LOOPS if loops else "")}
