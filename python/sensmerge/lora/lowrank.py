"""Truncated singular value decompositions of task vectors, a few rows at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
# Reads the rows first to last (exclusive) of a matrix.
Rows = Callable[[int, int], Matrix]

# Entries of a matrix that are in memory at a time; a smaller one is decomposed exactly.
_PIECE = 16 << 20

# Halko, Martinsson and Tropp (2011): columns beyond the rank, and passes that sharpen the subspace.
# With these the error of what is left exceeds the least possible one by under 1 %, also where the
# singular values hardly decay.
_BEYOND, _PASSES = 16, 2

# Above this share of the smaller side, the exact decomposition takes no longer.
_SHARE = 0.25


@dataclass(frozen=True)
class Factors:
    """The leading part of ``U · diag(S) · Vᵀ``.

    Attributes:
        u: ``[rows, rank]``.
        s: ``[rank]``, the largest first.
        v: ``[rank, columns]``.
    """

    u: NDArray[np.floating[Any]]
    s: NDArray[np.floating[Any]]
    v: NDArray[np.floating[Any]]

    def of_rank(self, rank: int) -> Factors:
        """The leading ``rank`` of them."""
        return Factors(self.u[:, :rank], self.s[:rank], self.v[:rank])

    @property
    def squared(self) -> float:
        """Squared L2 norm of the product."""
        return float(np.sum(self.s.astype(np.float64) ** 2))


def decompose(rows: Rows, shape: tuple[int, int], rank: int, name: str) -> Factors:
    """The leading singular values and vectors of a matrix.

    Exact for small matrices; for others by random projection, seeded by the name.

    Args:
        rows: Reads rows of the matrix.
        shape: Its shape.
        rank: How many, at most the smaller side.
        name: The matrix's name.
    """
    height, width = shape
    rank = min(rank, height, width)
    wide = min(rank + _BEYOND, height, width)
    if height * width <= _PIECE and wide > _SHARE * min(height, width):
        u, s, v = np.linalg.svd(rows(0, height), full_matrices=False)
        return Factors(u, s, v).of_rank(rank)
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    random = np.random.Generator(np.random.Philox(key=seed))
    found = _times(rows, shape, random.standard_normal((width, wide), dtype=np.float32))
    for _ in range(_PASSES):
        basis, _ = np.linalg.qr(found)
        across, _ = np.linalg.qr(_transposed_times(rows, shape, basis))
        found = _times(rows, shape, across)
    basis, _ = np.linalg.qr(found)
    u, s, v = np.linalg.svd(_transposed_times(rows, shape, basis).T, full_matrices=False)
    return Factors(basis @ u, s, v).of_rank(rank)


def _pieces(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    height, width = shape
    step = max(1, _PIECE // max(width, 1))
    for first in range(0, height, step):
        yield first, min(first + step, height)


def _times(rows: Rows, shape: tuple[int, int], right: Matrix) -> Matrix:
    """The matrix times another."""
    result = np.empty((shape[0], right.shape[1]), np.float32)
    for first, last in _pieces(shape):
        result[first:last] = rows(first, last) @ right
    return result


def _transposed_times(rows: Rows, shape: tuple[int, int], right: Matrix) -> Matrix:
    """The transposed matrix times another."""
    result = np.zeros((shape[1], right.shape[1]), np.float32)
    for first, last in _pieces(shape):
        result += rows(first, last).T @ right[first:last]
    return result
