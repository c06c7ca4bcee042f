from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensmerge import Recipe
from sensmerge.recipe.numbers import numbers, resolve, resolve_first


def test_nothing_said_is_the_default() -> None:
    assert resolve(None, "a.weight", 0.5, 7.0) == 7.0


@pytest.mark.parametrize(
    ("position", "expected"), [(0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.5), (1, 0.0)]
)
def test_a_list_is_interpolated_over_the_depth(position: float, expected: float) -> None:
    assert resolve([0, 1, 0], "a", position, 9.0) == pytest.approx(expected)


def test_a_list_with_a_number_a_layer_is_hit_exactly() -> None:
    for layers in (2, 3, 22, 32, 80):
        values = [float(layer) for layer in range(layers)]
        for layer in range(layers):
            found = resolve(list(values), "a", layer / (layers - 1), 9.0)
            assert found == pytest.approx(layer, abs=1e-12)


def test_the_first_condition_that_matches_counts() -> None:
    setting: list[dict[str, Any]] = [
        {"filter": "mlp", "value": [0, 10]},
        {"filter": "embed", "value": 2},
        {"value": 3},
    ]
    assert resolve(setting, "layers.1.mlp.w", 0.5, 9.0) == 5.0
    assert resolve(setting, "embed.w", 0, 9.0) == 2.0
    assert resolve(setting, "norm.w", 0, 9.0) == 3.0
    assert resolve(setting[:2], "norm.w", 0, 9.0) == 9.0


def test_conditions_that_do_not_match_leave_the_word_to_the_next_setting() -> None:
    own: list[dict[str, Any]] = [{"filter": "mlp", "value": 0.5}]
    shared: list[dict[str, Any]] = [{"filter": "attn", "value": 2}]
    assert resolve_first([own, shared], "layers.0.mlp.w", 0, 9.0) == 0.5
    assert resolve_first([own, shared], "layers.0.attn.w", 0, 9.0) == 2.0
    assert resolve_first([own, shared], "norm.w", 0, 9.0) == 9.0
    assert resolve_first([None, 3], "norm.w", 0, 9.0) == 3.0


def test_every_number_is_seen() -> None:
    setting: list[dict[str, Any]] = [{"filter": "a", "value": [1, 2]}, {"value": 3}]
    assert list(numbers(setting)) == [1.0, 2.0, 3.0]
    assert list(numbers(None)) == []


TENSORS = {
    "model.embed_tokens.weight": 0.0,
    "model.layers.0.mlp.up_proj.weight": 0.0,
    "model.layers.0.self_attn.q_proj.weight": 0.0,
    "model.layers.1.mlp.up_proj.weight": 0.5,
    "model.layers.1.self_attn.q_proj.weight": 0.5,
    "model.layers.2.mlp.up_proj.weight": 1.0,
    "lm_head.weight": 0.0,
}
NUMBER = st.floats(0.01, 1).map(lambda number: round(number, 3))
# As YAML 1.1 has them: numbers, and numbers as text.
WRITTEN = NUMBER | NUMBER.map(str)
PLAIN = WRITTEN | st.lists(WRITTEN, min_size=1, max_size=4)
FILTER = st.sampled_from(["mlp", "self_attn", "layers.1.", "embed", "weight", "*", None, "nowhere"])
CONDITION = st.builds(
    lambda wanted, value, said: {"value": value} | ({"filter": wanted} if said else {}),
    FILTER,
    PLAIN,
    st.booleans(),
)
WHOLE = PLAIN | CONDITION | st.lists(CONDITION, min_size=1, max_size=3)
SILENT = st.just("silent")


def naively(said: list[Any], tensor: str, default: Any) -> float:
    """The number of a tensor, by a direct lookup."""
    for value in said:
        if value == "silent":
            continue
        conditions = [value] if isinstance(value, dict) else value
        if not (isinstance(conditions, list) and isinstance(conditions[0], dict)):
            return between(conditions, TENSORS[tensor])
        for condition in conditions:
            pattern = condition.get("filter") or "*"
            if pattern == "*" or tensor.find(pattern) >= 0:
                return between(condition["value"], TENSORS[tensor])
    return float(default)


def between(value: Any, position: float) -> float:
    """A value at a place in the depth of a model of three blocks, from a table of corners."""
    corners = [float(each) for each in (value if isinstance(value, list) else [value])]
    if len(corners) == 1:
        return corners[0]
    places = [corner / (len(corners) - 1) for corner in range(len(corners))]
    for left in range(len(corners) - 1):
        if places[left] <= position <= places[left + 1]:
            share = (position - places[left]) / (places[left + 1] - places[left])
            return corners[left] + share * (corners[left + 1] - corners[left])
    raise AssertionError(position)


@given(own=WHOLE | SILENT, shared=WHOLE | SILENT, scale=WHOLE | SILENT)
def test_every_tensor_gets_what_is_said_of_it(own: Any, shared: Any, scale: Any) -> None:
    for name in ("weight", "density"):
        parameters = {name: shared, "lambda": scale}
        model = {"model": "x", "parameters": {} if own == "silent" else {name: own}}
        data = {
            "merge_method": "ties",
            "base_model": "b",
            "models": [{"model": "b"}, model, {"model": "y"}],
            "parameters": {key: said for key, said in parameters.items() if said != "silent"},
        }
        recipe = Recipe.from_dict(data)
        for place, expert in enumerate(recipe.experts):
            said = [own, shared] if place == 0 else [shared]
            for tensor, position in TENSORS.items():
                default = recipe.default(name)
                found = resolve_first(recipe.settings(expert, name), tensor, position, default)
                assert found == pytest.approx(naively(said, tensor, default), rel=1e-12)
        for tensor, position in TENSORS.items():
            default = recipe.default("lambda")
            found = resolve(recipe.value("lambda"), tensor, position, default)
            assert found == pytest.approx(naively([scale], tensor, default), rel=1e-12)
