"""Sign election and the sum of those that agree."""

from __future__ import annotations

import numpy as np

from sensmerge.reference.arrays import Array


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
