"""WIDEN (Yu et al. 2024): from one tensor of every model to one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sensmerge.reference.arrays import Array


def widen(
    base: Array,
    experts: Sequence[Array],
    weights: Sequence[float],
    *,
    above_average_value_ratio: float = 1.0,
    score_calibration_value: float = 1.0,
    lambda_: float = 1.0,
    embedding: bool = False,
) -> Array:
    """Task vectors with scores for their columns, by how much length and direction changed.

    The columns of a matrix are scored, or of each matrix of a stack (the last two axes); of an
    input embedding, [tokens, width], the rows; in a tensor of one axis or none, the entries.
    """
    ratio, calibrated = above_average_value_ratio, score_calibration_value

    def again(base: Array, experts: Sequence[Array]) -> Array:
        return widen(
            base,
            experts,
            weights,
            above_average_value_ratio=ratio,
            score_calibration_value=calibrated,
            lambda_=lambda_,
        )

    if base.size == 0:
        return base
    if base.ndim == 2 and embedding:
        return again(base.T, [expert.T for expert in experts]).T
    if base.ndim > 2:
        stack = enumerate(base)
        return np.stack([again(each, [expert[i] for expert in experts]) for i, each in stack])
    deltas = np.stack([expert - base for expert in experts])
    if base.ndim < 2:
        significances = np.abs(deltas)
        # The mean over the only axis, of a scalar over itself.
        means = significances.reshape(len(experts), -1).mean(axis=1)
        above = significances > ratio * means.reshape(-1, *[1] * base.ndim)
        scores = np.where(above, calibrated, _softmax(significances))
    else:
        lengths, directions = zip(*(_changes(base, expert) for expert in experts), strict=True)
        kinds = [_by_rank(np.stack(each), ratio, calibrated) for each in (lengths, directions)]
        scores = ((kinds[0] + kinds[1]) / 2)[:, None, :]
    shaped = np.array(weights, dtype=np.float64).reshape(-1, *[1] * base.ndim)
    return np.asarray(base + lambda_ * (shaped * scores * deltas).sum(axis=0))


def _changes(base: Array, expert: Array) -> tuple[Array, Array]:
    """|‖column‖ − ‖base's column‖| and 1 − the cosine of the two, of every column.

    Where one of the two is 0 the cosine counts as 0. A column that did not change did not turn,
    whatever rounding makes of its cosine.
    """
    before, after = (np.sqrt((matrix**2).sum(axis=0)) for matrix in (base, expert))
    both = before * after
    cosine = np.where(both > 0, (base * expert).sum(axis=0) / np.where(both > 0, both, 1.0), 0.0)
    same = (base == expert).all(axis=0)
    return np.abs(after - before), np.where(same, 0.0, 1 - cosine)


def _by_rank(changes: Array, ratio: float, calibrated: float) -> Array:
    """The scores of [models, columns], by the ranks of a model's columns; equal ones by index."""
    count = changes.shape[1]
    order = np.argsort(changes, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    # Compared as whole numbers: the mean rank of an odd number of columns is one of the ranks.
    return np.where(ranks > ratio * (count - 1) / 2, calibrated, _softmax(ranks / count))


def _softmax(significances: Array) -> Array:
    """The softmax over the models, the first axis."""
    powers = np.exp(significances - significances.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))
