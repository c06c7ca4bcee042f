"""All methods in plain NumPy and float64, to be read, and to test the core against.

Nothing here is fast, and nothing in the package calls it. Sources: Sens-Merging (Liu et al.),
task arithmetic (Ilharco et al. 2023), TIES (Yadav et al. 2023), DARE (Yu et al. 2024),
spherical interpolation (Shoemake 1985), Model Stock (Jang et al. 2024), Philox (Salmon et al.
2011).

A model is a mapping of arrays by tensor name. ``weights[name]`` holds one weight per expert: the
recipe's weight times K·σ of the tensor's layer (Eq. 7). K is the number of experts, L that of
layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Mapping[str, Array]

SMALLEST_NORM = 1e-7
SMALLEST_DIVISOR = 1e-8

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


# Sens-Merging: the coefficients -----------------------------------------------------------------


def sensitivity(parameters: Sequence[Array], gradients: Sequence[Sequence[Array]]) -> float:
    """s^l = Σ over samples and the layer's parameters of |θ · g| (Eq. 1 and 3)."""
    return float(
        sum(
            np.abs(theta * gradient).sum()
            for sample in gradients
            for theta, gradient in zip(parameters, sample, strict=True)
        )
    )


def sigma(
    s: Array, g: Array, *, mode: str = "full", form: str = "transfer", temperature: float = 0.05
) -> Array:
    """σ, [K, L], from sensitivities s, [K, L], and logit distances g, [K, K] (Eq. 3, 5, 6)."""
    experts, layers = s.shape
    alpha = s / np.sqrt((s**2).sum(axis=1, keepdims=True))
    tau = np.array([sum(g[i, j] for j in range(experts) if j != i) for i in range(experts)])
    tau = tau / tau.sum() if tau.sum() > 0 else np.full(experts, 1 / experts)
    if form == "transfer":
        tau = 1 - tau
    result = np.empty((experts, layers))
    for layer in range(layers):
        a = alpha[:, layer] if mode in ("full", "task") else np.ones(experts)
        t = tau if mode in ("full", "cross") else np.ones(experts)
        e = np.exp((t * a - (t * a).max()) / temperature)
        result[:, layer] = e / e.sum() if mode != "off" else 1 / experts
    return result


# Sparsification -------------------------------------------------------------------------------


def trim_tensor(delta: Array, density: float) -> Array:
    """Keep exactly max(1, ⌊density·n⌋) entries of the largest magnitude; of ties, the first."""
    if density >= 1 or delta.size == 0:
        return delta
    flat = delta.ravel()
    kept = np.argsort(-np.abs(flat), kind="stable")[: max(1, math.floor(density * flat.size))]
    trimmed = np.zeros_like(flat)
    trimmed[kept] = flat[kept]
    return trimmed.reshape(delta.shape)


