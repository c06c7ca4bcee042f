"""Warnings about experts that have memorised the samples.

A search on memorised samples favours the experts that know them by heart. Measured on a small
family: with samples from the experts' own training data Sens-Merging does as well as with fresh
ones, and learned weights make the merge worse.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sensmerge.calibration import loading
from sensmerge.search.tasks import mean, sample_losses

if TYPE_CHECKING:
    from sensmerge.models import Models
    from sensmerge.search.tasks import Task

# An expert whose loss on the samples learned from is below this share of its loss on the validation
# samples knows the former by heart, if the losses are also this many standard errors apart.
OF_VALIDATION = 0.7
STANDARD_ERRORS = 3.0

# An expert whose loss is below this share of the base's on the same samples may know them by heart.
# A skill alone can bring it to a tenth (of word problems, for instance), hardly below this.
OF_BASE = 0.05


def notes(models: Models, tasks: list[Task]) -> list[str]:
    """A warning for every expert that seems to have memorised its samples."""
    of_base: list[list[float]] | None = None
    if models.base is not None:
        tokenizer = tasks[0].source.tokenizer
        base = loading.Source(models.base.name, models.base.path, tokenizer, True)
        of_base = sample_losses(loading.load(base, "stored"), [task.search for task in tasks])
    found = []
    for place, task in enumerate(tasks):
        model = loading.load(task.source, "stored")
        search, validation = sample_losses(model, [task.search, task.validation])
        del model
        found += judge(task.name, search, validation, None if of_base is None else of_base[place])
    return found


def judge(
    name: str, search: list[float], validation: list[float], base: list[float] | None
) -> list[str]:
    """Warn about an expert whose losses suggest that it has memorised samples.

    Args:
        name: The expert.
        search: Its loss on every sample that is learned from.
        validation: On those that are not.
        base: The base's loss on every sample that is learned from; None without a base.
    """
    advice = "learned weights then do worse on others; use samples that no expert was trained on"
    ours = mean(search)
    if len(search) > 1 and len(validation) > 1:
        theirs = mean(validation)
        error = math.hypot(_error(search), _error(validation))
        if ours < OF_VALIDATION * theirs and theirs - ours > STANDARD_ERRORS * error:
            return [
                f"expert '{name}' seems to have memorised its samples: its loss on those learned "
                f"from is {ours:.3f}, on the validation samples {theirs:.3f}; {advice}"
            ]
    if base is not None and ours < OF_BASE * mean(base):
        return [
            f"expert '{name}' may have memorised its samples: its loss on them is {ours:.4f}, "
            f"below {OF_BASE:g} times the base's {mean(base):.3f}; {advice}"
        ]
    return []


def _error(losses: list[float]) -> float:
    """Standard error of the mean."""
    return float(np.std(losses, ddof=1)) / math.sqrt(len(losses))
