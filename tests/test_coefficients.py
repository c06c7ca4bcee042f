"""Coefficients of a recipe: the experts of their rows, and their form as a mergekit recipe."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

import sensmerge
from families import tensor_family
from sensmerge import Calibration, InputError, Recipe, _core
from sensmerge.models.layers import block_of, layer_of
from sensmerge.recipe.numbers import resolve, resolve_first
from sensmerge.scaling.mergekit import mergekit_recipe
from sensmerge.scaling.sigma import task_specific
from sensmerge.workflow import as_mergekit
from test_scaling import found, measured


def recipe_of(folder: Path = Path(), **keys: Any) -> Recipe:
    models = [{"model": "e0"}, {"model": "e1"}]
    data = {"merge_method": "ties", "base_model": "base", "models": models, "sensitivity": {}}
    return Recipe.from_dict(data | keys, folder=folder)


def measured_on(folder: Path, *names: str) -> Calibration:
    """A calibration of these experts, by names that the recipe does not use."""
    calibration = measured(len(names))
    prints = [_core.Checkpoint(str(folder / name)).fingerprint() for name in names]
    experts = [
        replace(expert, model=f"elsewhere/{name}", fingerprint=fingerprint)
        for expert, name, fingerprint in zip(calibration.experts, names, prints, strict=True)
    ]
    return replace(calibration, experts=experts)


def test_rows_are_in_the_recipes_order_whatever_the_calibrations(tmp_path: Path) -> None:
    tensor_family(tmp_path, experts=2, dtype="float32")
    calibration = measured_on(tmp_path, "e1", "e0")
    result = sensmerge.coefficients(calibration, recipe_of(tmp_path))
    assert result.experts == ["e0", "e1"]
    s = calibration.sensitivity
    np.testing.assert_allclose(result.alpha[0], s[1] / np.sqrt((s[1] ** 2).sum()))
    np.testing.assert_allclose(result.alpha[1], s[0] / np.sqrt((s[0] ** 2).sum()))


def test_experts_that_were_not_measured_are_refused(tmp_path: Path) -> None:
    tensor_family(tmp_path, experts=2, dtype="float32")
    with pytest.raises(InputError, match="expert 2"):
        sensmerge.coefficients(measured_on(tmp_path, "e0"), recipe_of(tmp_path))


def test_a_recipe_without_the_section_is_told_what_to_add() -> None:
    plain = Recipe.from_dict({"merge_method": "linear", "models": [{"model": "a"}]})
    with pytest.raises(InputError, match=r"add 'sensitivity: \{\}'"):
        sensmerge.coefficients(measured(2), plain)


def test_a_calibration_by_another_measure_is_refused(tmp_path: Path) -> None:
    tensor_family(tmp_path, experts=2, dtype="float32")
    # Calibrations without the option are older than it.
    taylor = measured_on(tmp_path, "e0", "e1")
    fisher = replace(taylor, options={"measure": "fisher"})
    wants_fisher = recipe_of(tmp_path, sensitivity={"measure": "fisher"})
    for calibration, recipe, said in (
        (taylor, wants_fisher, "asks for fisher and the calibration was measured with taylor"),
        (fisher, recipe_of(tmp_path), "asks for taylor and the calibration was measured with fish"),
    ):
        with pytest.raises(InputError, match=f"sensitivity.measure: the recipe {said}"):
            sensmerge.coefficients(calibration, recipe)
        with pytest.raises(InputError, match=f"sensitivity.measure: the recipe {said}"):
            sensmerge.merge(recipe, tmp_path / "out", calibration, progress=False)
    assert not (tmp_path / "out").exists()
    result = sensmerge.coefficients(fisher, wants_fisher)
    np.testing.assert_array_equal(
        result.alpha, sensmerge.coefficients(taylor, recipe_of(tmp_path)).alpha
    )


@pytest.mark.parametrize("factor", [1e-200, 1.0, 1e200])
def test_the_unit_of_sensitivity_does_not_matter(factor: float) -> None:
    alpha = task_specific(np.array([[3.0, 4.0]]) * factor, ["e"])
    np.testing.assert_allclose(alpha, [[0.6, 0.8]], rtol=1e-14)


def test_what_lies_outside_counts_for_near_uniform() -> None:
    calibration = replace(measured(2), alignment=np.array([[0, 9.0], [1, 0]]))
    same = replace(calibration, sensitivity=np.ones((2, 4)))
    assert found(same, mode="task").near_uniform
    assert not found(same, mode="task", outside_blocks="cross").near_uniform


LAYERS = [1, 2, 3, 22, 32, 80]

WEIGHTS: list[Any] = [
    0.5,
    [0, 0.3, 1],
    [{"filter": "mlp", "value": [1, 0.2]}, {"filter": "norm", "value": 4}],
]

SHARED: list[Any] = [{"filter": "attn", "value": 7}, {"value": [2, 3]}]


@pytest.mark.parametrize("outside", ["uniform", "cross", "own"])
@pytest.mark.parametrize("layers", LAYERS)
def test_mergekit_reads_every_weight_back(layers: int, outside: str) -> None:
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{i}.{part}.w" for i in range(layers) for part in ("mlp", "attn")]
    recipe = recipe_of(
        models=[{"model": f"e{i}", "parameters": {"weight": w}} for i, w in enumerate(WEIGHTS)],
        sensitivity={"outside_blocks": outside},
        parameters={"weight": SHARED},
    )
    result = sensmerge.coefficients(measured(3, layers), recipe)
    data = YAML(typ="safe", pure=True).load(mergekit_recipe(recipe, result, names))
    assert data["models"][0] == {"model": "base"}
    for place, model in enumerate(data["models"][1:]):
        for name in names:
            block = block_of(name)
            position = 0.0
            if block is not None:
                position = int(block.rpartition(".")[2]) / (layers - 1) if layers > 1 else 1.0
            said = resolve_first([WEIGHTS[place], SHARED], name, position, 1.0)
            expected = said * result.scale_of(layer_of(name))[place]
            read = resolve(model["parameters"]["weight"], name, position, 9.0)
            assert read == pytest.approx(expected, rel=1e-12, abs=1e-15)


def exported(recipe: Recipe, **stored: Any) -> dict[str, Any]:
    result = sensmerge.coefficients(measured(2), recipe)
    names = [f"model.layers.{i}.w" for i in range(4)]
    data = YAML(typ="safe", pure=True).load(mergekit_recipe(recipe, result, names, **stored))
    assert isinstance(data, dict)
    return data


def test_mergekit_computes_in_float32_and_rounds_once() -> None:
    cases: list[tuple[dict[str, Any], list[str], tuple[str, str | None]]] = [
        ({"dtype": "bfloat16"}, ["F16"], ("float32", "bfloat16")),
        ({"dtype": "float32", "out_dtype": "float16"}, ["F32"], ("float32", "float16")),
        ({}, ["BF16"], ("float32", "bfloat16")),
        ({}, ["F64"], ("float64", "float64")),
        ({}, ["BF16", "F32"], ("float32", None)),
    ]
    for keys, stored, expected in cases:
        data = exported(recipe_of(**keys), stored=stored)
        assert (data["dtype"], data.get("out_dtype")) == expected


def test_only_mergekits_keys_are_written() -> None:
    recipe = recipe_of(
        models=[{"model": "e0", "calibration": "a.jsonl"}, {"model": "e1"}],
        parameters={"density": 0.3, "ties_density": 0.5, "weight": 2, "lambda": 0.7},
        semantics="mergekit",
        seed=3,
    )
    data = exported(recipe)
    assert set(data) == {"merge_method", "base_model", "models", "parameters", "dtype"}
    assert data["parameters"] == {"density": 0.3, "lambda": 0.7}
    assert all(set(model) <= {"model", "parameters"} for model in data["models"])


def test_the_base_of_linear_is_not_merged_by_mergekit_either() -> None:
    data = exported(recipe_of(merge_method="linear", tokenizer_source="base", base_model="b"))
    assert "base_model" not in data
    assert [model["model"] for model in data["models"]] == ["e0", "e1"]
    assert data["tokenizer_source"] == "b"


def test_local_models_are_named_by_whole_paths(tmp_path: Path) -> None:
    tensor_family(tmp_path, experts=2, dtype="bfloat16")
    recipe = recipe_of(tmp_path)
    result = sensmerge.coefficients(measured_on(tmp_path, "e0", "e1"), recipe)
    data = YAML(typ="safe", pure=True).load(as_mergekit(recipe, result))
    names = ["base", "e0", "e1"]
    assert [model["model"] for model in data["models"]] == [str(tmp_path / name) for name in names]
    assert data["base_model"] == str(tmp_path / "base")
    assert (data["dtype"], data["out_dtype"]) == ("float32", "bfloat16")


def test_layers_whose_names_are_part_of_others_are_told_apart() -> None:
    recipe = recipe_of(parameters={"weight": [{"filter": "norm", "value": 3}, {"value": 1}]})
    result = sensmerge.coefficients(measured(2), recipe)
    result = replace(result, layers=[f"layers.{i}" for i in range(4)])
    names = ["norm.weight", *(f"layers.{i}.norm.weight" for i in range(4))]
    written = YAML(typ="safe", pure=True).load(mergekit_recipe(recipe, result, names))
    for place, model in enumerate(written["models"][1:]):
        for name in names:
            factor = result.scale_of(layer_of(name))[place]
            found = resolve(model["parameters"]["weight"], name, 0.0, math.nan)
            assert found == pytest.approx(3 * factor), name


def test_mergekit_has_not_every_method() -> None:
    with pytest.raises(InputError, match="mergekit has no magmax"):
        exported(recipe_of(merge_method="magmax"))


def test_mergekit_has_no_original_ties() -> None:
    with pytest.raises(InputError, match="no original ties"):
        exported(recipe_of(semantics="original"))
