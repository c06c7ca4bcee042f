"""Freed memory that waits in glibc's heap is given back where it would raise the peak."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sensmerge.calibration.heap import Heap, _in_use  # noqa: E402

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not _in_use(), reason="needs glibc 2.33 or newer"
)

# Below the size from which glibc asks the system for every piece.
PIECE = 64 * 1024
PIECES = 6000


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def every_second(pieces: list[np.ndarray]) -> list[np.ndarray]:
    """What stays keeps the heap from shrinking by itself."""
    return pieces[::2]


def test_holes_are_given_back() -> None:
    heap = Heap()
    kept = every_second([np.ones(PIECE, np.uint8) for _ in range(PIECES)])
    before = resident()
    heap.tidy()
    assert before - resident() > 0.8 * PIECE * PIECES / 2
    assert sum(int(piece.sum()) for piece in kept) == PIECE * len(kept)


def test_holes_below_the_most_in_use_are_left() -> None:
    heap = Heap()
    pieces = [np.ones(PIECE, np.uint8) for _ in range(PIECES)]
    heap.tidy()
    kept = every_second(pieces)
    del pieces
    before = resident()
    heap.tidy()
    assert before - resident() < 0.1 * PIECE * PIECES
    assert kept
