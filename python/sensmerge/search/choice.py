"""The choice of one of several candidates by few samples.

The candidate with the lowest loss of many is partly the luckiest. So a simpler one is taken if its
loss is higher by no more than one standard error, over samples, of the difference between the two:
the one-standard-error rule (Breiman et al. 1984, section 3.4.3). Cross-validation tells what such a
choice is worth: losses on a part of the samples are those of the candidate that the rest chooses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sensmerge.search.judge import Objective

Vector = NDArray[np.float64]
# The losses of one candidate: for every task an array with one number a sample.
Losses = Sequence[Vector]

RESAMPLES = 1000
FOLDS = 5
# Fewer samples of a task do not tell how far losses vary.
_FEWEST = 2


@dataclass(frozen=True)
class Difference:
    """How much lower one candidate's objective is than another's.

    Attributes:
        mean: The difference; negative if it is higher.
        error: Its standard error over samples; infinite if these are too few to tell.
    """

    mean: float
    error: float

    def exceeds(self, errors: float = 1) -> bool:
        """Whether it is lower by more than so many standard errors."""
        return self.mean > errors * self.error


def difference(one: Losses, other: Losses, objective: Objective) -> Difference:
    """How much lower the objective is for ``one`` than for ``other``.

    The error is that of the bootstrap, in which both have the same samples.
    """
    mean = _objective([task.mean() for task in other], objective) - _objective(
        [task.mean() for task in one], objective
    )
    if min(map(len, one)) < _FEWEST:
        return Difference(mean, math.inf)
    draw = np.random.default_rng(0)
    means: list[list[Vector]] = [[], []]
    for ours, theirs in zip(one, other, strict=True):
        picked = draw.integers(len(ours), size=(RESAMPLES, len(ours)))
        means[0].append(ours[picked].mean(axis=1))
        means[1].append(theirs[picked].mean(axis=1))
    spread = _objective(means[1], objective) - _objective(means[0], objective)
    return Difference(mean, float(np.std(spread, ddof=1)))


def choose(candidates: Sequence[Losses], objective: Objective) -> int:
    """The first candidate that is not worse than the best by more than one standard error.

    Args:
        candidates: The losses of all candidates on the same samples, the simplest candidate first.
        objective: The quantity to minimise.
    """
    values = [_objective([task.mean() for task in losses], objective) for losses in candidates]
    best = candidates[int(np.argmin(values))]
    for place, losses in enumerate(candidates):
        if not difference(best, losses, objective).exceeds():
            return place
    raise AssertionError("the best is not worse than itself")


def cross_validated(
    candidates: Sequence[Losses], objective: Objective, folds: int = FOLDS
) -> Difference | None:
    """How much lower than the first candidate's the objective is by such a choice.

    The samples of every task are dealt out to ``folds`` parts; losses on a part are those of the
    candidate that the other parts choose.

    Returns:
        None if the samples are too few for two parts of which each leaves enough to choose by.
    """
    counts = [len(task) for task in candidates[0]]
    folds = min(folds, *counts)
    if folds < 2 or min(counts) - math.ceil(min(counts) / folds) < _FEWEST:
        return None
    parts = [np.random.default_rng(0).permutation(count) % folds for count in counts]
    pieced = [task.copy() for task in candidates[0]]
    for fold in range(folds):
        others = [
            [task[part != fold] for task, part in zip(losses, parts, strict=True)]
            for losses in candidates
        ]
        chosen = candidates[choose(others, objective)]
        for task, part, losses in zip(pieced, parts, chosen, strict=True):
            task[part == fold] = losses[part == fold]
    return difference(pieced, candidates[0], objective)


def _objective(means: Sequence[Any], objective: Objective) -> Any:
    """The objective for the tasks' means: numbers, or arrays with one for every resample."""
    stacked = np.array(means)
    if objective.kind == "worst":
        return stacked.max(axis=0)
    weights = np.array(objective.weights or [1.0] * len(means))
    return weights @ stacked / weights.sum()
