"""The bytes of tensors in files, and the numbers that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensmerge import _core

Bytes = NDArray[np.uint8]

# Bytes that are compared at a time.
_PIECE = 16 << 20


def mapped(checkpoint: _core.Checkpoint, tensor: _core.TensorInfo) -> Bytes:
    """The bytes of a tensor, which are read as they are looked at."""
    path = Path(checkpoint.path)
    path = path / tensor.file if path.is_dir() else path
    return np.memmap(path, np.uint8, "r", tensor.start, (tensor.nbytes,))


def same(one: Bytes, other: Bytes) -> bool:
    """Whether two tensors have the same bytes, of which a few are in memory at a time."""
    return len(one) == len(other) and all(
        np.array_equal(one[first : first + _PIECE], other[first : first + _PIECE])
        for first in range(0, len(one), _PIECE)
    )


def widened(stored: Bytes, dtype: str) -> NDArray[np.float64]:
    """Entries as float64, exactly; their dtype by its name in torch."""
    if dtype != "bfloat16":
        return stored.view(dtype).astype(np.float64)
    bits = stored.view(np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)


def rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as a dtype, by its name in torch; bfloat16 as uint16 of the same bits."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32)
    # To nearest, ties to even; factors are finite.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
