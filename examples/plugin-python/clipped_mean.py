"""A merge method: the weighted mean of clipped task vectors."""

import numpy as np

import sensmerge


@sensmerge.method(
    base="needed",
    weights=True,
    parameters=[sensmerge.Parameter("limit", 0.1, "largest change of an entry", above=0.0)],
    summary="the weighted mean of task vectors that are cut to a limit",
)
def clipped_mean(rows: np.ndarray, weight: np.ndarray, limit: float) -> np.ndarray:
    """Merge rows ``[models, entries]`` to ``[entries]``."""
    cut = np.clip(rows, -limit, limit)
    mean: np.ndarray = (weight[:, None] * cut).sum(axis=0) / weight.sum()
    return mean
