"""Warnings about experts that have memorised the samples.

A search on memorised samples favours the experts that memorised them. Measured on a small family of
models: with samples from the experts' own training data, Sens-Merging is as good as with fresh
samples, while learned weights make the merge worse.
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

# An expert seems to have memorised the samples learned from if its loss on them is below this
# fraction of its loss on the validation samples, and the losses are this many standard errors
# apart.
OF_VALIDATION = 0.7
STANDARD_ERRORS = 3.0

# An expert may have memorised samples if its loss on them is below this fraction of the base's. A
# skill alone can bring the loss to a tenth (for word problems, for instance), but hardly below
# this.
OF_BASE = 0.05


def notes(models: Models, tasks: list[Task]) -> list[str]:
    """A warning for every expert that seems to have memorised its samples."""
    of_base: list[list[float]] | None = None
    if models.base is not None:
        tokenizer = tasks[0].source.tokenizer
        base = loading.Source(models.base.name, models.base.path, tokenizer, True, models.base)
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
        name: The expert's name.
        search: Its loss on every search sample.
        validation: Its loss on every validation sample.
        base: The base's loss on every search sample; None without a base.
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