def trim_model(deltas: Model, density: float) -> dict[str, Array]:
    """Keep every entry at or above the k-th smallest magnitude of the model (TIES, §4.1).

    For n entries, k = n − ⌊density·n⌋; with k = 0 all entries are kept.
    """
    magnitudes = np.concatenate([np.abs(delta).ravel() for delta in deltas.values()])
    k = magnitudes.size - math.floor(density * magnitudes.size)
    if k == 0:
        return dict(deltas)
    threshold = np.sort(magnitudes)[k - 1]
    return {
        name: np.where(np.abs(delta) >= threshold, delta, 0.0) for name, delta in deltas.items()
    }


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32 with 10 rounds."""
    mask = 0xFFFFFFFF
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k0, right & mask, (left >> 32) ^ d ^ k1, left & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [a, b, c, d]


def keep_mask(seed: int, place: int, tensor: str, size: int, density: float) -> NDArray[np.bool_]:
    """The entries that the random drop keeps, [size], for the expert of index ``place``.

    The format, which never changes, is described in ``rust/sensmerge-core/src/random.rs``: an entry
    is decided by one byte of a Philox stream or, if the byte ties with the density's, by a word of
    a second stream.
    """
    mask64 = 2**64 - 1
    stream = 0xCBF29CE484222325
    for byte in tensor.encode() + place.to_bytes(8, "little"):
        stream = ((stream ^ byte) * 0x100000001B3) & mask64
    threshold = round(density * 2**40)

    def block(number: int, stream: int) -> list[int]:
        counter = [number & 0xFFFFFFFF, number >> 32, stream & 0xFFFFFFFF, stream >> 32]
        return philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32])

    kept = np.zeros(size, dtype=bool)
    for first in range(0, size, 16):
        words = block(first // 16, stream)
        coarse = b"".join(word.to_bytes(4, "little") for word in words)
        for entry in range(first, min(first + 16, size)):
            draw = coarse[entry - first] << 32
            if draw >> 32 == threshold >> 32:
                draw |= block(entry // 4, stream ^ 0x9E3779B97F4A7C15)[entry % 4]
            kept[entry] = draw < threshold
    return kept


def preserve_l1(delta: Array, sparse: Array) -> Array:
    """Scale the kept entries so that the tensor has its former L1 norm (mergekit's rescale)."""
    before, after = float(np.abs(delta).sum()), float(np.abs(sparse).sum())
    if before < SMALLEST_NORM or after < SMALLEST_NORM:
        return sparse
    return sparse * (before / after)


# Consensus --------------------------------------------------------------------------------------


def elect(rows: Array, zero_sign: float) -> Array:
    """The sign of each entry's sum over the rows; ``zero_sign`` for a sum of 0 (TIES, §4.2)."""
    sums = rows.sum(axis=0)
    return np.where(sums > 0, 1.0, np.where(sums < 0, -1.0, zero_sign))


def disjoint(rows: Array, votes: Array, signs: Array, shares: Array | None) -> Array:
    """Σ of the rows whose vote has the elected sign, ÷ Σ of their shares (TIES, §4.2).

    A vote of zero agrees with no sign. NaN always takes part, so that it reaches the result.
    Without shares, or if the shares sum to 0, the sum is not divided.

    Args:
        rows: [K, ...], the weighted task vectors.
        votes: [K, ...], the numbers whose signs are compared with the elected ones.
        signs: [...], the elected signs.
        shares: [K], each expert's share of the divisor; None does not divide.
    """
    agrees = ((np.sign(votes) == signs) & (votes != 0)) | np.isnan(votes)
    total: Array = np.where(agrees, rows, 0.0).sum(axis=0)
    if shares is None:
        return total
    divisor = (agrees * shares.reshape(-1, *[1] * (rows.ndim - 1))).sum(axis=0)
    return total / np.where(divisor == 0, 1.0, divisor)


# The methods ------------------------------------------------------------------------------------


def merge(
    method: str,
    semantics: str,
    base: Model | None,
    experts: Sequence[Model],
    *,
    weights: Mapping[str, Sequence[float]],
    densities: Sequence[float] | None = None,
    ties_densities: Sequence[float] | None = None,
    lambda_: float = 1.0,
    normalize: bool | None = None,
    rescale: bool | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Merge experts by one of five methods, in either semantics; see docs/methods/README.md.

    Args:
        method: linear, task_arithmetic, ties, dare_linear or dare_ties.
        semantics: ``mergekit`` or ``original``.
        base: The base; linear needs none.
        experts: The experts, each with the base's tensors.
        weights: For every tensor, one weight per expert.
        densities: Fraction of entries kept, one per expert.
        ties_densities: Fraction of entries kept by the trim of original dare_ties, one per expert.
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

    deltas = [{name: expert[name] - base[name] for name in base} for expert in experts]
    if method.startswith("dare"):
        rescale = rescale is not False
        for place, delta in enumerate(deltas):
            for name in base:
                delta[name] = drop(
                    delta[name], seed, place, name, densities[place], rescale, original
                )
    trims = {"ties": densities, "dare_ties": ties_densities}.get(method)
    if trims is not None and original:
        deltas = [trim_model(d, density) for d, density in zip(deltas, trims, strict=True)]
    elif method == "ties":
        for delta, density in zip(deltas, densities, strict=True):
            for name in base:
                trimmed = trim_tensor(delta[name], density)
                if rescale and density < 1:
                    trimmed = preserve_l1(delta[name], trimmed)
                delta[name] = trimmed

    majority = 0.0
    if original:
        elected = [elect(np.stack([delta[name] for delta in deltas]), 0.0) for name in base]
        majority = float(np.sign(sum(signs.sum() for signs in elected)))
    merged = {}
    for name in base:
        rows = np.stack([delta[name] for delta in deltas])
        w = np.array(weights[name], dtype=np.float64)
        weighted = rows * w.reshape(-1, *[1] * (rows.ndim - 1))
        if method in ("task_arithmetic", "dare_linear"):
            total = weighted.sum(axis=0)
            divisor = w.sum() if normalize and abs(w.sum()) >= SMALLEST_DIVISOR else 1.0
            total = total / divisor
        elif original:
            signs = elect(rows, majority)
            shares = np.ones(count) if normalize is not False else None
            total = disjoint(weighted, rows, signs, shares)
        else:
            signs = elect(weighted, 1.0)
            divide = normalize if normalize is not None else method == "ties"
            total = disjoint(weighted, weighted, signs, w if divide else None)
        merged[name] = base[name] + lambda_ * total
    return merged


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


def drop(
    delta: Array,
    seed: int,
    place: int,
    tensor: str,
    density: float,
    rescale: bool,
    original: bool,
) -> Array:
    """Drop entries with probability 1 − density, and rescale the others (DARE, Yu et al. 2024)."""
    if density >= 1:
        return delta
    mask = keep_mask(seed, place, tensor, delta.size, density).reshape(delta.shape)
    sparse = np.where(mask, delta, 0.0)
    if not rescale:
        return sparse
    return sparse / density if original else preserve_l1(delta, sparse)


# The other methods: from one tensor of every model to one tensor --------------------------------


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


def passthrough(tensor: Array, scale: float | None = None) -> Array:
    """One model's tensor, multiplied by ``scale`` if it is given."""
    return tensor if scale is None else np.asarray(scale * tensor)
