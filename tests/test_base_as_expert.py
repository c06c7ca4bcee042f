"""The base as one of the experts: measured like them, with a share of every layer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import sensmerge
from families import Family
from sensmerge import Calibration, InputError, Recipe, calibrate, coefficients, reference
from sensmerge.models.layers import layer_of
from sensmerge.scaling.mergekit import mergekit_recipe
from sensmerge.search.judge import Judge
from sensmerge.search.settings import Settings

SENSITIVITY: dict[str, Any] = {"samples": 3, "dtype": "float32", "base": "expert"}


def recipe(family: Family, *, base: bool = True, **keys: Any) -> Recipe:
    sensitivity = SENSITIVITY | keys
    models = [{"model": name, "calibration": f"t{name[1]}.jsonl"} for name in ("e0", "e1")]
    listed = [{"model": "base", "calibration": "t2.jsonl"}] if base else []
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [models[0], *listed, models[1]],
        "parameters": {"lambda": 0.8},
        "sensitivity": sensitivity,
    }
    return Recipe.from_dict(data, family.folder)


@pytest.fixture(scope="module")
def measured(family: Family) -> Calibration:
    return calibrate(recipe(family), progress=False)


def test_the_base_is_measured_like_an_expert(family: Family, measured: Calibration) -> None:
    assert [expert.model for expert in measured.experts] == ["base", "e0", "e1"]
    listed = [
        {"model": name, "calibration": f"t{task}.jsonl"}
        for name, task in (("base", 2), ("e0", 0), ("e1", 1))
    ]
    said = {"samples": 3, "dtype": "float32"}
    other = {"merge_method": "linear", "models": listed, "sensitivity": said}
    wanted = calibrate(Recipe.from_dict(other, family.folder), progress=False)
    np.testing.assert_array_equal(measured.sensitivity, wanted.sensitivity)
    np.testing.assert_array_equal(measured.alignment, wanted.alignment)


@pytest.mark.parametrize("tau", [None, [0.3, 0.5, 0.2]])
def test_its_share_is_what_the_others_leave(
    family: Family, measured: Calibration, tmp_path: Path, tau: list[float] | None
) -> None:
    asked = recipe(family, temperature=0.02, tau=tau)
    found = coefficients(measured, asked)
    sigma = reference.sigma(
        measured.sensitivity, measured.alignment, temperature=0.02, fixed_tau=tau
    )
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-12)
    np.testing.assert_allclose(found.sigma.sum(axis=0), 1, rtol=1e-12)
    assert "σ lies between" in found.sentences()[0]
    sensmerge.merge(asked, tmp_path / "out", measured, progress=False, sync=False)
    base, e0, e1, out = (
        load_file(path / "model.safetensors")
        for path in (*(family.folder / name for name in ("base", "e0", "e1")), tmp_path / "out")
    )
    for name, theta in base.items():
        layer = layer_of(name)
        place = found.layers.index(layer) if layer in found.layers else None
        shares = [1 / 3] * 3 if place is None else list(sigma[:, place])
        theta, d0, d1 = (t.astype(np.float64) for t in (theta, e0[name] - theta, e1[name] - theta))
        wanted = theta + 0.8 * (shares[1] * d0 + shares[2] * d1)
        np.testing.assert_allclose(out[name], wanted, rtol=0, atol=3e-7)


def test_a_fixed_pair_gives_the_factors_of_a_softmax_over_two(family: Family) -> None:
    # The published pair for two models: σ is the softmax of τ·α/T over the two, λ = w = 1.
    models = [{"model": name, "calibration": "t0.jsonl"} for name in ("base", "e0")]
    keys = SENSITIVITY | {"tau": [0.3, 0.7], "temperature": 2}
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": models,
        "sensitivity": keys,
    }
    asked = Recipe.from_dict(data, family.folder)
    measured = calibrate(asked, progress=False)
    found = coefficients(measured, asked)
    alpha = measured.sensitivity / np.linalg.norm(measured.sensitivity, axis=1, keepdims=True)
    logits = np.array([[0.3], [0.7]]) * alpha / 2
    wanted = 1 / (1 + np.exp(logits[0] - logits[1]))
    np.testing.assert_allclose(found.sigma[1], wanted, rtol=1e-12)
    assert found.notes() == []
    data["sensitivity"] = keys | {"temperature": 100}
    assert coefficients(measured, Recipe.from_dict(data, family.folder)).notes() == [
        "the coefficients are nearly uniform, so the result is almost the plain mean; lower "
        "sensitivity.temperature (now 100)"
    ]


def test_searches_and_exports_take_the_same_factors(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    asked = recipe(family, temperature=0.02)
    found = coefficients(measured, asked)
    judge = Judge(asked, calibration=measured, validation=0.0, threads=1)
    assert [task.name for task in judge.tasks] == ["e0", "e1"]
    losses = judge.losses(Settings.of(asked))
    tensors = sorted(load_file(family.folder / "base" / "model.safetensors"))
    written = tmp_path / "plain.yaml"
    written.write_text(mergekit_recipe(asked, found, tensors))
    again = Recipe.load(written)
    for out, made, calibration in (("a", asked, measured), ("b", again, None)):
        sensmerge.merge(made, tmp_path / out, calibration, progress=False, sync=False)
    one, other = (load_file(tmp_path / out / "model.safetensors") for out in "ab")
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, other[name], rtol=0, atol=2e-7)
    assert all(np.isfinite(losses))


def test_refusals(family: Family, measured: Calibration) -> None:
    with pytest.raises(InputError, match=r"sensitivity\.base: .* list base among the models"):
        recipe(family, base=False)
    with pytest.raises(InputError, match=r"sensitivity\.tau: has 2 numbers for 3 measured models"):
        recipe(family, tau=[0.5, 0.5])
    with pytest.raises(InputError, match="is below 0"):
        recipe(family, tau=[0.5, 0.5, -1])
    data = recipe(family).source | {"merge_method": "linear"}
    data.pop("parameters")
    with pytest.raises(InputError, match=r"sensitivity\.base: linear has no base beside"):
        Recipe.from_dict(data, family.folder)
    only = recipe(family).source | {"sensitivity": {"samples": 3, "dtype": "float32"}}
    only["models"] = [model for model in only["models"] if model["model"] != "base"]
    plain = calibrate(Recipe.from_dict(only, family.folder), progress=False)
    with pytest.raises(InputError, match="base"):
        coefficients(plain, recipe(family))
