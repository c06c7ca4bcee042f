"""Methods that depend on angles, and passthrough, against their float64 references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sensmerge
from sensmerge import InputError, Recipe, reference

Array = NDArray[np.float64]

# Several chunks of rows, rows longer than a block, a vector, a scalar, three axes, and nothing.
SHAPES = {
    "model.layers.0.w": (700, 999),
    "model.layers.1.w": (40, 2500),
    "model.layers.1.conv": (4, 5, 6),
    "model.norm": (1500,),
    "model.alpha": (),
    "model.none": (0, 4),
}


def family(seed: int, models: list[str]) -> dict[str, dict[str, Any]]:
    """Models near the first one; some of their rows and one tensor are equal to its."""
    draw = np.random.default_rng(seed)
    base = {name: draw.standard_normal(shape) for name, shape in SHAPES.items()}
    found: dict[str, dict[str, Any]] = {}
    for place, model in enumerate(models):
        tensors = {name: value.copy() for name, value in base.items()}
        for name, value in tensors.items():
            if place:
                value += 0.3 * place * draw.standard_normal(value.shape)
                if value.ndim > 1:
                    value[: len(value) // 3] = base[name][: len(value) // 3]
        if place == 1:
            tensors["model.norm"] = base["model.norm"].copy()
        found[model] = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    return found


def merged(data: dict[str, Any], models: dict[str, dict[str, Any]]) -> dict[str, Array]:
    recipe = Recipe.from_dict(data)
    out = {name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES.items()}
    sensmerge.merge_into(out, recipe, models)
    return {name: tensor.astype(np.float64) for name, tensor in out.items()}


def close(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=2e-6, err_msg=name)


def wide(tensors: dict[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 1.4])
@pytest.mark.parametrize("listed", ["base", "unlisted", "last", "no base"])
def test_slerp(t: float, listed: str) -> None:
    models = family(1, ["base", "other"])
    names = {"base": ["base", "other"], "unlisted": ["other"], "last": ["other", "base"]}
    data: dict[str, Any] = {
        "merge_method": "slerp",
        "models": [{"model": name} for name in names.get(listed, ["base", "other"])],
        "parameters": {"t": t},
    }
    if listed != "no base":
        data["base_model"] = "base"
    base, other = wide(models["base"]), wide(models["other"])
    close(
        merged(data, models), {name: reference.slerp(base[name], other[name], t) for name in base}
    )


def test_slerp_by_filter_and_depth() -> None:
    models = family(2, ["base", "other"])
    t = [
        {"filter": "conv", "value": 0.9},
        {"filter": "layers", "value": [0.2, 0.6]},
        {"value": 0.5},
    ]
    data = {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [{"model": "other"}],
        "parameters": {"t": t},
    }
    wanted = dict.fromkeys(SHAPES, 0.5)
    wanted |= {"model.layers.0.w": 0.2, "model.layers.1.w": 0.6, "model.layers.1.conv": 0.9}
    base, other = wide(models["base"]), wide(models["other"])
    expected = {name: reference.slerp(base[name], other[name], wanted[name]) for name in base}
    close(merged(data, models), expected)


@pytest.mark.parametrize("with_base", [False, True], ids=["models", "task vectors"])
@pytest.mark.parametrize(
    ("flatten", "row_wise"), [(True, False), (False, False), (False, True)], ids=str
)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 0.9), (1.0, -1.0)], ids=str)
def test_nuslerp(
    with_base: bool, flatten: bool, row_wise: bool, weights: tuple[float, float]
) -> None:
    models = family(3, ["base", "one", "two"])
    data: dict[str, Any] = {
        "merge_method": "nuslerp",
        "models": [
            {"model": model, "parameters": {"weight": weight}}
            for model, weight in zip(["one", "two"], weights, strict=True)
        ],
        "parameters": {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise},
    }
    if with_base:
        data["base_model"] = "base"
    base, one, two = (wide(models[name]) for name in ("base", "one", "two"))
    expected = {
        name: reference.nuslerp(
            one[name],
            two[name],
            weights,
            base=base[name] if with_base else None,
            flatten=flatten,
            row_wise=row_wise,
        )
        for name in base
    }
    given_models = models if with_base else {name: models[name] for name in ("one", "two")}
    close(merged(data, given_models), expected)


@pytest.mark.parametrize("filter_wise", [False, True], ids=["by tensor", "by row"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock(filter_wise: bool, count: int) -> None:
    names = ["base", *(f"e{place}" for place in range(count))]
    models = family(4, names)
    data = {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": [{"model": name} for name in names],
        "parameters": {"filter_wise": filter_wise},
    }
    base = wide(models["base"])
    experts = [wide(models[name]) for name in names[1:]]
    expected = {
        name: reference.model_stock(
            base[name], [expert[name] for expert in experts], filter_wise=filter_wise
        )
        for name in base
    }
    close(merged(data, models), expected)


@pytest.mark.parametrize("with_base", [False, True], ids=["models", "task vectors"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0), (0.3, 0.9, 0.5), (1.0, -0.4), (2.0,)], ids=str
)
def test_multislerp(with_base: bool, normalize: bool, weights: tuple[float, ...]) -> None:
    names = [f"e{place}" for place in range(len(weights))]
    models = family(6, ["base", *names])
    data: dict[str, Any] = {
        "merge_method": "multislerp",
        "models": [
            {"model": model, "parameters": {"weight": weight}}
            for model, weight in zip(names, weights, strict=True)
        ],
        "parameters": {"normalize_weights": normalize},
    }
    if with_base:
        data["base_model"] = "base"
    base = wide(models["base"])
    experts = [wide(models[name]) for name in names]
    expected = {
        name: reference.multislerp(
            [expert[name] for expert in experts],
            weights,
            base=base[name] if with_base else None,
            normalize_weights=normalize,
        )
        for name in base
    }
    given_models = models if with_base else {name: models[name] for name in names}
    close(merged(data, given_models), expected)


def test_multislerp_is_a_sum_where_directions_cancel() -> None:
    base = np.array([1.0, 2.0, 3.0], np.float32)
    delta = np.array([0.5, -1.0, 0.25], np.float32)
    models = {
        "base": {"w": base}, "one": {"w": base + delta}, "two": {"w": base - 2 * delta},
        "same": {"w": base},
    }  # fmt: skip
    for names, expected in (
        # Opposite directions, and none at all.
        (["one", "two"], base - 0.5 * delta),
        (["same", "same2", "same3"], base),
    ):
        given_models = {**models, "same2": models["same"], "same3": models["same"]}
        data = {
            "merge_method": "multislerp",
            "base_model": "base",
            "models": [{"model": name} for name in names],
        }
        out = {"w": np.empty(3, np.float32)}
        sensmerge.merge_into(
            out, Recipe.from_dict(data), {name: given_models[name] for name in ["base", *names]}
        )
        np.testing.assert_allclose(out["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"max_iter": 1}, {"max_iter": 0}, {"tol": 0.1}], ids=str)
@pytest.mark.parametrize("listed", ["base listed", "base unlisted", "no base", "one model"])
def test_karcher(options: dict[str, float], listed: str) -> None:
    names = ["one", "two", "three"][: 1 if listed == "one model" else 3]
    models = family(7, ["base", *names])
    draw = np.random.default_rng(8)
    for model in models.values():
        # Far apart, so that the first step is not the last.
        model["model.layers.1.conv"] = np.asarray(draw.standard_normal((4, 5, 6)), np.float32)
    models["two" if len(names) > 1 else "one"]["model.norm"][:] = 0.0
    with_base = listed.startswith("base")
    data: dict[str, Any] = {
        "merge_method": "karcher",
        "models": [
            {"model": name} for name in [*names, *(["base"] if listed == "base listed" else [])]
        ],
        "parameters": options,
    }
    if with_base:
        data["base_model"] = "base"
    merged_models = ["base", *names] if with_base else names
    arrays = [wide(models[name]) for name in merged_models]
    said: dict[str, Any] = options | {key: int(options[key]) for key in options if key != "tol"}
    expected = {
        name: reference.karcher([array[name] for array in arrays], **said) for name in SHAPES
    }
    close(merged(data, {name: models[name] for name in merged_models}), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.floats(0.05, 1.5), st.integers(0, 2**32 - 1))
def test_the_karcher_mean_is_where_its_gradient_is_0(count: int, spread: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    center = draw.standard_normal(12)
    points = [center + spread * draw.standard_normal(12) for _ in range(count)]
    models = {
        f"m{place}": {"w": np.asarray(point / np.linalg.norm(point), np.float32)}
        for place, point in enumerate(points)
    }
    data = {
        "merge_method": "karcher",
        "models": [{"model": name} for name in models],
        "parameters": {"max_iter": 500, "tol": 1e-7},
    }
    out = {"w": np.empty(12, np.float32)}
    sensmerge.merge_into(out, Recipe.from_dict(data), models)
    mean = out["w"].astype(np.float64)
    assert np.linalg.norm(mean) == pytest.approx(1, abs=1e-5)
    units = [model["w"].astype(np.float64) for model in models.values()]
    if min(unit @ mean for unit in units) < 0:
        return  # Beyond a half of the sphere the mean need not be unique.
    gradient = np.zeros(12)
    for unit in units:
        angle = np.arccos(np.clip(unit @ mean, -1, 1))
        if angle > 1e-6:
            gradient += angle / np.sin(angle) * (unit - (unit @ mean) * mean)
    assert np.linalg.norm(gradient) < 1e-4


@pytest.mark.parametrize("scale", [None, 0, 0.5, [{"filter": "w", "value": 3}]], ids=str)
def test_passthrough(scale: Any) -> None:
    models = family(5, ["only"])
    parameters = {} if scale is None else {"parameters": {"scale": scale}}
    data = {"merge_method": "passthrough", "models": [{"model": "only"} | parameters]}
    only = wide(models["only"])
    of = dict.fromkeys(SHAPES, 1.0 if scale is None else scale)
    if isinstance(scale, list):
        of = {name: 3.0 if "w" in name else 1.0 for name in SHAPES}
    expected = {name: reference.passthrough(only[name], of[name]) for name in only}
    found = merged(data, models)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32), err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_the_arc_keeps_lengths(t: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = (draw.standard_normal((5, 8)) for _ in range(2))
    models = {
        name: {"w": np.asarray(value / np.linalg.norm(value), np.float32)}
        for name, value in (("a", one), ("b", other))
    }
    data = {
        "merge_method": "slerp",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": t},
    }
    out = {"w": np.empty((5, 8), np.float32)}
    sensmerge.merge_into(out, Recipe.from_dict(data), models)
    assert np.linalg.norm(out["w"]) == pytest.approx(1, abs=1e-5)
    assert np.vdot(out["w"], models["a"]["w"]) == pytest.approx(
        np.cos(t * np.arccos(np.vdot(models["a"]["w"], models["b"]["w"]))), abs=1e-5
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"merge_method": "slerp", "models": [{"model": "a"}]}, "exactly 2"),
        ({"merge_method": "slerp", "models": [{"model": m} for m in "ab"]}, "parameters.t"),
        (
            {"merge_method": "model_stock", "base_model": "b", "models": [{"model": "a"}]},
            "at least 2",
        ),
        ({"merge_method": "passthrough", "models": [{"model": m} for m in "ab"]}, "exactly 1"),
        (
            {
                "merge_method": "model_stock",
                "base_model": "c",
                "models": [{"model": m} for m in "ab"],
                "sensitivity": {},
            },
            "sensitivity",
        ),
    ],
    ids=["one model", "no t", "one expert", "two models", "coefficients"],
)
def test_what_a_method_cannot_use_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        Recipe.from_dict(data)
    assert said in str(refused.value)
