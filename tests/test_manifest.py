"""Every output tensor has the numbers that the recipe gives it, whatever the tensors are called."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensmerge import Calibration, InputError, Recipe, _core, workflow
from sensmerge.calibration.record import Expert, TaskRecord
from sensmerge.files import write_atomically
from sensmerge.merging.manifest import request
from sensmerge.merging.memory import merge_tensors
from sensmerge.models.layers import block_of, blocks, layer_of
from sensmerge.models.opened import Models, open_models
from sensmerge.recipe import to_yaml
from sensmerge.scaling.sigma import coefficients
from sensmerge.search.groups import Weights, with_weights

MODELS = ["base", "one", "two"]


def opened(recipe: Recipe, names: list[str]) -> Models:
    """The recipe's models, in memory, with these tensors."""
    checkpoints = {
        model: _core.Checkpoint.from_memory(
            model, [(name, "F32", [1], np.full(4, place + 1, np.uint8)) for name in names]
        )
        for place, model in enumerate(MODELS)
    }
    return open_models(recipe, checkpoints)


def planned(manifest: _core.Manifest) -> dict[str, dict[str, Any]]:
    """The numbers of every tensor, as the manifest has them."""
    data = json.loads(manifest.to_json())
    return {tensor["name"]: tensor["content"]["merge"]["numbers"] for tensor in data["tensors"]}


def recipe_of(weights: list[Any], shared: Any = None, **keys: Any) -> Recipe:
    data: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            {"model": model} | ({} if weight is None else {"parameters": {"weight": weight}})
            for model, weight in zip(MODELS[1:], weights, strict=True)
        ],
    }
    if shared is not None:
        data["parameters"] = {"weight": shared}
    return Recipe.from_dict(data | keys)


def naive(settings_: list[Any], name: str, position: float) -> float:
    """A setting's number for one tensor, read as the documentation says it."""
    for setting in settings_:
        conditions = setting if isinstance(setting, list) else [setting]
        if conditions and not isinstance(conditions[0], dict):
            conditions = [{"value": setting}]
        for condition in conditions:
            value = condition["value"]
            if value is None or (
                condition.get("filter", "*") not in ("*", name)
                and (condition["filter"] not in name)
            ):
                continue
            if not isinstance(value, list):
                return float(value)
            at = position * (len(value) - 1)
            below = math.floor(at)
            above = min(below + 1, len(value) - 1)
            return float((1 - (at - below)) * value[below] + (at - below) * value[above])
    return 1.0


def test_weights_by_filter_reach_the_layers_that_they_name() -> None:
    # "model.alpha" lies beside the blocks: a rule that looks for the nearest ancestor's number
    # would give it to the blocks too.
    names = [f"model.layers.{block}.mlp.w.weight" for block in range(4)] + ["model.alpha"]
    conditions = [
        {"filter": "alpha", "value": 0.5},
        {"filter": "layers.0.", "value": 1.1},
        {"filter": "layers.1.", "value": 1.1},
        {"filter": "layers.2.", "value": 0.7},
        {"value": 0.9},
    ]
    recipe = recipe_of([conditions, None])
    models = opened(recipe, names)
    found = planned(request(recipe, None, models).manifest())
    weights = {name: numbers["weight"] for name, numbers in found.items()}
    assert weights == {
        "model.layers.0.mlp.w.weight": [1.1, 1.0],
        "model.layers.1.mlp.w.weight": [1.1, 1.0],
        "model.layers.2.mlp.w.weight": [0.7, 1.0],
        "model.layers.3.mlp.w.weight": [0.9, 1.0],
        "model.alpha": [0.5, 1.0],
    }


PARTS = ["model", "layers", "norm", "alpha", "w", "mlp", "visual", "blocks", "attn", "weight"]
NUMBER = st.floats(-2, 2).map(lambda number: round(number, 3))


@st.composite
def trees(draw: st.DrawFn) -> list[str]:
    """Names of tensors, some of them nested below others, in numbered blocks and outside."""
    part = st.sampled_from(PARTS) | st.integers(0, 11).map(str)
    paths = draw(st.lists(st.lists(part, min_size=1, max_size=5), min_size=1, max_size=14))
    nested = [[*path, draw(part)] for path in paths if draw(st.booleans())]
    return sorted({".".join(path) for path in [*paths, *nested]})


@st.composite
def said(draw: st.DrawFn, names: list[str]) -> Any:
    """A setting: a number, a gradient, or conditions on parts of names."""
    plain = NUMBER | st.lists(NUMBER, min_size=1, max_size=4)
    parts = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.integers(0, len(name) - 1), st.integers(1, 12)).map(
            lambda cut: name[cut[0] : cut[0] + cut[1]]
        )
    )
    condition = st.builds(lambda part, value: {"filter": part, "value": value}, parts, plain)
    last = st.builds(lambda value: {"value": value}, plain)
    conditions = st.builds(
        lambda several, end: [*several, *end],
        st.lists(condition, min_size=1, max_size=4),
        st.lists(last, max_size=1),
    )
    return draw(st.none() | plain | conditions)


