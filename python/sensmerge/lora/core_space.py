"""Core Space: low-rank changes of one matrix as small matrices in a basis that they share.

A change of a weight, ``Δ_i = L_i R_iᵀ``, is held as its factors. The columns of ``U`` and ``V`` are
orthonormal bases of what the outputs and the inputs of all changes span together, so that

    Δ_i = U M_i Vᵀ        M_i = (Uᵀ L_i)(R_iᵀ V)

and nothing is lost: ``M_i`` is ``Δ_i`` in other coordinates. Neither has more rows or columns than
the ranks add up to, and no matrix of the weight's size is formed.

Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space" (NeurIPS 2025), of
which this differs in one point. There, ``U`` and ``V`` are singular vectors of the factors that are
stored, ``[B_1 … B_K]`` and ``[A_1; …; A_K]``; here, of the changes, ``[Δ_1 … Δ_K]`` and
``[Δ_1; …; Δ_K]``. So the axes depend neither on how a change is written as a product nor on α.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensmerge.lora.lowrank import Factors

Matrix = NDArray[np.float64]

# Singular values up to this share of the largest one count as 0, and so do entries: they are made
# of rounding errors, and methods look at the signs of entries, however small. The core has the same
# number for whole matrices.
_NOTHING = 1e-10


@dataclass(frozen=True)
class LowRank:
    """A change ``left · rightᵀ`` to a weight, as the model stores it.

    Attributes:
        left: ``[rows, rank]``.
        right: ``[columns, rank]``.
    """

    left: Matrix
    right: Matrix


@dataclass(frozen=True)
class Space:
    """The space that changes of one weight have in common.

    Attributes:
        u: ``[rows, a]``, with orthonormal columns.
        v: ``[columns, b]``, likewise.
    """

    u: Matrix
    v: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """The shape ``(a, b)`` of matrices in it; 0 where no change is other than 0."""
        return self.u.shape[1], self.v.shape[1]

    def core(self, change: LowRank) -> Matrix:
        """A change in it: ``M`` of ``[a, b]``, for which ``change = U M Vᵀ``."""
        found = (self.u.T @ change.left) @ (change.right.T @ self.v)
        found[np.abs(found) <= _NOTHING * np.abs(found).max(initial=0.0)] = 0.0
        return found


def space_of(changes: Sequence[LowRank]) -> Space:
    """The space that changes of one weight have in common."""
    swapped = [LowRank(change.right, change.left) for change in changes]
    return Space(_axes(changes), _axes(swapped))


def _axes(changes: Sequence[LowRank]) -> Matrix:
    """The left singular vectors of ``[Δ_1 … Δ_K]``, those of values that are 0 left out.

    With ``R = Q T`` by QR, ``Δ = (L Tᵀ) Qᵀ``: the columns of ``Q`` are orthonormal, so that all
    ``L_i T_iᵀ`` beside each other have the same left singular vectors.
    """
    # NumPy's types know no mode but the one that makes Q too.
    triangles: list[Any] = [np.linalg.qr(change.right, mode="r") for change in changes]
    pairs = zip(changes, triangles, strict=True)
    beside = np.hstack([change.left @ triangle.T for change, triangle in pairs])
    u, s, _ = np.linalg.svd(beside, full_matrices=False)
    return u[:, s > _NOTHING * s.max(initial=0.0)]


def factors(u: Matrix, core: Matrix, v: Matrix) -> Factors:
    """The singular values and vectors of ``U · core · Vᵀ``, as many as are not 0.

    Args:
        u: ``[rows, a]``, with orthonormal columns.
        core: ``[a, b]``.
        v: ``[columns, b]``, with orthonormal columns.
    """
    left, s, right = np.linalg.svd(core, full_matrices=False)
    kept = s > _NOTHING * s.max(initial=0.0)
    return Factors(u @ left[:, kept], s[kept], right[kept] @ v.T)
