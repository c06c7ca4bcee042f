"""Methods on whole matrices: from the matrices of one tensor's task vectors to a merged one.

A task vector is ``[out, in]``. Singular values that count as 0 take no part, since their vectors
are not determined by the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sensmerge.reference.arrays import Array

# A singular value that is not above this part of the largest one counts as 0.
TOLERANCE = 1e-10
# The same for the eigenvalues of a Gram matrix.
EIGEN_TOLERANCE = 1e-12

Rule = Callable[[Sequence[Array], Sequence[float]], Array]


def by_matrix(
    rule: Rule, other: Rule, base: Array, experts: Sequence[Array], weights: Sequence[float]
) -> Array:
    """A whole tensor, with λ = 1: matrices, stacked or not, by one rule, all others by another."""
    deltas = [expert - base for expert in experts]
    if base.ndim in (2, 3) and min(base.shape[-2:]) > 1 and base.size:
        if base.ndim == 2:
            return base + rule(deltas, weights)
        merged = [rule(stack, weights) for stack in zip(*deltas, strict=True)]
        return np.asarray(base + np.stack(merged))
    return np.asarray(base + other(deltas, weights))


def mean_of_weighted(deltas: Sequence[Array], weights: Sequence[float]) -> Array:
    """``Σ w_i δ_i / K``."""
    terms = [w * delta for w, delta in zip(weights, deltas, strict=True)]
    return np.asarray(sum(terms) / len(terms))


def weighted_mean(deltas: Sequence[Array], weights: Sequence[float]) -> Array:
    """``Σ w_i δ_i / Σ w_i``."""
    return np.asarray(mean_of_weighted(deltas, weights) * len(deltas) / sum(weights))


def singular(matrix: Array, scale: float = 0.0) -> tuple[Array, Array, Array]:
    """``U``, ``s`` and ``Vᵀ`` without the singular values that count as 0.

    They are compared with ``scale`` where that is more than the largest: the size of what
    ``matrix`` is a difference of.
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    count = int((values > TOLERANCE * max(values[0], scale)).sum())
    return left[:, :count], values[:count], right[:count]


def orthogonalised(columns: Array) -> Array:
    """The nearest matrix with orthonormal columns, in the directions that the columns have."""
    if not columns.shape[1]:
        return columns
    left, _, right = singular(columns)
    return np.asarray(left @ right)


def tsv(deltas: Sequence[Array], weights: Sequence[float]) -> Array:
    """TSV-Merge (Gargiulo et al. 2025): a share of the triplets of each, made orthogonal."""
    share = max(1, min(deltas[0].shape) // len(deltas))
    found = [singular(w * delta) for w, delta in zip(weights, deltas, strict=True)]
    left = np.concatenate([u[:, :share] for u, _, _ in found], axis=1)
    values = np.concatenate([s[:share] for _, s, _ in found])
    right = np.concatenate([v[:share].T for _, _, v in found], axis=1)
    return np.asarray(orthogonalised(left) * values @ orthogonalised(right).T)


def iso_c(deltas: Sequence[Array], weights: Sequence[float]) -> Array:
    """Iso-C (Marczak et al. 2025): the sum, with all singular values replaced by their mean."""
    left, values, right = singular(mean_of_weighted(deltas, weights) * len(deltas))
    return np.asarray(left @ right * (values.mean() if len(values) else 0.0))


def iso_cts(deltas: Sequence[Array], weights: Sequence[float], common: float = 0.8) -> Array:
    """Iso-CTS (Marczak et al. 2025): some directions of the sum, the others of single experts."""
    size, count = min(deltas[0].shape), len(deltas)
    each = min(round((size - int(size * common)) / count), size // count)
    first = size - each * count
    left, values, right = singular(mean_of_weighted(deltas, weights) * count)
    lefts, all_values, rights = [left[:, :first]], [values[:first]], [right[:first].T]
    for w, delta in zip(weights, deltas, strict=True):
        rest = w * delta - lefts[0] @ (lefts[0].T @ (w * delta))
        own_left, own_values, own_right = singular(rest, float(np.linalg.norm(w * delta)))
        lefts.append(own_left[:, :each])
        all_values.append(own_values[:each])
        rights.append(own_right[:each].T)
    values = np.concatenate(all_values)
    merged = (
        orthogonalised(np.concatenate(lefts, axis=1))
        @ orthogonalised(np.concatenate(rights, axis=1)).T
    )
    return np.asarray(merged * (values.mean() if len(values) else 0.0))


def nearest(
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    normalised: bool,
    ridge: float = 1e-6,
) -> Array:
    """The matrix nearest to all task vectors on inputs with the statistics ``δ_iᵀ δ_i``.

    That is ``(Σ w_i δ_i C_i) (Σ w_i C_i + ρ I)⁻¹``, with ρ = ``ridge`` times the mean eigenvalue of
    ``Σ w_i C_i``; without a ridge the pseudo-inverse.

    Args:
        deltas: The task vectors, ``[out, in]``.
        weights: Their weights.
        normalised: Divide every statistic by its trace (WUDI), or not (ACTMat).
        ridge: ρ as a multiple of the mean eigenvalue.
    """
    size = deltas[0].shape[1]
    sums, right = np.zeros((size, size)), np.zeros(deltas[0].shape)
    for w, delta in zip(weights, deltas, strict=True):
        gram = delta.T @ delta
        if normalised:
            gram = gram / np.trace(gram) if gram.any() else gram
        sums += w * gram
        right += w * (delta @ gram)
    if not sums.any():
        return right
    if ridge == 0:
        return np.asarray(right @ np.linalg.pinv(sums, rcond=EIGEN_TOLERANCE, hermitian=True))
    sums += ridge * np.trace(sums) / size * np.eye(size)
    return np.asarray(np.linalg.solve(sums, right.T).T)
