from __future__ import annotations

from typing import Any

import pytest

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
