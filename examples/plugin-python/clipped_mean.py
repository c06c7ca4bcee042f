import numpy as np

import sensmerge


@sensmerge.method(
    base="needed",
    weights=True,
    parameters=[sensmerge.Parameter("limit", 0.1, "largest change of an entry", above=0.0)],
    summary="the weighted mean of task vectors that are cut to a limit",
)
def clipped_mean(rows: np.ndarray, weight: np.ndarray, limit: float) -> np.ndarray:
    cut = np.clip(rows, -limit, limit)
    return (weight[:, None] * cut).sum(axis=0) / weight.sum()
