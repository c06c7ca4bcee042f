"""The choice by few samples: its standard errors, its preference, and its cross-validation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sensmerge.search.choice import choose, cross_validated, difference
from sensmerge.search.judge import Objective

MEAN, WORST = Objective(), Objective("worst")


def losses(draw: np.random.Generator, level: float, counts: tuple[int, ...] = (8, 8, 8)) -> Any:
    return [level + 0.3 * draw.standard_normal(count) for count in counts]


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0)])
def test_the_error_is_that_of_the_mean_of_paired_differences(weights: Any) -> None:
    draw = np.random.default_rng(1)
    one = losses(draw, 1.0, (40, 60, 50))
    other = [task + 0.1 + 0.2 * draw.standard_normal(len(task)) for task in one]
    found = difference(one, other, Objective("mean", weights))
    share = np.array(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    apart = [b - a for a, b in zip(one, other, strict=True)]
    assert found.mean == pytest.approx(sum(w * d.mean() for w, d in zip(share, apart, strict=True)))
    error = math.sqrt(sum(w**2 * d.var() / len(d) for w, d in zip(share, apart, strict=True)))
    assert found.error == pytest.approx(error, rel=0.1)


def test_the_error_of_the_worst_task() -> None:
    draw = np.random.default_rng(2)
    one = [0.1 * draw.standard_normal(50) + level for level in (1.0, 3.0)]
    other = [task + 0.5 for task in one]
    found = difference(one, other, WORST)
    assert found.mean == pytest.approx(0.5)
    # The same samples in both, and a difference that is the same for all of them.
    assert found.error == pytest.approx(0, abs=1e-12)


def test_a_difference_within_its_error_leaves_the_simplest() -> None:
    draw = np.random.default_rng(3)
    start = losses(draw, 1.0)
    lucky = [task + 0.3 * draw.standard_normal(len(task)) for task in start]
    gain = difference(lucky, start, MEAN)
    lucky = [task + gain.mean - 0.5 * gain.error for task in lucky]
    assert 0 < difference(lucky, start, MEAN).mean < gain.error
    assert choose([start, lucky], MEAN) == 0
    better = [task - 2 * gain.error for task in lucky]
    assert choose([start, better], MEAN) == 1
    # Of those that are as good as the best, the first: this one differs from it by luck alone.
    alike = [task + 0.1 * draw.standard_normal(len(task)) for task in better]
    first = 1 if choose([better, alike], MEAN) == 0 else 2
    assert choose([start, better, alike], MEAN) == first
    assert choose([[task + 9 for task in start], start, lucky], MEAN) == 1


def test_too_few_samples_leave_the_first() -> None:
    one = [np.array([1.0]), np.array([2.0, 2.1])]
    assert difference(one, one, MEAN).error == math.inf
    assert choose([one, [task - 1 for task in one]], MEAN) == 0
    assert cross_validated([one, one], MEAN) is None


def test_cross_validation_is_not_fooled_by_the_luckiest() -> None:
    # Twenty candidates that are no better: the choice on all samples looks better than it is.
    gains, held = [], []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        start = losses(draw, 1.0, (10, 10, 10))
        others = [
            [task + 0.3 * draw.standard_normal(len(task)) for task in start] for _ in range(20)
        ]
        best = min(others, key=lambda each: float(np.mean([task.mean() for task in each])))
        gains.append(difference(best, start, MEAN).mean)
        found = cross_validated([start, *others], MEAN)
        assert found is not None
        held.append(found.mean)
    assert np.mean(gains) > 0.05
    assert abs(np.mean(held)) < 0.01


def test_cross_validation_sees_a_gain() -> None:
    draw = np.random.default_rng(4)
    start = losses(draw, 1.0, (10, 12, 9))
    better = [task - 0.2 + 0.02 * draw.standard_normal(len(task)) for task in start]
    found = cross_validated([start, better], MEAN)
    assert found is not None
    assert found.mean == pytest.approx(0.2, abs=0.02)
    assert found.error < 0.02
