"""Sens-Merging: the coefficients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sensmerge.reference.arrays import Array


def sensitivity(
    parameters: Sequence[Array], gradients: Sequence[Sequence[Array]], measure: str = "taylor"
) -> float:
    """s^l = Σ over samples and the layer's parameters of |θ · g| (Eq. 1 and 3), or of g²."""
    return float(
        sum(
            (np.abs(theta * gradient) if measure == "taylor" else gradient**2).sum()
            for sample in gradients
            for theta, gradient in zip(parameters, sample, strict=True)
        )
    )


def sigma(
    s: Array,
    g: Array,
    *,
    mode: str = "full",
    form: str = "transfer",
    temperature: float = 0.05,
    fixed_tau: Sequence[float] | None = None,
) -> Array:
    """σ, [K, L], from sensitivities s, [K, L], and logit distances g, [K, K] (Eq. 3, 5, 6).

    ``fixed_tau`` stands in place of Eq. 5.
    """
    experts, layers = s.shape
    alpha = s / np.sqrt((s**2).sum(axis=1, keepdims=True))
    tau = np.array([sum(g[i, j] for j in range(experts) if j != i) for i in range(experts)])
    tau = tau / tau.sum() if tau.sum() > 0 else np.full(experts, 1 / experts)
    if form == "transfer":
        tau = 1 - tau
    if fixed_tau is not None:
        tau = np.array(fixed_tau)
    result = np.empty((experts, layers))
    for layer in range(layers):
        a = alpha[:, layer] if mode in ("full", "task") else np.ones(experts)
        t = tau if mode in ("full", "cross") else np.ones(experts)
        e = np.exp((t * a - (t * a).max()) / temperature)
        result[:, layer] = e / e.sum() if mode != "off" else 1 / experts
    return result
