"""`sensmerge explain`: a recipe in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from families import Family
from sensmerge import Recipe
from sensmerge.merging.explained import explain
from sensmerge.recipe import methods
from test_bad_input import run

Said = pytest.CaptureFixture[str]


def explained(folder: Path = Path(), **keys: Any) -> list[str]:
    data = {"merge_method": "ties", "base_model": "b", "models": [{"model": "x"}]} | keys
    return [
        line.strip() for line in explain(Recipe.from_dict(data, folder)).describe().splitlines()
    ]


def test_where_every_value_comes_from() -> None:
    models: list[dict[str, Any]] = [
        {"model": "x", "parameters": {"weight": [0, 0.5], "density": 0.25}},
        {"model": "y", "parameters": {"weight": [{"filter": "mlp", "value": 0.5}]}},
        {"model": "z", "parameters": {"weight": [{"filter": "mlp", "value": 2}, {"value": 3}]}},
    ]
    lines = explained(models=models, parameters={"weight": 1, "normalize": False}, dtype="float16")
    assert (
        "weight of x: 0, 0.5 from the first layer to the last (from the parameters of x)" in lines
    )
    assert (
        "weight of y: 0.5 where a name has 'mlp' (from the parameters of y); elsewhere 1 (from "
        "parameters)"
    ) in lines
    assert (
        "weight of z: 2 where a name has 'mlp', 3 otherwise (from the parameters of z)"
    ) in lines
    assert "density of x: 0.25 (from the parameters of x)" in lines
    assert "density of y: 1 (the default)" in lines
    assert "normalize: false (from parameters)" in lines
    assert "lambda: 1 (the default)" in lines
    assert "dtype: float16 (from dtype); computed in float32, or float64 where an input is" in lines


def test_a_method_that_mergekit_lacks() -> None:
    lines = explained(merge_method="magmax")
    assert lines[0].startswith("MagMax (Marczak et al. 2024), as published")
    assert "there is no magmax, so that such a recipe is refused" in lines


def test_slices() -> None:
    slices = [
        {
            "sources": [
                {"model": "b", "layer_range": [0, 2]},
                {"model": "x", "layer_range": [0, 2]},
            ],
            "parameters": {"lambda": 2, "density": 0.5},
        },
        {
            "sources": [
                {"model": "b", "layer_range": [2, 3]},
                {"model": "y", "layer_range": [1, 2]},
            ]
        },
    ]
    data = {"merge_method": "ties", "base_model": "b", "slices": slices}
    lines = explain(Recipe.from_dict(data)).describe().splitlines()
    lines = [line.strip() for line in lines]
    assert "slices[0]: layers 0 to 1 of b, layers 0 to 1 of x" in lines
    assert "slices[1]: layers 2 to 2 of b, layers 1 to 1 of y" in lines
    assert "lambda: 2 (from the slice's parameters)" in lines
    assert "lambda: 1 (the default)" in lines
    assert "density: 0.5 (from the slice's parameters), for every model" in lines


@pytest.mark.parametrize(
    ("keys", "said", "others"),
    [
        ({}, "most methods there compute in the dtype of the inputs", {"dtype": "float32"}),
        ({"dtype": "bfloat16"}, "there compute in bfloat16", {"dtype": "float32"}),
        ({"merge_method": "dare_ties"}, "what is drawn at random depends on seed", {}),
        ({"semantics": "original"}, "semantics: original: there, ties is always mergekit's", {}),
        ({"sensitivity": {}}, "weights from data are not known there",
         {"sensitivity": {"mode": "off"}}),
        ({"parameters": {"lambda": "auto"}}, "parameters.lambda: there, numbers are needed", {}),
        ({}, "weight of x is the default; there, it has", {"parameters": {"weight": 1}}),
        ({"models": [{"model": "x"}] * 2}, "listed twice, which is refused there", {}),
        ({"merge_method": "linear"}, "base_model is not merged, since it is not listed",
         {"merge_method": "linear", "models": [{"model": "b"}, {"model": "x"}]}),
    ],
)  # fmt: skip
def test_what_is_different_from_mergekit(
    keys: dict[str, Any], said: str, others: dict[str, Any]
) -> None:
    assert any(said in line for line in explained(**keys))
    assert not any(said in line for line in explained(**others))


@pytest.mark.parametrize("method", methods.names())
def test_every_method_is_explained(method: str) -> None:
    found = methods.find(method)
    assert found is not None
    count = max(1, found.least - (found.base == "merged"))
    data = {
        "merge_method": method,
        "base_model": "b",
        "models": [{"model": f"m{place}"} for place in range(count)],
        "parameters": {each.name: 0.5 for each in found.parameters if each.kind == "number"
                       and each.default is None},
    }  # fmt: skip
    text = explain(Recipe.from_dict(data)).describe()
    assert found.summary in text
    for parameter in found.parameters:
        assert f"  {parameter.name}" in text


def test_models_are_named_whether_they_are_here_or_not(family: Family) -> None:
    models = [{"model": "e0", "calibration": "t0.jsonl"}, {"model": "org/x"}, {"model": "y"}]
    lines = explained(family.folder, base_model="base", models=models, sensitivity={})
    assert any(line.startswith("base    base: LlamaForCausalLM, in a folder; ") for line in lines)
    assert "merged  e0: LlamaForCausalLM, in a folder; samples in t0.jsonl" in lines
    assert "merged  org/x: not here; looked for on the Hub" in lines
    assert "merged  y: not here" in lines
    assert any(line.startswith("sensitivity: 10 samples of each expert are run") for line in lines)


def test_the_command(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: first\nmerge_method: linear\nmodels: [{model: x}, {model: y}]\n---\n"
        "merge_method: ties\nbase_model: x\nmodels: [{model: first}]\nodd: 1\n"
    )
    assert run("explain", str(path)) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 stages, merged in this order: first, then the result\n")
    assert "merged  first: an earlier stage" in said
    assert "note: odd: unknown key, not used" in said
    assert run("explain", str(path), "--strict") == 2
    assert "document 2: odd: unknown key" in capsys.readouterr().err
