"""Methods that look at entries: from one tensor of every model to one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sensmerge.reference.arrays import Array
from sensmerge.reference.consensus import disjoint, elect

# sce: if the sum of the mean squares is smaller, weights are equal; the least divisor.
SCE_SMALLEST_SQUARES = 1e-6
SCE_SMALLEST_DIVISOR = 1e-6
# nearswap: a smaller difference counts as this one.
NEARSWAP_SMALLEST = 1e-6
# arcee_fusion: added to every probability.
FUSION_SMOOTHING = 1e-8


def passthrough(tensor: Array, scale: float | None = None) -> Array:
    """One model's tensor, multiplied by ``scale`` if it is given."""
    return tensor if scale is None else np.asarray(scale * tensor)


def sce(base: Array, experts: Sequence[Array], *, select_topk: float = 1.0) -> Array:
    """Select, calculate, erase (Wan et al. 2024).

    The entries of the largest variance over the task vectors are selected, of equal ones the first;
    the task vectors' weights are their mean squares; those that have the elected sign are averaged.
    """
    deltas = np.stack([expert - base for expert in experts])
    if select_topk < 1 and base.size:
        spread = (deltas - deltas[0]).var(axis=0).ravel()
        count = math.floor(select_topk * np.count_nonzero(spread))
        selected = np.zeros(base.size, dtype=bool)
        selected[np.argsort(-spread, kind="stable")[:count]] = True
        deltas = deltas * selected.reshape(base.shape)
    squares = np.array([(delta**2).mean() if delta.size else 0.0 for delta in deltas])
    small = squares.sum() < SCE_SMALLEST_SQUARES
    weights = np.full(len(deltas), 1 / len(deltas)) if small else squares / squares.sum()
    signs = elect(deltas, 1.0)
    shaped = weights.reshape(-1, *[1] * base.ndim)
    total = disjoint(deltas * shaped, deltas, signs, None)
    agrees = (np.sign(deltas) == signs) & (deltas != 0)
    return np.asarray(
        base + total / np.maximum((agrees * shaped).sum(axis=0), SCE_SMALLEST_DIVISOR)
    )


def nearswap(base: Array, other: Array, t: float) -> Array:
    """To the other model, but in no entry by more than ``t`` (mergekit)."""
    difference = np.maximum(np.abs(base - other), NEARSWAP_SMALLEST)
    weight = np.clip(t / difference, 0.0, 1.0)
    return np.asarray(weight * other + (1 - weight) * base)


def ram(
    base: Array,
    experts: Sequence[Array],
    *,
    epsilon: float | Sequence[float] = 1e-5,
    strengthen: tuple[float, float] | None = None,
) -> Array:
    """The mean of each entry over the experts that changed it (arXiv 2601.13572).

    Args:
        base: The base.
        experts: The experts.
        epsilon: An entry that differs by no more is unchanged; one for all experts or one each.
        strengthen: For RAM+, ``r`` and ``alpha``: what an expert alone changed is multiplied by
            1 + r · min(entries that it shares / entries that are its own, alpha).
    """
    deltas = np.stack([expert - base for expert in experts])
    least = np.broadcast_to(np.asarray(epsilon, dtype=np.float64), len(experts))
    changed = np.abs(deltas) > least.reshape(-1, *[1] * base.ndim)
    count = changed.sum(axis=0)
    total = np.zeros_like(base)
    for delta, mine in zip(deltas, changed, strict=True):
        alone, shared = mine & (count == 1), mine & (count > 1)
        factor = 1.0
        if strengthen is not None:
            r, alpha = strengthen
            factor += r * min(float(shared.sum()) / max(float(alone.sum()), 1e-5), alpha)
        total += np.where(alone, factor * delta, 0.0)
        total += np.where(shared, delta / np.maximum(count, 1), 0.0)
    return base + total


def importance(base: Array, other: Array) -> Array:
    """|δ| times the divergence between the softmax of the other model's row and the base's."""

    def softmax(rows: Array) -> Array:
        powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True) + FUSION_SMOOTHING)

    if base.size == 0:
        return np.zeros_like(base)
    p, q = softmax(np.atleast_1d(other)), softmax(np.atleast_1d(base))
    divergence = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    scores = np.abs(other - base) * np.maximum(divergence, 0.0)
    return np.asarray(scores).reshape(base.shape)


def arcee_fusion(base: Array, other: Array) -> Array:
    """The other model where it changed something important, the base elsewhere (mergekit).

    Important are entries of an :func:`importance` of at least the median plus 1.5 times the
    distance between the quartiles, over the whole tensor.
    """
    if base.size == 0:
        return base
    scores = importance(base, other)
    ascending = np.sort(scores.ravel())
    lower, median, upper = (ascending[int(q * (scores.size - 1))] for q in (0.25, 0.5, 0.75))
    return np.where(scores >= median + 1.5 * (upper - lower), other, base)
