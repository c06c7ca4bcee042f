"""What scores candidates: one file each, listed in the registry.

A new evaluator is a file with its section of the farm file, a model of pydantic with a method
``opened``, and a class that is an :class:`Evaluator`; and its line in ``registry.py``. It may use
:class:`Context` and the job; it knows nothing of the database, of disks or of other candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from sensmerge.farm.jobs import Job, Scores
    from sensmerge.farm.workbench import Workbench
    from sensmerge.recipe import Recipe

Better = Literal["lower", "higher"]


class Evaluator(Protocol):
    """Scores candidates, several at a time in threads.

    Attributes:
        needs_output: Whether a candidate has to be written to the disk before. If not, the
            evaluator merges it itself, in memory.
        better: Which scores are better.
    """

    needs_output: bool
    better: Better

    def evaluate(self, job: Job) -> Scores:
        """Score a candidate.

        Raises:
            InputError: It has no score; the message says why.
        """
        ...

    def key(self) -> dict[str, Any]:
        """All that scores depend on besides the candidate, as plain data."""
        ...

    def notes(self) -> list[str]:
        """Notes for the user, such as that the score is of a test set."""
        ...

    def stop(self) -> None:
        """End what is under way, from another thread; ``evaluate`` raises then."""
        ...

    def close(self) -> None:
        """Give back what was taken; called once, when nothing is under way."""
        ...


@dataclass(frozen=True)
class Context:
    """What an evaluator may need of the farm.

    Attributes:
        template: The recipe of which candidates are made.
        folder: The folder of the farm file, from which its paths start.
        bench: Opened models and calibrations.
        calibration: The calibration file of a recipe, measured if there is none yet.
        workers: Evaluations at a time.
        device: The torch device that models run on.
        threads: Threads to use; all cores by default.
    """

    template: Recipe
    folder: Path
    bench: Workbench
    calibration: Callable[[Recipe], Path | None]
    workers: int = 1
    device: str = "cpu"
    threads: int | None = None
