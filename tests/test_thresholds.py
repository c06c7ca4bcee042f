"""Trims are exact for task vectors of any distribution and order.

All values are multiples of 2⁻²⁰ or other numbers whose differences and sums are exact, so that the
core has to agree with the float64 reference in every entry.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

import sensmerge
from sensmerge import Recipe, reference

Array = NDArray[np.float64]
Pattern = Callable[[Generator, int], Array]

UNIT = 2.0**-20
SIZES = [1, 2, 4095, 4096, 4097, 262_144, 262_145, 1_500_000]
SEMANTICS = ["mergekit", "original"]
DENSITIES = [0.001, 0.2, 0.5, 0.999]


def spread(draw: Generator, size: int) -> Array:
    """Magnitudes like those of real task vectors: few are equal, with a heavy tail."""
    return np.asarray(np.clip(np.rint(draw.standard_t(3, size) / 8 / UNIT) * UNIT, -3, 3))


def handful(draw: Generator, size: int) -> Array:
    return np.asarray(draw.choice([-3, -2, -1, 0, 0, 1, 2, 3], size) / 32)


def all_equal(draw: Generator, size: int) -> Array:
    return np.asarray(draw.choice([-0.25, 0.25], size))


def all_zero(draw: Generator, size: int) -> Array:
    return np.zeros(size)


def ascending(draw: Generator, size: int) -> Array:
    return np.asarray(np.sort(np.abs(spread(draw, size))) * draw.choice([-1, 1], size))


def descending(draw: Generator, size: int) -> Array:
    return ascending(draw, size)[::-1]


def outlying_block(draw: Generator, size: int) -> Array:
    """One block far larger than the rest, which a sample may hit or miss."""
    delta = np.clip(spread(draw, size), -0.5, 0.5) / 16
    start = size // 3
    delta[start : start + 4096] = draw.choice([-3, 3], delta[start : start + 4096].size)
    return np.asarray(np.rint(delta / UNIT) * UNIT)


def constant_but_the_end(draw: Generator, size: int) -> Array:
    delta = np.full(size, 0.5)
    end = size - size // 100
    delta[end:] = spread(draw, size - end)
    return delta


def constant_but_the_start(draw: Generator, size: int) -> Array:
    return constant_but_the_end(draw, size)[::-1]


def alternating_blocks(draw: Generator, size: int) -> Array:
    large = (np.arange(size) // 4096) % 2 == 0
    return np.where(large, 1 + np.abs(spread(draw, size)), np.rint(spread(draw, size)) / 64)


def stripes(draw: Generator, size: int, rare: float = 2.0, common: float = 0.125) -> Array:
    """16 of every 64 entries are of another size: evenly spaced samples may hit only these."""
    factor = np.where(np.arange(size) % 64 < 16, rare, common)
    return np.asarray(np.rint(factor * draw.random(size) / UNIT) * UNIT)


def small_stripes(draw: Generator, size: int) -> Array:
    return stripes(draw, size, rare=0.125, common=2.0)


def neighbours(draw: Generator, size: int) -> Array:
    """Consecutive magnitudes, each once: a threshold off by one keeps one entry too many."""
    place = draw.permutation(size) + 1
    return np.asarray(place * UNIT * draw.choice([-1, 1], size))


def subnormal(draw: Generator, size: int) -> Array:
    """Magnitudes whose bits are small numbers."""
    return np.asarray(draw.integers(-200, 200, size) * 2.0**-149)


def of_every_exponent(draw: Generator, size: int) -> Array:
    exponent = draw.integers(-149, 128, size)
    return np.asarray(np.where(draw.random(size) < 0.5, -1.0, 1.0) * 2.0**exponent)


PATTERNS: list[Pattern] = [
    spread, handful, all_equal, all_zero, ascending, descending, outlying_block,
    constant_but_the_end, constant_but_the_start, alternating_blocks, stripes, small_stripes,
    neighbours,
]  # fmt: skip
# Stored as bfloat16.
FEW_BITS = [handful, all_equal, all_zero]
WHOLE_RANGE = [subnormal, of_every_exponent]


def write(folder: Path, name: str, values: Mapping[str, Array], dtype: str = "float32") -> None:
    """A checkpoint that holds exactly these values."""
    import torch
    from safetensors.torch import save_file

    stored = {
        key: torch.from_numpy(array).to(getattr(torch, dtype)) for key, array in values.items()
    }
    for key, array in values.items():
        exact = np.array_equal(stored[key].double().numpy(), array, equal_nan=True)
        assert exact, f"{key} is rounded"
    (folder / name).mkdir(parents=True)
    save_file(stored, folder / name / "model.safetensors", metadata={"format": "pt"})


def merged(folder: Path, data: dict[str, Any], **options: Any) -> dict[str, Array]:
    """The tensors that a merge writes."""
    from safetensors.torch import load_file

    recipe = Recipe.from_dict({"base_model": "base", **data}, folder=folder)
    options = {"threads": 2, "progress": False, "sync": False, "overwrite": True} | options
    sensmerge.merge(recipe, folder / "out", **options)
    stored = load_file(folder / "out" / "model.safetensors")
    return {name: tensor.double().numpy() for name, tensor in stored.items()}


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        wrong = int((found[name] != values).sum())
        assert wrong == 0, f"{name}: {wrong} of {values.size} entries differ"


class Trimmed:
    """A base and one expert, whose task vector has one tensor of a pattern for every size."""

    def __init__(self, folder: Path, pattern: Pattern, sizes: list[int]):
        draw = np.random.default_rng(3)
        # Integers leave a task vector's last bits alone, unless these are too far below them.
        largest = 0 if pattern in WHOLE_RANGE else 1
        dtype = "bfloat16" if pattern in FEW_BITS else "float32"
        self.folder = folder
        self.base = {
            f"w{size}": draw.integers(-largest, largest + 1, size).astype(np.float64)
            for size in sizes
        }
        self.delta = {f"w{size}": pattern(draw, size) for size in sizes}
        expert = {name: self.base[name] + delta for name, delta in self.delta.items()}
        write(folder, "base", self.base, dtype)
        write(folder, "expert", expert, dtype)

    def check(self, density: float, semantics: str) -> None:
        """Merge with TIES, and compare every entry."""
        models = [{"model": "expert", "parameters": {"density": density}}]
        data = {"merge_method": "ties", "semantics": semantics, "models": models}
        found = merged(self.folder, data)
        kept = trimmed_by_reference(self.delta, density, semantics)
        assert_same(found, {name: self.base[name] + delta for name, delta in kept.items()})


def trimmed_by_reference(
    delta: Mapping[str, Array], density: float, semantics: str
) -> dict[str, Array]:
    if semantics == "original":
        return reference.trim_model(delta, density)
    return {name: reference.trim_tensor(values, density) for name, values in delta.items()}


@pytest.fixture(scope="module", params=PATTERNS, ids=lambda pattern: pattern.__name__)
def trimmed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trimmed:
    return Trimmed(tmp_path_factory.mktemp("trimmed"), request.param, SIZES)


@pytest.mark.parametrize("density", DENSITIES)
def test_exactly_the_largest_stay_in_every_tensor(trimmed: Trimmed, density: float) -> None:
    trimmed.check(density, "mergekit")


@pytest.mark.parametrize("density", DENSITIES)
def test_the_models_threshold_is_exact(trimmed: Trimmed, density: float) -> None:
    trimmed.check(density, "original")


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("pattern", [stripes, small_stripes])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("entries", [2**17, 2**21])
def test_a_pattern_in_step_with_even_places(
    tmp_path: Path,
    pattern: Pattern,
    density: float,
    semantics: str,
    entries: int,
) -> None:
    """Evenly spread runs of 16 entries hit only one kind of magnitudes."""
    Trimmed(tmp_path, pattern, [entries + 16]).check(density, semantics)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("pattern", WHOLE_RANGE)
def test_the_whole_range_of_float32(
    tmp_path: Path, pattern: Pattern, density: float, semantics: str
) -> None:
    Trimmed(tmp_path, pattern, [5, 4097, 300_000]).check(density, semantics)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_nan_is_larger_than_every_number(tmp_path: Path, semantics: str) -> None:
    draw = np.random.default_rng(8)
    delta = {f"w{size}": spread(draw, size) for size in (4097, 300_000)}
    nan = {name: draw.random(values.size) < 0.01 for name, values in delta.items()}
    write(tmp_path, "base", {name: np.zeros_like(values) for name, values in delta.items()})
    write(tmp_path, "expert", {name: np.where(nan[name], np.nan, delta[name]) for name in delta})
    models = [{"model": "expert", "parameters": {"density": 0.2}}]
    data = {"merge_method": "ties", "semantics": semantics, "models": models}
    found = merged(tmp_path, data, allow_nan=True)
    in_place = {name: np.where(nan[name], 100.0, delta[name]) for name in delta}
    kept = trimmed_by_reference(in_place, 0.2, semantics)
    assert all((np.isnan(found[name]) == nan[name]).all() for name in delta)
    assert_same({name: np.where(nan[name], 100.0, found[name]) for name in delta}, kept)


SEVERAL = [(spread, 0.2), (handful, 0.5), (descending, 0.7), (outlying_block, 1.0)]


@pytest.mark.parametrize("chunk_bytes", [64 * 1024, None])
@pytest.mark.parametrize(
    ("method", "semantics"),
    list(itertools.product(["ties", "dare_ties"], SEMANTICS)),
)
def test_experts_of_several_patterns(
    tmp_path: Path, method: str, semantics: str, chunk_bytes: int | None
) -> None:
    """Experts' thresholds are independent; zeros left by a drop are trimmed."""
    draw = np.random.default_rng(9)
    base = {f"w{size}": draw.integers(-1, 2, size).astype(np.float64) for size in (1, 4097, 70_000)}
    experts = [
        {name: base[name] + pattern(draw, values.size) for name, values in base.items()}
        for pattern, _ in SEVERAL
    ]
    write(tmp_path, "base", base)
    for place, expert in enumerate(experts):
        write(tmp_path, f"e{place}", expert)
    densities = [density for _, density in SEVERAL]
    if method == "dare_ties":
        densities = [0.5, 0.75, 0.25, 1.0]
    ties_densities = [0.6, 0.25, 0.001, 0.6]
    models = [
        {"model": f"e{place}", "parameters": {"density": density, "ties_density": ties_density}}
        for place, (density, ties_density) in enumerate(zip(densities, ties_densities, strict=True))
    ]
    # Neither divided nor rescaled, sums of few bits are exact.
    parameters = {"normalize": False, "rescale": False}
    data = {
        "merge_method": method, "semantics": semantics, "models": models,
        "parameters": parameters, "seed": 21,
    }  # fmt: skip
    found = merged(tmp_path, data, chunk_bytes=chunk_bytes)
    expected = reference.merge(
        method, semantics, base, experts, weights={name: [1.0] * 4 for name in base},
        densities=densities, ties_densities=ties_densities, normalize=False, rescale=False, seed=21,
    )  # fmt: skip
    assert_same(found, expected)
