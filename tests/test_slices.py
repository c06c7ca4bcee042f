"""Slices: ranges of layers of several models, stacked or merged, against the tensors by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sensmerge
from families import llama_family
from sensmerge import InputError, Recipe, workflow

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, e0, e1, e2 of four layers, in float32."""
    folder = tmp_path_factory.mktemp("sliced")
    llama_family(folder, dtype="float32", layers=4)
    return folder


def source(model: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    given = {"parameters": parameters} if parameters else {}
    return {"model": model, "layer_range": [first, end], **given}


def loaded(folder: Path) -> Tensors:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def merged(family: Path, out: Path, **keys: Any) -> tuple[Tensors, dict[str, Any]]:
    recipe = Recipe.from_dict(keys, folder=family)
    sensmerge.merge(recipe, out, progress=False, sync=False)
    return loaded(out), json.loads((out / "config.json").read_text())


def moved(tensors: Tensors, old: int, new: int) -> Tensors:
    """One layer under another number."""
    prefix = f"model.layers.{old}."
    return {
        f"model.layers.{new}.{name.removeprefix(prefix)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def test_stacked_slices(family: Path, tmp_path: Path) -> None:
    found, config = merged(
        family,
        tmp_path / "out",
        merge_method="passthrough",
        slices=[{"sources": [source("e0", 0, 3)]}, {"sources": [source("e1", 1, 4)]}],
    )
    e0, e1 = loaded(family / "e0"), loaded(family / "e1")
    expected = {"model.embed_tokens.weight": e0["model.embed_tokens.weight"]}
    expected |= {name: e1[name] for name in ("model.norm.weight", "lm_head.weight")}
    for new, (model, old) in enumerate([(e0, 0), (e0, 1), (e0, 2), (e1, 1), (e1, 2), (e1, 3)]):
        expected |= moved(model, old, new)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert config["num_hidden_layers"] == 6
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(model.model.layers) == 6


def test_slices_are_merged_with_their_own_settings(family: Path, tmp_path: Path) -> None:
    # Different layers of two models; a gradient runs over the depth of a slice.
    found, _ = merged(
        family,
        tmp_path / "out",
        merge_method="task_arithmetic",
        base_model="base",
        slices=[
            {"sources": [source("base", 0, 1), source("e0", 0, 1, weight=2.0)]},
            {
                "sources": [
                    source("base", 1, 4),
                    source("e0", 0, 3, weight=0.5),
                    source("e1", 1, 4),
                ],
                "parameters": {"weight": [{"filter": "mlp", "value": [1.0, 3.0]}]},
            },
        ],
        parameters={"weight": 0.25},
    )
    base, e0, e1 = (loaded(family / name) for name in ("base", "e0", "e1"))
    first = moved(base, 0, 0)
    for name, tensor in first.items():
        expected = tensor + 2.0 * (e0[name] - tensor)
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)
    for new, gradient in ((1, 1.0), (2, 2.0), (3, 3.0)):
        for name, tensor in moved(base, new, new).items():
            weight = gradient if "mlp" in name else 0.25
            other = moved(e0, new - 1, new)[name]
            expected = tensor + 0.5 * (other - tensor) + weight * (e1[name] - tensor)
            torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)
    name = "lm_head.weight"
    expected = base[name] + 0.5 * (e0[name] - base[name]) + 0.25 * (e1[name] - base[name])
    torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)


def test_one_slice_of_whole_models_is_the_list_of_models(family: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"merge_method": "ties", "base_model": "base"}
    parameters = {"weight": [0.2, 0.9], "density": 0.5}
    listed, config = merged(
        family,
        tmp_path / "listed",
        **keys,
        models=[{"model": "e0"}, {"model": "e1"}],
        parameters=parameters,
    )
    sliced = [{"sources": [source("e0", 0, 4), source("e1", 0, 4)]}]
    models = {"models": [{"model": "e0"}, {"model": "e1"}], "parameters": parameters}
    spellings: list[dict[str, Any]] = [
        {"slices": sliced, "parameters": parameters},
        {"modules": {"default": {"slices": sliced}}, "parameters": parameters},
        {"modules": {"default": models}},
    ]
    for at, given in enumerate(spellings):
        found, same = merged(family, tmp_path / str(at), **keys, **given)
        assert set(found) == set(listed)
        assert all(torch.equal(found[name], listed[name]) for name in listed)
        assert same == config


