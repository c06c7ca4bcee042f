"""The models that a farm keeps on the disk: the best so far, within a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.farm import jobs
from sensmerge.models.inspection import human_size

if TYPE_CHECKING:
    from sensmerge.farm.database import Candidate, Database, Entry
    from sensmerge.farm.evaluators import Better
    from sensmerge.farm.jobs import Merged
    from sensmerge.farm.space import Space


class Kept:
    """The best models, in the farm's folder."""

    def __init__(self, database: Database, space: Space, better: Better, most: int) -> None:
        """Look after them.

        Args:
            database: Where it is written down which these are.
            space: Where they lie.
            better: Which scores are better.
            most: How many are kept.
        """
        self._database, self._space = database, space
        self._better, self._most = better, most

    def models(self) -> list[Entry]:
        """Those whose models lie in the folder, the best first."""
        return self._database.best(self._better, kept=True)

    def trim(self) -> None:
        """Delete models that are not among the best any more."""
        for each in self.models()[self._most :]:
            self._drop(each)

    def make_room(self, size: int, folder: str, waited: Callable[[], bool]) -> None:
        """See to it that an output fits: wait for evaluations, then delete the worst models.

        Args:
            size: What it takes, in bytes, at most.
            folder: The name of its folder.
            waited: Waits for an evaluation to end; false if none is under way.

        Raises:
            InputError: It does not fit into the budget.
        """
        self._space.check(size)
        # Where the disk itself is short, evaluations that end may make room as well.
        while self._space.lacks(size) and waited():
            pass
        while not self._space.fits(size, folder):
            models = self.models()
            if waited():
                continue
            if not models:
                raise InputError(
                    f"disk: {human_size(size)} do not fit beside what the farm's folder holds; "
                    "allow more"
                )
            self._drop(models[-1])

    def settle(
        self, size_of: Callable[[Candidate], int], merge: Callable[[Candidate], Merged]
    ) -> str:
        """See to it that the best models lie in the folder, whole and flushed, and no others.

        Args:
            size_of: What the output of a candidate takes, in bytes, at most.
            merge: Merges a candidate into its folder.

        Returns:
            A note on those that could not be kept; empty if all are there.
        """
        wanted = self._database.best(self._better, limit=self._most)
        numbers = {each.number for each in wanted}
        there = {each.number for each in self.models()}
        for each in self.models():
            if each.number not in numbers:
                self._drop(each)
        missing = []
        for entry in wanted:
            if entry.number in there:
                continue
            candidate = self._database.candidate(entry.number)
            try:
                if not self._space.fits(size_of(candidate), entry.folder):
                    missing.append(f"number {entry.number} does not fit into the budget")
                    continue
                merged = merge(candidate)
            except (InputError, OSError) as error:
                self._space.remove(entry.folder)
                missing.append(f"number {entry.number}: {jobs.reason_of(error)}")
                continue
            self._database.keep(entry.number, True, merged.bytes)
        for each in self.models():
            self._space.flush(each.folder)
        return f"of the best {self._most} not all are kept: {'; '.join(missing)}" if missing else ""

    def _drop(self, entry: Entry) -> None:
        """Delete a model; a kill between the steps leaves a folder that the next run removes."""
        self._database.keep(entry.number, False)
        self._space.remove(entry.folder)
