"""The findings about a recipe: all its faults, and notes for its author."""

from __future__ import annotations

from collections.abc import Iterable

from sensmerge.errors import InputError
from sensmerge.recipe.leniency import DEFAULT_LENIENCY, Leniency
from sensmerge.recipe.methods import Method
from sensmerge.refusals import Location, Refusal, key_of


class Findings:
    """Refusals and notes, collected so that one run reports them all."""

    def __init__(self, leniency: Leniency = DEFAULT_LENIENCY) -> None:
        self.leniency = leniency
        self._refusals: list[Refusal] = []
        self._notes: list[str] = []
        self._unread: set[str] = set()
        self._unused: dict[tuple[str, str], list[str]] = {}
        self._moved: dict[Location, Location] = {}

    def moved(self, location: Location, written: Location) -> None:
        """Record that the user wrote at ``written`` what was read as if it were at a location."""
        self._moved[location] = written

    def written(self, location: Location) -> Location:
        """Where the user wrote what was read at a location."""
        for length in range(len(location), 0, -1):
            if location[:length] in self._moved:
                return (*self._moved[location[:length]], *location[length:])
        return location

    def refuse(self, location: Location, reason: str) -> None:
        """Record a fault at a location."""
        self._refusals.append(Refusal(location, reason))

    def note(self, sentence: str) -> None:
        """Record a note for the author, about something that is allowed."""
        self._notes.append(sentence)

    def unused(self, location: Location, method: Method | None, reason: str = "") -> None:
        """Record a key that has no effect. A key of several models makes one note."""
        reason = reason or (f"{method.name} does not use it" if method is not None else "")
        if reason:
            self._unused.setdefault((str(location[-1]), reason), []).append(
                key_of(self.written(location))
            )

    def refused(self, *roots: str) -> bool:
        """Whether a fault was recorded under one of these keys of the recipe."""
        return any(refusal.location[0] in roots for refusal in self._refusals)

    def leave_out(self, root: str) -> None:
        """Record that the value of a key of the recipe could not be read."""
        self._unread.add(root)

    def read(self, *roots: str) -> bool:
        """Whether the values of these keys of the recipe could be read."""
        return self._unread.isdisjoint(roots)

    @property
    def notes(self) -> list[str]:
        """Notes for the author, one sentence each."""
        folded = []
        for (_, reason), keys in self._unused.items():
            more = "" if len(keys) == 1 else f" and {len(keys) - 1} more like it"
            folded.append(f"{keys[0]}{more}: {reason}")
        return [*folded, *self._notes]

    def check(self, keys: Iterable[str]) -> None:
        """Refuse the recipe if it has any fault.

        Args:
            keys: The recipe's keys, in its order.

        Raises:
            InputError: Its message has a line for each fault: first those of the method, on which
                others depend, then in the recipe's order.
        """
        if not self._refusals:
            return
        order = {key: place for place, key in enumerate(keys)} | {"merge_method": -1}

        def place(refusal: Refusal) -> tuple[int, int]:
            root, *rest = self.written(refusal.location)
            within = rest[0] if rest and isinstance(rest[0], int) else -1
            return order.get(str(root), len(order)), within

        ordered = sorted(self._refusals, key=place)
        lines = (str(Refusal(self.written(each.location), each.reason)) for each in ordered)
        raise InputError(list(dict.fromkeys(lines)))
