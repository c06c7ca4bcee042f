"""Results do not depend on the floating-point mode of the calling thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sensmerge
from sensmerge import _core
from sensmerge.recipe import Recipe

# The smallest subnormal of float16.
TINY = 2.0**-24


@pytest.fixture
def flushing() -> Iterator[None]:
    """Subnormals are flushed to zero in this thread, and in those it starts."""
    assert torch.set_flush_denormal(True)
    assert torch.tensor(1e-40).mul(1.0).item() == 0.0
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flushing")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_reduction_keeps_subnormals(threads: int) -> None:
    entries = 40_000
    theta = np.full(entries, TINY, np.float16).view(np.uint8)
    ones = np.ones(entries, np.float32).view(np.uint8)
    pool_of_its_own = threads + 2
    found = _core.sum_abs_product(theta, "float16", ones, "float32", threads=pool_of_its_own)
    assert found == pytest.approx(entries * TINY, rel=1e-12)
    squares = _core.sum_squares(theta, "float16", threads=pool_of_its_own)
    assert squares == pytest.approx(entries * TINY**2, rel=1e-12)


@pytest.mark.usefixtures("flushing")
def test_a_merge_keeps_subnormals(tmp_path: Path) -> None:
    for name, value in [("base", 0.0), ("expert", TINY)]:
        (tmp_path / name).mkdir()
        tensors = {"a.weight": torch.full((40_000,), value, dtype=torch.float16)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "expert"}],
    }
    recipe = Recipe.from_dict(data, folder=tmp_path)
    sensmerge.merge(recipe, tmp_path / "out", progress=False)
    expert = (tmp_path / "expert" / "model.safetensors").read_bytes()
    merged = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert merged[-80_000:] == expert[-80_000:]