def test_lists_by_layer_follow_the_layers(family: Path, tmp_path: Path) -> None:
    for name in ("e0", "e1"):
        shutil.copytree(family / name, tmp_path / name)
        path = tmp_path / name / "config.json"
        said = json.loads(path.read_text()) | {
            "layer_types": [f"{name}-{layer}" for layer in range(4)],
            "mlp_only_layers": [0, 3] if name == "e0" else [1],
        }
        path.write_text(json.dumps(said))
    _, config = merged(
        tmp_path,
        tmp_path / "out",
        merge_method="passthrough",
        slices=[{"sources": [source("e0", 2, 4)]}, {"sources": [source("e1", 0, 2)]}],
    )
    assert config["layer_types"] == ["e0-2", "e0-3", "e1-0", "e1-1"]
    assert config["mlp_only_layers"] == [1, 3]


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        (
            [{"sources": [source("e0", 2, 6)]}],
            "slices[0].sources[0].layer_range: e0 has 4 layers, and [2, 6] ends beyond them",
        ),
        (
            [{"sources": [source("e0", 2, 2)]}],
            "slices[0].sources[0].layer_range: [2, 2] has no layers; the second number is to be",
        ),
        (
            [{"sources": [{"model": "e0", "layer_range": "0-3"}]}],
            "slices[0].sources[0].layer_range: expected two whole numbers",
        ),
        (
            [{"sources": [source("e0", 0, 2), source("e1", 0, 3)]}],
            "slices[0].sources: its sources have 2 and 3 layers; all need the same number",
        ),
        (
            [{"sources": [source("e0", 0, 2), source("e0", 2, 4)]}],
            "slices[0].sources[1]: e0 is among the sources of this slice already",
        ),
        ([{"sources": [source("e0", 0, 2)], "sourcse": 1}], "slices[0].sourcse: unknown key"),
    ],
)
def test_slices_that_do_not_exist_are_refused(
    family: Path, slices: list[dict[str, Any]], said: str
) -> None:
    data = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1.0}}
    with pytest.raises(InputError) as refused:
        workflow.plan(Recipe.from_dict(data, folder=family))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"models": [{"model": "e1"}]}, "models: stands beside 'slices'; keep one of the two"),
        ({"sensitivity": {}}, "sensitivity: coefficients are measured for whole models"),
        ({"parameters": {"lambda": "auto"}}, "slices: auto searches for values of whole models"),
        ({"modules": {"vision_tower": {"slices": []}}}, "modules: expected a mapping of modules"),
    ],
)
def test_what_does_not_go_with_slices(keys: dict[str, Any], said: str) -> None:
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [{"sources": [source("base", 0, 4), source("e0", 0, 4, weight=1.0)]}],
    }
    with pytest.raises(InputError) as refused:
        Recipe.from_dict(data | keys)
    assert said in str(refused.value)


def test_a_base_that_is_not_listed_has_the_layers_of_the_others(
    family: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": "base"}
    same = [{"sources": [source("e0", 1, 3, weight=1.0), source("e1", 1, 3, weight=1.0)]}]
    found, _ = merged(family, tmp_path / "out", **keys, slices=same)
    base, e0, e1 = (loaded(family / name) for name in ("base", "e0", "e1"))
    for old in (1, 2):
        for name, tensor in moved(base, old, old - 1).items():
            expected = moved(e0, old, old - 1)[name] + moved(e1, old, old - 1)[name] - tensor
            torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6)
    different = [{"sources": [source("e0", 1, 3, weight=1.0), source("e1", 0, 2, weight=1.0)]}]
    with pytest.raises(InputError, match="unclear which layers of base"):
        merged(family, tmp_path / "other", **keys, slices=different)
