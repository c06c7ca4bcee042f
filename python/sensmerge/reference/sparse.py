"""Steps that set entries of a task vector to 0, and rescale the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensmerge.reference.arrays import Array, Model

SMALLEST_NORM = 1e-7


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


def philox4x32(counter: Sequence[Any], key: Sequence[int]) -> list[Any]:
    """Philox4x32 with 7 rounds, of four words or of four arrays of words (uint64 below 2³²)."""
    mask = 0xFFFFFFFF
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(7):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k0, right & mask, (left >> 32) ^ d ^ k1, left & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [a, b, c, d]


def band(delta: Array, density: float, gamma: float) -> Array:
    """Drop the ⌊gamma·n⌋ largest entries and keep the ⌊density·n⌋ that follow (Model Breadcrumbs).

    Fewer are dropped where not enough would be left, as in mergekit. Of ties, the first count as
    larger.
    """
    if density >= 1:
        return delta
    flat = delta.ravel()
    kept = math.floor(density * flat.size)
    dropped = min(math.floor(gamma * flat.size), flat.size - kept)
    order = np.argsort(-np.abs(flat), kind="stable")[dropped : dropped + kept]
    banded = np.zeros_like(flat)
    banded[order] = flat[order]
    return banded.reshape(delta.shape)


def band_of_rows(delta: Array, density: float, gamma: float) -> Array:
    """The same for every row, where ⌊gamma·n⌋ entries are dropped in any case (as published)."""
    if delta.ndim == 0 or delta.size == 0:
        return delta
    rows = delta.reshape(-1, delta.shape[-1])
    length = rows.shape[1]
    dropped = min(math.floor(gamma * length), length)
    order = np.argsort(-np.abs(rows), axis=1, kind="stable")
    order = order[:, dropped : dropped + math.floor(density * length)]
    banded = np.zeros_like(rows)
    np.put_along_axis(banded, order, np.take_along_axis(rows, order, axis=1), axis=1)
    return banded.reshape(delta.shape)


def ranked_chances(delta: Array, density: float, epsilon: float) -> Array:
    """The probability with which each entry is kept, by its magnitude's rank in its row (DELLA).

    From density − epsilon for the smallest to density + epsilon for the largest; of ties, the first
    count as larger.
    """
    rows = np.abs(delta).reshape(-1, delta.shape[-1] if delta.ndim else 1)
    length = rows.shape[1]
    if length == 1:
        return np.full(delta.shape, density)
    order = np.argsort(-rows, axis=1, kind="stable")
    ranks = np.empty_like(rows)
    np.put_along_axis(ranks, order, np.arange(length)[::-1][None, :] * np.ones_like(rows), axis=1)
    chances = (density - epsilon) + ranks / (length - 1) * 2.0 * epsilon
    return np.asarray(chances.reshape(delta.shape))


def keep_mask(
    seed: int, place: int, tensor: str, size: int, density: float | Array
) -> NDArray[np.bool_]:
    """The entries that the random drop keeps, [size], for the expert of index ``place``.

    ``density`` is one number, or one for each entry, [size].

    The format, which never changes, is described in ``rust/sensmerge-core/src/random.rs``: an entry
    is decided by one byte of a Philox stream or, if the byte ties with the density's, by a word of
    a second stream. The bits of the byte lie in eight blocks if there is one density, and side by
    side otherwise.
    """
    mask64 = 2**64 - 1
    stream = 0xCBF29CE484222325
    for byte in tensor.encode() + place.to_bytes(8, "little"):
        stream = ((stream ^ byte) * 0x100000001B3) & mask64
    thresholds = np.rint(np.broadcast_to(density, size) * 2.0**40).astype(np.int64)

    def words(stream: int, blocks: int) -> NDArray[np.uint64]:
        """The first words of a stream, [blocks, 4]."""
        number = np.arange(blocks, dtype=np.uint64)
        counter = [number & 0xFFFFFFFF, number >> 32, stream & 0xFFFFFFFF, stream >> 32]
        return np.stack(philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32]), axis=1)

    if np.ndim(density):
        coarse = words(stream, -(-size // 16)).astype("<u4").view(np.uint8).ravel()
    else:
        # Of 128 entries: eight planes of four words of 32 bits.
        planes = words(stream, 8 * -(-size // 128)).reshape(-1, 8, 4, 1)
        bits = planes >> np.arange(32, dtype=np.uint64) & 1
        coarse = (bits << np.arange(7, -1, -1, dtype=np.uint64).reshape(8, 1, 1)).sum(1).ravel()
    fine = words(stream ^ 0x9E3779B97F4A7C15, -(-size // 4)).ravel()
    coarse, fine = coarse[:size], fine[:size]
    high, low = thresholds >> 32, thresholds % 2**32
    return np.where(coarse == high, fine < low, coarse < high)


def preserve_l1(delta: Array, sparse: Array) -> Array:
    """Scale the kept entries so that the tensor has its former L1 norm (mergekit's rescale).

    Only finite entries count.
    """
    finite = np.isfinite(delta)
    before = float(np.abs(delta[finite]).sum())
    after = float(np.abs(sparse[finite]).sum())
    if before < SMALLEST_NORM or after < SMALLEST_NORM:
        return sparse
    return sparse * (before / after)


def drop(
    delta: Array,
    seed: int,
    place: int,
    tensor: str,
    density: float,
    rescale: bool,
    original: bool,
    epsilon: float | None = None,
) -> Array:
    """Drop entries with probability 1 − density, and rescale the others (DARE, Yu et al. 2024).

    With ``epsilon`` probabilities depend on ranks (DELLA, Deep, Bhardwaj and Poria 2024).
    """
    if density >= 1:
        return delta
    if epsilon is None:
        chances = np.full(delta.shape, density)
        mask = keep_mask(seed, place, tensor, delta.size, density)
    else:
        chances = ranked_chances(delta, density, epsilon)
        mask = keep_mask(seed, place, tensor, delta.size, chances.ravel())
    sparse = np.where(mask.reshape(delta.shape), delta, 0.0)
    if not rescale:
        return sparse
    return sparse / chances if original else preserve_l1(delta, sparse)
