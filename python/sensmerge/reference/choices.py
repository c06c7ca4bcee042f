"""Methods that choose among task vectors, entry by entry: from one tensor of every model to one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sensmerge.reference.arrays import Array
from sensmerge.reference.consensus import elect

# pcb: the fraction of magnitudes that are cut at each end; the least divisor.
PCB_CUT = 1e-4
PCB_SMALLEST_DIVISOR = 1e-12


def _weighted(base: Array, experts: Sequence[Array], weights: Sequence[float]) -> Array:
    """[K, ...], the weighted task vectors."""
    return np.stack([w * (e - base) for w, e in zip(weights, experts, strict=True)])


def magmax(
    base: Array, experts: Sequence[Array], weights: Sequence[float], *, lambda_: float = 0.5
) -> Array:
    """Of every entry the largest weighted change, of equal ones the first (Marczak et al. 2024)."""
    votes = _weighted(base, experts, weights)
    first = np.abs(votes).argmax(axis=0)
    return np.asarray(base + lambda_ * np.take_along_axis(votes, first[None], axis=0)[0])


def emr(
    base: Array, experts: Sequence[Array], weights: Sequence[float], *, lambda_: float = 1.0
) -> Array:
    """Of every entry the largest weighted change that has the sign of their sum.

    The unified task vector of EMR-Merging (Huang et al. 2024). A sum of 0 counts as negative.
    """
    votes = _weighted(base, experts, weights)
    signs = elect(votes, -1.0)
    return np.asarray(base + lambda_ * signs * np.maximum(votes * signs, 0.0).max(axis=0))


def consensus(
    base: Array,
    experts: Sequence[Array],
    weights: Sequence[float],
    *,
    mask_lambda: float | Sequence[float] = 0.4,
    k: float = 2,
    lambda_: float = 1.0,
) -> Array:
    """The sum of the weighted task vectors where at least ``k`` models use an entry.

    Consensus Task Arithmetic (Wang et al. 2024). A model uses an entry if its own change is larger
    than ``mask_lambda`` (one for all models or one each) times what the other models add.
    """
    votes = _weighted(base, experts, weights)
    total = votes.sum(axis=0)
    factors = np.broadcast_to(np.asarray(mask_lambda, dtype=np.float64), len(votes))
    used = [
        np.abs(vote) > factor * np.abs(total - vote)
        for vote, factor in zip(votes, factors, strict=True)
    ]
    return base + lambda_ * np.where(np.sum(used, axis=0) >= k, total, 0.0)


def wsm(checkpoints: Sequence[Array], *, power: float = 0.5) -> Array:
    """The mean of a run's checkpoints, oldest first, by the schedule of a decay (Tian et al. 2025).

    With n checkpoints, everything that the run learned up to the i-th, counted from 0, but not up
    to the one before it, is in the mean with the factor 1 − (i / n) ** power.
    """
    total = np.array(checkpoints[0], dtype=np.float64)
    for i in range(1, len(checkpoints)):
        decayed = 1 - (i / len(checkpoints)) ** power
        total = total + decayed * (checkpoints[i] - checkpoints[i - 1])
    return total


def pcb(
    base: Array,
    experts: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float | Sequence[float] = 0.1,
    lambda_: float = 1.0,
) -> Array:
    """The mean of the entries that win a competition (PCB-Merging, Du et al. 2024).

    Entries compete within their task vector (by magnitude) and with those of the other task vectors
    (by whether they go the way of the sum). Of each task vector only the ``density`` of the highest
    scores counts, if positive, by how far they are above the others.
    """
    if base.size == 0:
        return base
    deltas = np.stack([(expert - base).ravel() for expert in experts])
    count, last = len(deltas), base.size - 1
    dropped = int(PCB_CUT * base.size)
    sizes = np.abs(deltas)
    ascending = np.sort(sizes, axis=1)
    low, high = ascending[:, dropped, None], ascending[:, last - dropped, None]
    sizes = np.clip(sizes, low, high)
    span = np.where(high > low, high - low, 1.0)
    within = np.exp(count * ((sizes - low) / span) ** 2)
    scores = np.maximum(within * np.tanh(deltas * deltas.sum(axis=0)), 0.0)
    shares = np.broadcast_to(np.asarray(density, dtype=np.float64), count)
    ranks = np.minimum(((1 - shares) * base.size).astype(int), last)
    ascending = np.sort(scores, axis=1)
    least, top = ascending[np.arange(count), ranks][:, None], ascending[:, -1:]
    above = np.clip((scores - least) / np.where(top > least, top - least, 1.0), 0.0, 1.0)
    # Where all that count are equal, they count alike.
    scales = np.where(top > least, above, (scores >= least) & (scores > 0))
    parts = scales * np.sign(deltas) * sizes / np.maximum(scales.sum(axis=0), PCB_SMALLEST_DIVISOR)
    merged = np.asarray(weights, dtype=np.float64) @ parts
    return np.asarray(base + lambda_ * merged.reshape(base.shape))
