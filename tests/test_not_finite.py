"""Values out of range, NaN and infinity: refused by tensor, or harmful to no other value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sensmerge
from sensmerge import InputError, Recipe

Array = NDArray[np.floating[Any]]

NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (64, 96)
PLACE = (5, 7)
LARGEST = float(np.finfo(np.float32).max)


# Those that restore norms; of the last three, ranks decide too.
RESCALED = ["dare_linear", "dare_ties", "breadcrumbs", "della", "della_linear"]
RANKED = RESCALED[2:]


def recipe(method: str, weight: float = 0.5, **keys: Any) -> Recipe:
    experts = [{"model": name, "parameters": {"weight": weight}} for name in ("one", "two")]
    said: dict[str, Any] = {"merge_method": method, "models": experts, "parameters": {}}
    if method != "linear":
        said["base_model"] = "base"
    if method in RESCALED:
        said["parameters"] = {"density": 0.5}
    return Recipe.from_dict(said | keys)


def models(dtype: str = "float32") -> dict[str, dict[str, Array]]:
    draw = np.random.default_rng(3)
    base = draw.standard_normal(SHAPE)
    experts = [base + 0.01 * draw.standard_normal(SHAPE) for _ in range(2)]
    arrays = dict(zip(("base", "one", "two"), [base, *experts], strict=True))
    return {name: {NAME: array.astype(dtype)} for name, array in arrays.items()}


def merged(asked: Recipe, given: dict[str, dict[str, Array]], **options: Any) -> Array:
    if asked.base_model is None:
        given = {name: given[name] for name in ("one", "two")}
    found = sensmerge.merge_tensors(asked, given, **options)[NAME]
    return np.asarray(found)


OUT_OF_RANGE = [
    ("task_arithmetic", {"parameters": {"lambda": 1e308}}, 1.0, "float32", "overflows"),
    ("linear", {"parameters": {"normalize": False}}, LARGEST, "float32", "overflows"),
    ("linear", {"dtype": "float16"}, 1e5, "float32", "beyond float16's range"),
    ("linear", {"dtype": "float16"}, 1e5, "float64", "beyond float16's range"),
    ("linear", {"dtype": "float32"}, 1e300, "float64", "beyond float32's range"),
]


@pytest.mark.parametrize(("method", "keys", "value", "dtype", "said"), OUT_OF_RANGE)
def test_what_is_out_of_range_is_refused_by_tensor(
    method: str, keys: dict[str, Any], value: float, dtype: str, said: str
) -> None:
    given = models(dtype)
    for name in ("one", "two"):
        given[name][NAME][PLACE] = value
    asked = recipe(method, weight=1.0, **keys)
    with pytest.raises(InputError, match=said) as refused:
        merged(asked, given)
    assert NAME in str(refused.value)


def test_an_infinite_entry_hides_no_other_that_is_out_of_range() -> None:
    given = models()
    given["one"][NAME][PLACE] = 1e6
    given["one"][NAME][PLACE[0], PLACE[1] + 1] = np.inf
    with pytest.raises(InputError, match="beyond float16's range"):
        merged(recipe("linear", dtype="float16"), given)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", RESCALED)
def test_a_value_that_is_not_finite_is_refused_with_its_model_or_harms_no_other(
    method: str, value: float
) -> None:
    given, usual = models(), models()
    given["one"][NAME][PLACE] = value
    if np.isnan(value):
        with pytest.raises(InputError, match=f"one: tensor '{NAME}': holds NaN"):
            merged(recipe(method), given)
    found = merged(recipe(method), given, allow_nan=True)
    others = np.ones(SHAPE, bool)
    others[PLACE] = False
    assert np.isfinite(found[others]).all()
    # The norms that factors restore are those of the other entries.
    usual["one"][NAME][PLACE] = usual["base"][NAME][PLACE]
    expected = merged(recipe(method), usual)
    if method in RANKED:
        assert np.abs(found - expected)[others].max() < 0.05
    else:
        assert np.array_equal(found[others], expected[others])


def test_zeros_that_no_expert_changes_are_positive() -> None:
    """``-0 + 0`` is ``+0``: the merged task vector is added to the base."""
    given = models()
    for name in given:
        given[name][NAME][PLACE] = -0.0
    found = merged(recipe("task_arithmetic"), given)
    assert found[PLACE] == 0.0
    assert not np.signbit(found[PLACE])
