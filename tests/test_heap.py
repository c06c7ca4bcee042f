"""Freed memory that stays in glibc's heap is returned where it would raise the peak."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

from sensmerge.calibration.heap import _in_use

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not _in_use(), reason="needs glibc 2.33 or newer"
)

# In a process of its own, so that memory freed by other tests does not matter.
HOLES = """
import gc
from pathlib import Path
import numpy as np
from sensmerge.calibration.heap import Heap

# Below the size from which glibc asks the system for every piece.
piece, count = 64 * 1024, 6000

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def pieces():
    return [np.ones(piece, np.uint8) for _ in range(count)]

gc.disable()
heap = Heap()
"""


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", HOLES + code], check=True)


def test_holes_are_given_back() -> None:
    run("""
# What stays keeps the heap from shrinking by itself.
kept = pieces()[::2]
before = resident()
heap.tidy()
given_back = before - resident()
assert given_back > 0.8 * piece * count / 2, given_back
assert sum(int(one.sum()) for one in kept) == piece * len(kept)
""")


def test_holes_below_the_most_in_use_are_left() -> None:
    run("""
all_of_them = pieces()
heap.tidy()
kept = all_of_them[::2]
del all_of_them
before = resident()
heap.tidy()
given_back = before - resident()
assert given_back < 0.1 * piece * count, given_back
assert kept
""")
