"""Evaluation of settings: a candidate is merged in memory and run over the tasks' samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensmerge.calibration.runner import device_of
from sensmerge.errors import InputError
from sensmerge.merging.manifest import Request, request
from sensmerge.models import open_models
from sensmerge.recipe import Sensitivity
from sensmerge.scaling.matching import (
    matching,
    needs_calibration,
    needs_coefficients,
    with_statistics,
)
from sensmerge.scaling.sigma import coefficients
from sensmerge.search import tasks
from sensmerge.search.candidates import Candidate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration import Calibration
    from sensmerge.calibration.samples import Sample
    from sensmerge.recipe import Recipe
    from sensmerge.search.choice import Vector
    from sensmerge.search.settings import Settings

OBJECTIVES = ("mean", "worst")


@dataclass(frozen=True)
class Objective:
    """The quantity to minimise: a weighted mean of the tasks' losses, or the largest of them.

    Attributes:
        kind: ``mean`` or ``worst``.
        weights: The tasks' weights in the mean; None weights all tasks equally.
    """

    kind: str = "mean"
    weights: tuple[float, ...] | None = None

    def check(self, count: int) -> None:
        """Refuse an objective that does not fit this many tasks.

        Raises:
            InputError: The message names the option.
        """
        if self.kind not in OBJECTIVES:
            raise InputError(f"objective: '{self.kind}' is none of {', '.join(OBJECTIVES)}")
        weights = self.weights
        if weights is None:
            return
        if self.kind == "worst":
            raise InputError("task_weights: the worst task's loss has no weights; use 'mean'")
        if len(weights) != count:
            raise InputError(f"task_weights: {len(weights)} weights for {count} tasks")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise InputError("task_weights: give numbers of 0 or more, one above 0 at least")

    def of(self, losses: list[float]) -> float:
        """The objective's value for the tasks' losses."""
        if self.kind == "worst":
            return max(losses)
        weights = self.weights or (1.0,) * len(losses)
        terms = (weight * loss for weight, loss in zip(weights, losses, strict=True))
        return math.fsum(terms) / math.fsum(weights)


class Judge:
    """Computes the losses of settings of one recipe; results are cached.

    Attributes:
        tasks: The tasks, whose samples the losses are computed on.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        calibration: Calibration | str | Path | None,
        validation: float,
        device: str = "cpu",
        threads: int | None,
    ) -> None:
        """Open models and samples.

        Raises:
            InputError: They cannot be used as they are.
        """
        self.recipe = recipe
        self._device = device_of(device)
        options = recipe.sensitivity or Sensitivity()
        self._models = open_models(recipe)
        self.tasks = tasks.load(recipe, options, self._models, validation)
        self._calibration = None
        if calibration is not None and needs_calibration(recipe):
            self._calibration = matching(recipe, calibration, self._models)
        self._models = with_statistics(recipe, self._calibration, self._models)
        self._dtype = options.dtype
        self._threads = threads
        self._candidate: Candidate | None = None
        self._known: dict[tuple[str, str], list[list[float]]] = {}

    def losses(
        self, settings: Settings, part: str = "search", advance: Callable[[int], None] | None = None
    ) -> list[float]:
        """Every task's mean loss.

        Args:
            settings: The candidate.
            part: The samples: ``search`` or ``validation``.
            advance: Called with the number of samples done.

        Raises:
            InputError: The settings cannot be merged, or a loss is not finite.
        """
        return self.losses_of(settings.recipe(self.recipe), part, advance)

    def losses_of(
        self, recipe: Recipe, part: str = "search", advance: Callable[[int], None] | None = None
    ) -> list[float]:
        """Every task's mean loss of a recipe's merge.

        Args:
            recipe: A recipe of the same models, or some of them.
            part: The samples: ``search`` or ``validation``.
            advance: Called with the number of samples done.

        Raises:
            InputError: The recipe cannot be merged, or a loss is not finite.
        """
        return tasks.means(self._by_sample(recipe, part, advance))

    def by_sample(self, settings: Settings) -> list[Vector]:
        """The loss on every sample, as an array for every task: search and validation samples.

        Raises:
            InputError: The settings cannot be merged, or a loss is not finite.
        """
        recipe = settings.recipe(self.recipe)
        found = self._by_sample(recipe, "search")
        if any(task.validation for task in self.tasks):
            held = self._by_sample(recipe, "validation")
            found = [[*ours, *theirs] for ours, theirs in zip(found, held, strict=True)]
        return [np.array(losses) for losses in found]

    def _by_sample(
        self, recipe: Recipe, part: str, advance: Callable[[int], None] | None = None
    ) -> list[list[float]]:
        asked = self._asked(recipe)
        names = [model.name for model in asked.models]
        key = (json.dumps([names, asked.plain()]), part)
        samples = self._samples(part)
        if key not in self._known:
            self._known[key] = tasks.sample_losses(
                self.merged(asked), samples, advance or (lambda _: None)
            )
        elif advance is not None:
            advance(sum(map(len, samples)))
        return self._known[key]

    def merged(self, asked: Request) -> PreTrainedModel:
        """The model of a merge, ready to run; the next merge changes it.

        Raises:
            InputError: It cannot be merged or run.
        """
        if self._candidate is None:
            self._candidate = Candidate(
                self._models,
                asked,
                dtype=self._dtype,
                device=self._device,
                threads=self._threads,
            )
        else:
            self._candidate.merge(asked)
        return self._candidate.model

    def key(self) -> dict[str, Any]:
        """All that losses depend on besides settings, the device among it."""
        measured = self._calibration
        numbers = b""
        if measured is not None:
            numbers = measured.sensitivity.tobytes() + measured.alignment.tobytes()
            beside = [*measured.statistics, measured.activations]
            numbers += b"".join(file.fingerprint.encode() for file in beside if file is not None)
        return {
            "recipe": {key: said for key, said in self.recipe.source.items() if key != "models"},
            "models": [model.fingerprint() for model in self._models.all],
            "samples": [task.digest for task in self.tasks],
            "calibration": hashlib.sha256(numbers).hexdigest(),
            "device": self._device.type,
        }

    def _samples(self, part: str) -> list[list[Sample]]:
        return [task.search if part == "search" else task.validation for task in self.tasks]

    def _asked(self, recipe: Recipe) -> Request:
        found = None
        if needs_coefficients(recipe):
            if self._calibration is None:
                raise InputError("the recipe has a sensitivity section: give a calibration")
            found = coefficients(self._calibration, recipe)
        return request(recipe, found, self._models)
