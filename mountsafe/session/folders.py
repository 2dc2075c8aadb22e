"""The folders that one medium is mounted on: which are planned, which of them were made for it, and their removal."""

from collections.abc import Sequence

from mountsafe.medium.choosing import folder_names, label_name
from mountsafe.medium.volumes import Volume
from mountsafe.session.places import Place

MAX_NUMBERED = 1000  # media of one label that a user can have at a time


class Folders:
    """The folder `top` that was asked for, and those that are made in it. Without one nothing is mounted."""

    def __init__(self, top: Place | None) -> None:
        self.top = top
        self.planned: list[Place] = []
        self._below: list[Place] = []

    def plan(self, volumes: Sequence[Volume], by_label: bool) -> Sequence[Place | str]:
        """Return a place for each volume: `top` itself for one alone, unless it is to have its label's name.

        Without `top` it is the name that its folder would have beside others.
        """
        if self.top is None:
            return folder_names(list(volumes))
        if by_label:
            self.planned = [self._made(self.top, label_name(volume), MAX_NUMBERED) for volume in volumes]
        elif len(volumes) == 1:
            self.planned = [self.top]
        else:
            self.planned = [self._made(self.top, name) for name in folder_names(list(volumes))]
        return self.planned

    def _made(self, top: Place, name: str, most: int = 1) -> Place:
        self._below.append(top.below(name, most))
        return self._below[-1]

    @property
    def made(self) -> list[Place]:
        """Those that were not there before."""
        return ([self.top] if self.top is not None and self.top.created else []) + self._below

    def give_up(self, place: Place | str) -> None:
        """Remove a folder that nothing is mounted on after all, if it was made in `top`."""
        if isinstance(place, Place) and place in self._below:
            place.remove()
            self._below.remove(place)

    def remove(self) -> None:
        """Remove all that were made."""
        for place in reversed(self.made):
            place.remove()
