"""Ordinary users do to the daemon's bus what they can, while media are plugged in: `abuse` for some seconds."""

from collections.abc import Callable
from pathlib import Path

from tests.hotplug.abuse import abuse
from tests.hotplug.daemon import Daemon

SECONDS = 20.0


def test_whatever_users_send_media_are_claimed_and_the_service_answers(
    daemon: Daemon, image: Callable[[str], Path]
) -> None:
    came = abuse(daemon, image("jfs"), SECONDS)
    assert came.claims
    assert (came.lost, came.answers, came.same_process) == (0, True, True), came.told() + daemon.words()[-5000:]
    assert "a bug" not in daemon.words()
