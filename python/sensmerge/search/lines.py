"""Minimisation of a function of one positive number, with few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable

# Evaluations: on a coarse grid, then on both sides of the best place, at half the distance each
# time; and one at the start.
GRID = 7
REFINEMENTS = 3
EVALUATIONS = GRID + 2 * REFINEMENTS + 1


def minimise(
    function: Callable[[float], float], low: float, high: float, *, start: float | None = None
) -> float:
    """The argument with the least value found, on a logarithmic grid that is refined at its best.

    Args:
        function: The function. It is called at most once for each argument.
        low: The smallest argument.
        high: The largest argument.
        start: One more argument to evaluate.
    """
    ratio = math.log(high / low) / (GRID - 1)
    places = [low * math.exp(ratio * step) for step in range(GRID)]
    seen = {place: function(place) for place in places}
    if start is not None and start not in seen:
        seen[start] = function(start)
    for _ in range(REFINEMENTS):
        ratio /= 2
        best = min(seen, key=lambda place: seen[place])
        for step in (-ratio, ratio):
            place = best * math.exp(step)
            if low <= place <= high and all(abs(math.log(place / other)) > 1e-9 for other in seen):
                seen[place] = function(place)
    return min(seen, key=lambda place: seen[place])
