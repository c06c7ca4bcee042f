"""Which candidates are not beaten by any other, where there are several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensmerge.farm.evaluators import Better


def front_of(scores: Sequence[Mapping[str, float]], better: Better) -> list[int]:
    """The Pareto front: those for which no other is as good on all tasks, and better on one.

    Args:
        scores: The scores of each candidate on the same tasks.
        better: Which scores are better.

    Returns:
        The places of those on the front.
    """
    sign = 1 if better == "lower" else -1
    rows = [tuple(sign * each[task] for task in sorted(each)) for each in scores]
    front: list[int] = []
    # Whoever beats a row comes before it in this order.
    for place in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[place]
        beaten = any(
            rows[other] != row
            and all(one <= two for one, two in zip(rows[other], row, strict=True))
            for other in front
        )
        if not beaten:
            front.append(place)
    return sorted(front)
