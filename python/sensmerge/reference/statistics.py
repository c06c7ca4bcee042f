"""What knows more of models than their weights: Fisher merging, RegMean, and AIM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sensmerge.reference.arrays import Array


def fisher(
    models: Sequence[Array],
    importances: Sequence[Array],
    weights: Sequence[float],
    epsilon: float = 1e-6,
) -> Array:
    """``Σ w_i (F_i + ε) θ_i / Σ w_i (F_i + ε)``; where that divides by 0, the weighted mean."""
    shares = [w * (f + epsilon) for w, f in zip(weights, importances, strict=True)]
    total = sum(share * model for share, model in zip(shares, models, strict=True))
    divisor = np.asarray(sum(shares))
    plain = sum(w * model for w, model in zip(weights, models, strict=True)) / sum(weights)
    there = divisor != 0
    return np.where(there, total / np.where(there, divisor, 1.0), plain)


def regmean(
    deltas: Sequence[Array],
    grams: Sequence[Array],
    weights: Sequence[float],
    off_diagonal: float = 0.9,
    ridge: float = 1e-6,
) -> Array:
    """``(Σ w_i δ_i C_i) (Σ w_i C_i + ρ I)⁻¹``.

    Args:
        deltas: The task vectors of one matrix, ``[out, in]``.
        grams: The mean of ``x xᵀ`` over every model's inputs, ``[in, in]``.
        weights: One weight per model.
        off_diagonal: Factor of a Gram matrix's entries off the diagonal.
        ridge: ρ as a multiple of the mean eigenvalue of ``Σ w_i C_i``.
    """
    shrunk = [off_diagonal * c + (1 - off_diagonal) * np.diag(np.diag(c)) for c in grams]
    total = np.asarray(sum(w * c for w, c in zip(weights, shrunk, strict=True)))
    right = sum(w * d @ c for w, d, c in zip(weights, deltas, shrunk, strict=True))
    rho = ridge * np.trace(total) / len(total)
    return np.asarray(np.linalg.solve(total + rho * np.eye(len(total)), np.asarray(right).T).T)


def aim(delta: Array, activations: Array, omega: float = 0.4, transposed: bool = False) -> Array:
    """``δ · (1 − s (1 − ω))``, where ``s`` is the largest-is-1 activation of the input channel.

    Args:
        delta: The merged task vector of one tensor: ``[..., out, in]``, or ``[..., in, out]`` if it
            is ``transposed``; or a norm's, ``[in]``.
        activations: The mean of ``|x_j|`` over the base's inputs, ``[..., in]``.
        omega: What is left at the strongest channel.
        transposed: Whether inputs are rows.
    """
    s = activations / activations.max(axis=-1, keepdims=True)
    if delta.ndim > 1:
        s = np.expand_dims(s, -1 if transposed else -2)
    return np.asarray(delta * (1 - s * (1 - omega)))
