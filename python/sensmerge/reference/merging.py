"""Methods with weights on models or their task vectors: from whole models to a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sensmerge.reference.arrays import Array, Model
from sensmerge.reference.consensus import disjoint, elect
from sensmerge.reference.sparse import (
    band,
    band_of_rows,
    drop,
    preserve_l1,
    trim_model,
    trim_tensor,
)

SMALLEST_DIVISOR = 1e-8

# Methods that sum all task vectors; the others elect signs.
SUMS = ("task_arithmetic", "dare_linear", "breadcrumbs", "della_linear")


def merge(
    method: str,
    semantics: str,
    base: Model | None,
    experts: Sequence[Model],
    *,
    weights: Mapping[str, Sequence[float]],
    densities: Sequence[float] | None = None,
    ties_densities: Sequence[float] | None = None,
    gamma: float = 0.01,
    epsilon: float = 0.15,
    lambda_: float = 1.0,
    normalize: bool | None = None,
    rescale: bool | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Merge experts by a method with weights, in either semantics; see docs/methods/README.md.

    Args:
        method: linear, task_arithmetic, ties, or one of dare, breadcrumbs and della.
        semantics: ``mergekit`` or ``original``.
        base: The base; linear needs none.
        experts: The experts, each with the base's tensors.
        weights: For every tensor, one weight per expert.
        densities: Fraction of entries kept, one per expert.
        ties_densities: Fraction of entries kept by the trim of original dare_ties, one per expert.
        gamma: Fraction of entries that breadcrumbs drops as the largest.
        epsilon: How far the chance of an entry to be kept by della may be from the density.
        lambda_: Scale of the merged task vector.
        normalize: Divide the weighted sum; None is the method's default.
        rescale: Rescale the entries that sparsification keeps; None is the method's default.
        seed: Seed of the random drop.
    """
    count = len(experts)
    densities = densities or [1.0] * count
    ties_densities = ties_densities or [1.0] * count
    original = semantics == "original"
    if method == "linear":
        return linear(experts, weights, normalize is not False)
    assert base is not None

    deltas: list[Model] = []
    for place, (expert, density) in enumerate(zip(experts, densities, strict=True)):
        delta = {}
        for name in base:
            whole = expert[name] - base[name]
            if method.startswith(("dare", "della")):
                own = epsilon if method.startswith("della") else None
                again = rescale is not False
                delta[name] = drop(whole, seed, place, name, density, again, original, own)
            elif original and method == "breadcrumbs":
                delta[name] = band_of_rows(whole, density, gamma)
            else:
                delta[name] = sparsified(method, whole, density, gamma, bool(rescale), original)
        deltas.append(delta)
    trims = {"ties": densities, "dare_ties": ties_densities}.get(method)
    if trims is not None and original:
        deltas = [trim_model(d, density) for d, density in zip(deltas, trims, strict=True)]
    return {
        name: base[name] + lambda_ * total
        for name, total in combined(method, semantics, deltas, weights, normalize).items()
    }


def sparsified(
    method: str, delta: Array, density: float, gamma: float, rescale: bool, original: bool
) -> Array:
    """A tensor of a task vector without the entries that methods without chance drop in it."""
    if density >= 1:
        return delta
    if method.startswith("breadcrumbs"):
        sparse = band(delta, density, gamma)
    elif method == "ties" and not original:
        sparse = trim_tensor(delta, density)
    else:
        return delta
    return preserve_l1(delta, sparse) if rescale else sparse


def combined(
    method: str,
    semantics: str,
    deltas: Sequence[Model],
    weights: Mapping[str, Sequence[float]],
    normalize: bool | None,
) -> dict[str, Array]:
    """The weighted sum of sparse task vectors, or of those that agree, tensor by tensor."""
    # Only the election of these two differs between the semantics.
    original = semantics == "original" and method in ("ties", "dare_ties")
    names = list(deltas[0])
    majority = 0.0
    if original:
        elected = [elect(np.stack([delta[name] for delta in deltas]), 0.0) for name in names]
        majority = float(np.sign(sum(signs.sum() for signs in elected)))
    totals = {}
    for name in names:
        rows = np.stack([delta[name] for delta in deltas])
        w = np.array(weights[name], dtype=np.float64)
        weighted = rows * w.reshape(-1, *[1] * (rows.ndim - 1))
        if method in SUMS:
            divisor = w.sum() if normalize and abs(w.sum()) >= SMALLEST_DIVISOR else 1.0
            totals[name] = weighted.sum(axis=0) / divisor
        elif original:
            signs = elect(rows, majority)
            shares = np.ones(len(deltas)) if normalize is not False else None
            totals[name] = disjoint(weighted, rows, signs, shares)
        else:
            signs = elect(weighted, 1.0)
            divide = normalize if normalize is not None else method in ("ties", "della")
            totals[name] = disjoint(weighted, weighted, signs, w if divide else None)
    return totals


def linear(
    experts: Sequence[Model], weights: Mapping[str, Sequence[float]], normalize: bool
) -> dict[str, Array]:
    """Σ w_i θ_i ÷ Σ w_i (model soups, Wortsman et al. 2022)."""
    merged = {}
    for name in experts[0]:
        terms = zip(weights[name], experts, strict=True)
        total = sum(
            (w * expert[name] for w, expert in terms), start=np.zeros_like(experts[0][name])
        )
        merged[name] = total / sum(weights[name]) if normalize else total
    return merged
