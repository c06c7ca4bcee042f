"""By benchmarks: merged in memory, and scored by lm-evaluation-harness."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from sensmerge.errors import InputError
from sensmerge.farm import test_sets
from sensmerge.farm.evaluators import Better, Context, Evaluator
from sensmerge.farm.jobs import Job, Merged, Scores
from sensmerge.recipe.fields import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping


class BenchmarkSettings(Strict):
    """Tasks of the harness; docs/evaluation.md.

    Attributes:
        tasks: Names of tasks; the score is the mean of theirs.
        tasks_dir: A folder with task files of your own.
        limit: Samples of each task, from its start; None for all.
        batch_size: Requests that run at a time.
    """

    tasks: Annotated[list[str], Field(min_length=1)]
    tasks_dir: str | None = None
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=1, ge=1)

    def opened(self, context: Context) -> Evaluator:
        """The evaluator; needs ``sensmerge[eval]``."""
        return Benchmarks(self, context)


class Benchmarks:
    """Candidates take turns: the harness scores one model at a time."""

    needs_output = False
    better: Better = "higher"

    def __init__(self, settings: BenchmarkSettings, context: Context) -> None:
        """Keep what scoring needs."""
        self._settings, self._context = settings, context
        self._turn = threading.Lock()
        self._stopped = threading.Event()

    def evaluate(self, job: Job) -> Scores:
        """Merge a candidate in memory and score it.

        Raises:
            InputError: It cannot be merged, or a task or its data cannot be used.
        """
        from sensmerge.evaluation import scores_of

        settings, place = self._settings, self._settings.tasks_dir
        recipe = job.read()
        with self._turn:
            if self._stopped.is_set():
                raise InputError("the farm is being stopped")
            ready = self._context.bench.ready(recipe, job.measured)
            scores: Mapping[str, float] = scores_of(
                recipe,
                settings.tasks,
                tasks_dir=None if place is None else Path(self._context.folder, place),
                limit=settings.limit,
                batch_size=settings.batch_size,
                calibration=job.measured,
                device=self._context.device,
                threads=self._context.threads,
                progress=False,
            )
        found = None if ready.coefficients is None else ready.coefficients.as_dict()
        mean = math.fsum(scores.values()) / len(scores)
        return Scores(mean, dict(scores), merged=Merged(coefficients=found))

    def key(self) -> dict[str, Any]:
        """The settings, and the kind of device."""
        said = self._settings.model_dump(exclude={"batch_size"})
        return {"benchmarks": said, "device": self._context.device.partition(":")[0]}

    def notes(self) -> list[str]:
        """Published benchmarks are test sets, whatever they are called."""
        return [
            f"evaluate.benchmarks: {', '.join(self._settings.tasks)}: {test_sets.SO}",
        ]

    def stop(self) -> None:
        """Score no other candidate; the one that is being scored ends first."""
        self._stopped.set()

    def close(self) -> None:
        """Nothing was taken."""
