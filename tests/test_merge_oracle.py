"""Every method, semantics and mode against the float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sensmerge
from families import SHAPES, Arrays, tensor_family
from sensmerge import Calibration, Recipe, _core, reference
from sensmerge.calibration.record import Expert, TaskRecord
from sensmerge.models.layers import layer_of

METHODS = [
    "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs",
    "breadcrumbs_ties", "della", "della_linear",
]  # fmt: skip
BLOCKS = ["model.layers.0", "model.layers.1", "model.layers.10"]

# Entries where a sum cancels to noise before its sign is taken, or a magnitude lies on the trim
# threshold within rounding, may go either way.
EXCEPTIONS = 1 / 2000

WEIGHTS = [1.0, 0.75, 1.25, 0.5]
DENSITIES = [0.3, 0.55, 0.8, 1.0]
GAMMA, EPSILON = 0.05, 0.15
SEED = 11


def calibration_of(folder: Path, count: int) -> Calibration:
    """A calibration that belongs to the experts in a folder."""
    draw = np.random.default_rng(7)
    g = draw.random((count, count))
    np.fill_diagonal(g, 0)
    task = TaskRecord("t", 1, [0], 1, 0, 1, "sha256:0", 512)
    prints = [_core.Checkpoint(str(folder / f"e{i}")).fingerprint() for i in range(count)]
    return Calibration(
        base="base",
        experts=[Expert(f"e{i}", prints[i], 1, 1.0, task) for i in range(count)],
        layers=BLOCKS,
        sensitivity=draw.random((count, 3)) + 0.2,
        outside_layers=[],
        outside_sensitivity=np.zeros((count, 0)),
        order=BLOCKS,
        alignment=g,
        options={},
    )


def merged_and_expected(
    folder: Path, method: str, semantics: str, mode: str, count: int, dtype: str
) -> tuple[Arrays, Arrays, Arrays]:
    """The core's merge, the reference's, and the largest term of each sum."""
    from safetensors.torch import load_file

    base, experts = tensor_family(folder, experts=count, dtype=dtype)
    lambda_ = 1.0 if method == "linear" else 0.8
    data: dict[str, Any] = {
        "merge_method": method,
        "base_model": "base",
        "models": [
            {
                "model": f"e{i}",
                "parameters": {"weight": WEIGHTS[i], "density": DENSITIES[i], "ties_density": 0.7},
            }
            for i in range(count)
        ],
        "parameters": {"lambda": lambda_, "gamma": GAMMA, "epsilon": EPSILON},
        "semantics": semantics,
        "seed": SEED,
        "sensitivity": {"mode": mode, "temperature": 0.3},
    }
    recipe = Recipe.from_dict(data, folder=folder)
    calibration = calibration_of(folder, count)
    result = sensmerge.merge(recipe, folder / "out", calibration=calibration, progress=False)
    assert (result.coefficients is None) == (mode == "off")

    sigma = reference.sigma(
        calibration.sensitivity, calibration.alignment, mode=mode, temperature=0.3
    )
    scale = {block: count * sigma[:, place] for place, block in enumerate(BLOCKS)}
    weights = {
        name: [
            w * s for w, s in zip(WEIGHTS, scale.get(layer_of(name), [1.0] * count), strict=False)
        ]
        for name in SHAPES
    }
    expected = reference.merge(
        method,
        semantics,
        base,
        experts,
        weights=weights,
        densities=DENSITIES[:count],
        ties_densities=[0.7] * count,
        gamma=GAMMA,
        epsilon=EPSILON,
        lambda_=lambda_,
        seed=SEED,
    )
    stored = load_file(folder / "out" / "model.safetensors")
    terms = {
        name: np.max([np.abs(base[name])] + [np.abs(expert[name]) for expert in experts], axis=0)
        for name in SHAPES
    }
    return {name: value.double().numpy() for name, value in stored.items()}, expected, terms


def spacing(values: NDArray[np.float64], bits: int, smallest: float) -> NDArray[np.float64]:
    """One unit in the last place of a format with this number of significant bits."""
    exponent = np.floor(np.log2(np.maximum(np.abs(values), smallest)))
    return np.asarray(2.0 ** (exponent - bits + 1))


@pytest.mark.parametrize("semantics", ["mergekit", "original"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("mode", "count", "dtype"),
    [
        ("off", 2, "bfloat16"),
        ("full", 3, "bfloat16"),
        ("task", 4, "bfloat16"),
        ("cross", 3, "float16"),
        ("full", 2, "float16"),
        ("full", 4, "float32"),
        ("task", 3, "float32"),
        ("off", 2, "float64"),
    ],
)
def test_merges_are_the_references(
    tmp_path: Path, method: str, semantics: str, mode: str, count: int, dtype: str
) -> None:
    merged, expected, terms = merged_and_expected(tmp_path, method, semantics, mode, count, dtype)
    assert merged.keys() == expected.keys() == SHAPES.keys()
    found = np.concatenate([merged[name].ravel() for name in SHAPES])
    wanted = np.concatenate([expected[name].ravel() for name in SHAPES])
    largest = np.concatenate([terms[name].ravel() for name in SHAPES])
    if dtype in ("bfloat16", "float16"):
        import torch

        rounded = torch.tensor(wanted).to(getattr(torch, dtype)).double().numpy()
        bits, smallest = (8, 2.0**-126) if dtype == "bfloat16" else (11, 2.0**-14)
        apart = np.abs(found - rounded) > spacing(wanted, bits, smallest)
        # Sums of whole parameters, not of differences, meet exact halves of the last place, where
        # float64's own rounding decides the reference.
        assert (found == rounded).mean() >= (0.99 if method == "linear" else 0.999)
    else:
        # Sums of task vectors that are rescaled by up to 1 / 0.3 round by more than the parameters
        # do. In float64 the reference's own sums are no more exact than ours.
        bits, units = (24, 8) if dtype == "float32" else (53, 64)
        apart = np.abs(found - wanted) > units * spacing(
            np.maximum(largest, np.abs(wanted)), bits, 1e-38
        )
    assert apart.mean() < EXCEPTIONS, f"{apart.sum()} of {apart.size} entries"


@pytest.mark.parametrize("semantics", ["mergekit", "original"])
@pytest.mark.parametrize("majority", [-1, 0, 1])
def test_draws_go_to_the_models_majority(tmp_path: Path, majority: int, semantics: str) -> None:
    """One tensor whose votes all sum to 0; the other decides the majority, or has none either."""
    import torch
    from safetensors.torch import load_file, save_file

    draws = np.tile([0.5, -0.5, 0.25], 3000)
    decisive = np.concatenate([np.full(1001 + majority, 0.125), np.full(1001, -0.125)])
    models: list[Arrays] = [
        {"draws": np.ones(9000), "decisive": np.ones(2002 + majority)},
        {"draws": 1 + draws, "decisive": 1 + decisive},
        {"draws": 1 - draws, "decisive": 1 + decisive},
    ]
    for name, values in zip(["base", "e0", "e1"], models, strict=True):
        (tmp_path / name).mkdir()
        stored = {key: torch.tensor(value, dtype=torch.float32) for key, value in values.items()}
        save_file(stored, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    data = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "e0"}, {"model": "e1"}],
        "semantics": semantics,
    }
    recipe = Recipe.from_dict(data, folder=tmp_path)
    sensmerge.merge(recipe, tmp_path / "out", progress=False, sync=False)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    base, *experts = models
    weights = {name: [1.0, 1.0] for name in base}
    expected = reference.merge("ties", semantics, base, experts, weights=weights)
    sign = majority if semantics == "original" else 1
    np.testing.assert_array_equal(expected["draws"], 1 + sign * np.abs(draws))
    for name in base:
        np.testing.assert_array_equal(merged[name].double().numpy(), expected[name])


def test_mode_off_writes_the_plain_methods_bytes(tmp_path: Path) -> None:
    tensor_family(tmp_path, experts=3, dtype="bfloat16")
    data = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": f"e{i}"} for i in range(3)],
    }
    for name, extra in (("plain", {}), ("off", {"sensitivity": {"mode": "off"}})):
        recipe = Recipe.from_dict(data | extra, folder=tmp_path)
        sensmerge.merge(recipe, tmp_path / name, progress=False)
    plain, off = (tmp_path / name / "model.safetensors" for name in ("plain", "off"))
    assert plain.read_bytes() == off.read_bytes()
