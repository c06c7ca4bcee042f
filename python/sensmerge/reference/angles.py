"""Methods that depend on angles between tensors: from one tensor of every model to one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sensmerge.reference.arrays import Array

# slerp: shorter tensors are not normalised; if |cos| is larger, interpolation is linear.
SLERP_SHORTEST = 1e-8
SLERP_PARALLEL = 0.9995
# nuslerp: a shorter vector is divided by the first number; if |sum of weights| is below the second,
# t is 1/2.
NUSLERP_SHORTEST = 1e-7
NUSLERP_SMALLEST_SUM = 1e-6
# 1 - cos² up to this counts as 0: mergekit compares cos² with 1 in float32, whose precision this
# is.
NUSLERP_PARALLEL = 2.0**-24
# model_stock: a smaller product of two norms is replaced by the first number; if the denominator of
# t is nearer to 0 than the second, the base stays.
STOCK_SMALLEST_PRODUCT = 1e-6
STOCK_SMALLEST_DENOMINATOR = 1e-6
# multislerp: a mean direction that is shorter cannot be told from 0.
MULTISLERP_SHORTEST = 2.0**-24
# karcher: an angle whose sine is smaller is that to an opposite direction.
KARCHER_SMALLEST_SINE = 2.0**-24


def slerp(base: Array, other: Array, t: float) -> Array:
    """Spherical interpolation from the base (t = 0) to the other model (t = 1), of whole tensors.

    Nearly parallel and nearly opposite tensors are interpolated linearly (Shoemake 1985).
    """

    def unit(tensor: Array) -> Array:
        norm = np.sqrt((tensor**2).sum())
        return np.asarray(tensor / (norm if norm > SLERP_SHORTEST else 1.0))

    cosine = np.clip((unit(base) * unit(other)).sum(), -1.0, 1.0)
    if abs(cosine) > SLERP_PARALLEL:
        return np.asarray((1 - t) * base + t * other)
    angle = np.arccos(cosine)
    arc = np.sin((1 - t) * angle) * base + np.sin(t * angle) * other
    return np.asarray(arc / np.sin(angle))


def nuslerp(
    first: Array,
    second: Array,
    weights: Sequence[float],
    *,
    base: Array | None = None,
    flatten: bool = True,
    row_wise: bool = False,
) -> Array:
    """Spherical interpolation of two models or, with a base, of their task vectors.

    The interpolated vectors are the whole tensor (``flatten``), its rows along the last axis or,
    with ``row_wise``, its columns along the first axis (the name is mergekit's). A tensor of one
    axis is one vector in any case.
    """
    if base is not None:
        return base + nuslerp(
            first - base, second - base, weights, flatten=flatten, row_wise=row_wise
        )
    total = weights[0] + weights[1]
    t = 0.5 if abs(total) < NUSLERP_SMALLEST_SUM else weights[1] / total
    axis = None if flatten or first.ndim < 2 else 0 if row_wise else -1

    def unit(vectors: Array) -> Array:
        norms = np.sqrt((vectors**2).sum(axis=axis, keepdims=True))
        return np.asarray(vectors / np.maximum(norms, NUSLERP_SHORTEST))

    cosine = np.clip((unit(first) * unit(second)).sum(axis=axis, keepdims=True), -1.0, 1.0)
    parallel = 1 - cosine**2 <= NUSLERP_PARALLEL
    angle = np.arccos(np.where(parallel, 0.0, cosine))
    arc = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    return np.where(parallel, (1 - t) * first + t * second, arc)


def model_stock(base: Array, experts: Sequence[Array], *, filter_wise: bool = False) -> Array:
    """t · (mean of the experts) + (1 − t) · base (Model Stock, Jang et al. 2024).

    t = N cos / (1 + (N − 1) cos), where cos is the mean cosine of the angles between the task
    vectors of all pairs of the N experts: over the whole tensor or, with ``filter_wise``, over each
    row along the last axis. If the denominator is 0, as for two opposite task vectors, the result
    is the base.
    """
    count = len(experts)
    axis = -1 if filter_wise and base.ndim > 1 else None
    deltas = [expert - base for expert in experts]
    norms = [np.sqrt((delta**2).sum(axis=axis, keepdims=True)) for delta in deltas]
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            product = np.maximum(norms[i] * norms[j], STOCK_SMALLEST_PRODUCT)
            dot = (deltas[i] * deltas[j]).sum(axis=axis, keepdims=True)
            cosines.append(np.clip(dot / product, -1.0, 1.0))
    cosine = np.mean(cosines, axis=0)
    denominator = 1 + (count - 1) * cosine
    singular = np.abs(denominator) < STOCK_SMALLEST_DENOMINATOR
    t = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
    return np.asarray(t * np.mean(experts, axis=0) + (1 - t) * base)


def multislerp(
    tensors: Sequence[Array],
    weights: Sequence[float],
    *,
    base: Array | None = None,
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Array:
    """The point between several models, or task vectors, on the sphere (mergekit).

    The directions are projected into the plane that touches the sphere at their weighted mean,
    their weighted mean is taken there and projected back; its length is the weighted mean of the
    norms. Where the mean direction is 0, the weighted sum is taken instead.
    """
    if len(tensors) == 1:
        return tensors[0]
    if base is not None:
        deltas = [tensor - base for tensor in tensors]
        return base + multislerp(deltas, weights, normalize_weights=normalize_weights, eps=eps)
    w = np.array(weights, dtype=np.float64)
    if normalize_weights:
        w = w / w.sum()
    vectors = np.stack([tensor.ravel() for tensor in tensors])
    norms = np.sqrt((vectors**2).sum(axis=1))
    units = vectors / (norms + eps)[:, None] if eps or norms.all() else vectors * 0.0
    mean = w @ units
    length = np.sqrt((mean**2).sum())
    if length < max(eps, MULTISLERP_SHORTEST):
        return (w @ vectors).reshape(tensors[0].shape)
    mean = mean / length
    tangents = units - (units @ mean)[:, None] * mean
    tangent = w @ tangents
    angle = np.sqrt((tangent**2).sum()) + eps
    point = mean * np.cos(angle) + tangent * (np.sin(angle) / angle if angle else 1.0)
    return np.asarray(point * (w @ norms)).reshape(tensors[0].shape)


def karcher(tensors: Sequence[Array], *, max_iter: int = 10, tol: float = 1e-5) -> Array:
    """The mean of the models on the sphere, of their mean norm (Grove and Karcher 1973; mergekit).

    A tensor whose norm is at most ``tol`` has no direction, and a direction opposite to the mean
    does not move it.
    """
    if len(tensors) == 1:
        return tensors[0]
    vectors = np.stack([tensor.ravel() for tensor in tensors])
    norms = np.sqrt((vectors**2).sum(axis=1))
    valid = norms > tol
    if not valid.any():
        return np.zeros_like(tensors[0])
    units = vectors[valid] / norms[valid][:, None]
    mean = units.mean(axis=0)
    length = np.sqrt((mean**2).sum())
    mean = units[0] if length < tol else mean / length
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for unit in units:
            cosine = np.clip(unit @ mean, -1.0, 1.0)
            angle = np.arccos(cosine)
            if angle >= tol and np.sin(angle) >= KARCHER_SMALLEST_SINE:
                tangent += angle / np.sin(angle) * (unit - cosine * mean) / len(units)
        angle = np.sqrt((tangent**2).sum())
        if angle < tol:
            break
        mean = np.cos(angle) * mean + np.sin(angle) * tangent / angle
        mean = mean / np.sqrt((mean**2).sum())
    return np.asarray(norms.mean() * mean).reshape(tensors[0].shape)