def calibration_for(models: Models, names: list[str], outside: str) -> Calibration:
    """Made-up measurements of the experts, for every layer."""
    inner = blocks(names)
    outer = sorted({layer_of(name) for name in names if block_of(name) is None})
    draw = np.random.default_rng(len(names))
    task = TaskRecord("t", 1, [0], 1, 0, 1, "sha256:0", 512)
    return Calibration(
        base="base",
        experts=[
            Expert(model.name, model.checkpoint.fingerprint(), 1, 1.0, task)
            for model in models.experts
        ],
        layers=inner,
        sensitivity=draw.random((2, len(inner))) + 0.2,
        outside_layers=outer,
        outside_sensitivity=draw.random((2, len(outer))) + 0.2,
        order=[*inner, *outer],
        alignment=np.array([[0.0, 1.0], [2.0, 0.0]]),
        options={},
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), trees(), st.sampled_from([None, "uniform", "cross", "own"]))
def test_planned_numbers_are_those_resolved_tensor_by_tensor(
    data: st.DataObject, names: list[str], outside: str | None
) -> None:
    own = [data.draw(said(names)), data.draw(said(names))]
    shared = data.draw(said(names))
    sensitivity = {} if outside is None else {"sensitivity": {"outside_blocks": outside}}
    recipe = recipe_of(own, shared, **sensitivity)
    models = opened(recipe, names)
    found = None
    if outside is not None and blocks(names):
        measured = calibration_for(models, names, outside)
        found = coefficients(measured, recipe)
    asked = request(recipe, found, models)

    depth = {block: place for place, block in enumerate(blocks(names))}
    expected = {}
    for name in names:
        block = block_of(name)
        last = len(depth) - 1
        position = 0.0 if block is None else depth[block] / last if last > 0 else 1.0
        scale = [1.0, 1.0] if found is None else found.scale_of(layer_of(name))
        expected[name] = [
            naive([setting, shared], name, position) * float(factor)
            for setting, factor in zip(own, scale, strict=True)
        ]
    weights = {name: numbers["weight"] for name, numbers in planned(asked.manifest()).items()}
    assert weights.keys() == expected.keys()
    for name, numbers in expected.items():
        assert weights[name] == pytest.approx(numbers, abs=1e-12), name


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), trees(), st.sampled_from(["global", "block", "tensor"]))
def test_learned_weights_come_back_from_their_recipe(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list[str], groups: str
) -> None:
    recipe = recipe_of([data.draw(said(names)), None])
    models = opened(recipe, names)
    weights = Weights(request(recipe, None, models), groups)
    offsets = np.array(
        [[data.draw(NUMBER) for _ in weights.groups] for _ in range(len(MODELS) - 1)]
    )
    asked = weights.asked(offsets)
    written = with_weights(recipe, weights.by_tensor(offsets), recipe.folder)
    path = tmp_path_factory.mktemp("learned") / "learned.yaml"
    write_atomically(path, to_yaml(written))
    again = request(Recipe.load(path), None, models)
    assert planned(again.manifest()) == planned(asked.manifest())


def test_a_parameter_that_no_filter_gives_is_refused_by_the_tensor() -> None:
    recipe = Recipe.from_dict(
        {
            "merge_method": "slerp",
            "base_model": "base",
            "models": [{"model": "one"}],
            "parameters": {"t": [{"filter": "mlp", "value": 0.3}]},
        }
    )
    checkpoints = {
        model: _core.Checkpoint.from_memory(
            model, [(name, "F32", [1], np.ones(4, np.uint8)) for name in ("mlp.w", "norm.w")]
        )
        for model in ("base", "one")
    }
    with pytest.raises(InputError, match=r"parameters\.t: is not given for tensor 'norm\.w'"):
        request(recipe, None, open_models(recipe, checkpoints))


def test_a_plan_is_carried_out_by_another_process(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    draw = np.random.default_rng(3)
    for model in MODELS:
        (tmp_path / model).mkdir()
        tensors = {
            name: draw.standard_normal(shape, dtype=np.float32)
            for name, shape in (("model.layers.0.w", (40, 70)), ("lm_head.weight", (9, 7)))
        }
        save_file(tensors, tmp_path / model / "model.safetensors")
    data = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": model, "parameters": {"density": 0.4}} for model in MODELS[1:]],
    }
    recipe = Recipe.from_dict(data, folder=tmp_path)
    plan = workflow.plan(recipe)
    text = plan.to_json()
    manifest = _core.Manifest.from_json(text)
    assert json.loads(manifest.to_json()) == json.loads(text)
    _core.merge(manifest, str(tmp_path / "out"), 5_000_000_000)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    expected = merge_tensors(recipe)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(merged[name], np.asarray(tensor))

    changed = load_file(tmp_path / "one" / "model.safetensors")
    changed["lm_head.weight"] = changed["lm_head.weight"] + 1
    save_file(changed, tmp_path / "one" / "model.safetensors")
    with pytest.raises(InputError, match=r"one: has changed since the manifest was made"):
        _core.merge(manifest, str(tmp_path / "again"), 5_000_000_000)
    assert not (tmp_path / "again").exists()
