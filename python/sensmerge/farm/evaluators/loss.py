"""By the loss on the experts' samples: merged in memory, judged by torch, nothing on the disk."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from sensmerge.farm import test_sets
from sensmerge.farm.evaluators import Better, Context, Evaluator
from sensmerge.farm.jobs import Job, Merged, Scores
from sensmerge.merging.manifest import request
from sensmerge.recipe.fields import Strict
from sensmerge.scaling.matching import needs_files

if TYPE_CHECKING:
    from sensmerge.search.judge import Judge


class LossSettings(Strict):
    """The loss on the experts' samples.

    Attributes:
        objective: What is minimised: the mean of the tasks' losses, or the largest of them.
        task_weights: The tasks' weights in the mean; None weighs all alike.
        validation: Share of each task's samples that no candidate is chosen by.
    """

    objective: Literal["mean", "worst"] = "mean"
    task_weights: list[float] | None = None
    validation: float = Field(default=0.3, ge=0, lt=1)

    def opened(self, context: Context) -> Evaluator:
        """The evaluator; needs torch."""
        return Loss(self, context)


class _StoppedError(Exception):
    """The farm is being stopped."""


class Loss:
    """A model in memory for each worker; merges take turns, runs of models do not."""

    needs_output = False
    better: Better = "lower"

    def __init__(self, settings: LossSettings, context: Context) -> None:
        """Read the samples.

        Raises:
            InputError: torch is missing, or models or samples cannot be used as they are.
        """
        # Imported here, since they import torch.
        from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
        from sensmerge.search.judge import Objective

        self._settings, self._context = settings, context
        weights = settings.task_weights
        self._objective = Objective(settings.objective, None if weights is None else tuple(weights))
        self._objective.check(len(context.template.experts))
        self._merging = threading.Lock()
        self._stopped = threading.Event()
        self._surroundings = contextlib.ExitStack()
        self._surroundings.enter_context(quiet_transformers())
        self._surroundings.enter_context(torch_threads(context.threads))
        self._judges: queue.LifoQueue[Judge | None] = queue.LifoQueue()
        for _ in range(context.workers - 1):
            self._judges.put(None)
        try:
            first = self._judge()
        except BaseException:
            self.close()
            raise
        self._tasks = first.tasks
        self._judges.put(first)

    def _judge(self) -> Judge:
        from sensmerge.search.judge import Judge

        template = self._context.template
        return Judge(
            template,
            # Coefficients come with each candidate.
            calibration=self._context.calibration(template) if needs_files(template) else None,
            validation=self._settings.validation,
            device=self._context.device,
            threads=self._context.threads,
        )

    def evaluate(self, job: Job) -> Scores:
        """Merge a candidate in memory and run it over the samples.

        Raises:
            InputError: It cannot be merged, or a loss is not finite.
        """
        from sensmerge.search.tasks import means, sample_losses

        judge = self._judges.get()
        try:
            with self._merging:
                self._go_on()
                began = time.monotonic()
                judge = judge or self._judge()
                recipe = job.read()
                ready = self._context.bench.ready(recipe, job.measured)
                model = judge.merged(request(recipe, ready.coefficients, ready.models))
                seconds = time.monotonic() - began
            losses = means(sample_losses(model, [task.search for task in self._tasks], self._go_on))
            validation = None
            if self._settings.validation:
                held = sample_losses(model, [task.validation for task in self._tasks], self._go_on)
                validation = self._objective.of(means(held))
        finally:
            self._judges.put(judge)
        found = None if ready.coefficients is None else ready.coefficients.as_dict()
        names = test_sets.distinct([task.name for task in self._tasks])
        return Scores(
            self._objective.of(losses),
            dict(zip(names, losses, strict=True)),
            validation,
            merged=Merged(seconds, 0, found),
        )

    def _go_on(self, _: int = 0) -> None:
        if self._stopped.is_set():
            raise _StoppedError

    def key(self) -> dict[str, Any]:
        """The settings, the samples, and the kind of device."""
        return {
            "loss": self._settings.model_dump(),
            "tasks": [[task.name, task.digest] for task in self._tasks],
            "device": self._context.device.partition(":")[0],
            "dtype": self._context.template.sensitivity
            and self._context.template.sensitivity.dtype,
        }

    def notes(self) -> list[str]:
        """Notes on samples that are a test set, or that none are kept to validate with."""
        said = test_sets.of_samples(self._context.template)
        if not self._settings.validation:
            said.append(
                "nothing is validated: candidates are chosen by the scores that are shown, which "
                "are better than those on other samples will be"
            )
        return said

    def stop(self) -> None:
        """End runs of models after the sample that each is at."""
        self._stopped.set()

    def close(self) -> None:
        """Restore torch's settings."""
        self._surroundings.close()
