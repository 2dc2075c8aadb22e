"""How many calls may be in progress at a time: for one caller, for one user, and for all who are not root."""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from mountsafe.errors import UserError

OF_A_CALLER, OF_A_USER, OF_ALL = 4, 8, 64  # a password may be waited for in each
UNKNOWN = 128  # callers whose user is not known yet


class Crowded(UserError):
    """There are too many already."""

    def __init__(self) -> None:
        super().__init__("too many calls at a time", "Wait for the answers of the earlier ones.")


class Admission:
    """Counts by any key."""

    def __init__(self) -> None:
        self._held: Counter[Hashable] = Counter()

    @contextmanager
    def hold(self, key: Hashable, most: int) -> Iterator[None]:
        """Hold one of so many places. Raises Crowded."""
        if self._held[key] >= most:
            raise Crowded
        self._held[key] += 1
        try:
            yield
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    @contextmanager
    def hold_for(self, uid: int) -> Iterator[None]:
        """Hold a place of a user's, and one of all users'; root waits for nobody else. Raises Crowded."""
        if uid == 0:
            with self.hold(("uid", uid), OF_ALL):
                yield
        else:
            with self.hold(("uid", uid), OF_A_USER), self.hold("all", OF_ALL):
                yield
