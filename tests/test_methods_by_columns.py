"""WIDEN against its float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensmerge import InputError, reference
from test_methods_by_choice import WEIGHTS, merged
from test_methods_by_entries import EXCEPTIONS, Models, compare, family, wide

Array = NDArray[np.float64]
EMBEDDING = "model.embed_tokens.weight"


def expected(
    models: Models, weights: list[float] | None = None, **options: Any
) -> dict[str, Array]:
    base, *experts = map(wide, models.values())
    # Experts as the core sees them: their differences are rounded once.
    seen = [
        {name: base[name] + (e[name] - base[name]).astype(np.float32) for name in base}
        for e in experts
    ]
    return {
        name: reference.widen(
            base[name],
            [e[name] for e in seen],
            weights or [1.0] * len(seen),
            embedding=name == EMBEDDING,
            **options,
        )
        for name in base
    }


def with_embedding(models: Models, shape: tuple[int, int] = (900, 30)) -> Models:
    """The same with an input embedding, and with a head, which is not one, of the same entries."""
    draw = np.random.default_rng(8)
    base = np.asarray(draw.standard_normal(shape), np.float32)
    for name, tensors in models.items():
        change = 0 if name == "base" else 0.05 * draw.standard_normal(shape)
        tensors[EMBEDDING] = np.asarray(base + change, np.float32)
        tensors["lm_head.weight"] = tensors[EMBEDDING]
    return models


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("ratio", [None, 0, 0.5, 1.7])
def test_widen(count: int, weighted: bool, ratio: float | None) -> None:
    models = with_embedding(family(1, count, steps=False))
    options: dict[str, Any] = {} if ratio is None else {"above_average_value_ratio": ratio}
    options |= {} if ratio is None else {"score_calibration_value": 0.8}
    weights = WEIGHTS[:count] if weighted else None
    found = merged("widen", models, weights, lambda_=0.9, **options)
    compare(found, expected(models, weights, **options, lambda_=0.9), EXCEPTIONS)
    # An embedding is scored by tokens, a head by columns.
    if count > 1:
        assert (found[EMBEDDING] != found["lm_head.weight"]).mean() > 0.1


def test_columns_of_many_chunks() -> None:
    """Sums over rows are those of chunks, of which this has seven: an odd number."""
    draw = np.random.default_rng(2)
    models: Models = {
        name: {"w": np.asarray(draw.standard_normal((1600, 1100)), np.float32)}
        for name in ("base", "e0", "e1")
    }
    compare(merged("widen", models), expected(models), EXCEPTIONS)


def test_a_stack_is_scored_matrix_by_matrix() -> None:
    draw = np.random.default_rng(3)
    models: Models = {
        name: {"w": np.asarray(draw.standard_normal((5, 400, 300)), np.float32)}
        for name in ("base", "e0", "e1")
    }
    found = merged("widen", models)
    compare(found, expected(models), EXCEPTIONS)
    one: Models = {name: {"w": each["w"][3]} for name, each in models.items()}
    np.testing.assert_array_equal(found["w"][3], merged("widen", one)["w"])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1),
    st.floats(0, 2), st.floats(0, 2), st.booleans(),
)  # fmt: skip
def test_any_matrix(
    count: int, rows: int, columns: int, seed: int, ratio: float, calibrated: float, token: bool
) -> None:
    """Some columns are zeros in the base, some in an expert, and some did not change."""
    draw = np.random.default_rng(seed)
    name = EMBEDDING if token else "w"
    base = draw.standard_normal((rows, columns)) * (draw.random(columns) < 0.8)
    models: Models = {"base": {name: np.asarray(base, np.float32), "one": np.ones(1, np.float32)}}
    for place in range(count):
        changed = draw.standard_normal((rows, columns)) * (draw.random(columns) < 0.8)
        expert = np.where(draw.random(columns) < 0.8, models["base"][name] + changed, 0.0)
        models[f"e{place}"] = {
            name: np.asarray(expert, np.float32), "one": np.full(1, 2, np.float32),
        }  # fmt: skip
    said: dict[str, Any] = {
        "above_average_value_ratio": ratio,
        "score_calibration_value": calibrated,
    }
    found = merged("widen", models, **said)
    wanted = expected(models, **said)
    for each, value in wanted.items():
        # Changes of columns that are equal but for rounding may change places.
        apart = np.abs(found[each] - value) > 1e-5 * (1 + np.abs(value))
        vectors = apart.any(axis=1 if token else 0) if value.ndim > 1 else apart
        assert vectors.sum() <= (2 if rows == 1 or columns == 1 else 0), (each, ratio)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equal_experts_share(count: int) -> None:
    """Nothing is above a large ratio, so that the scores of equal experts are 1 / K each."""
    models = family(4, 1, steps=False)
    models |= {f"e{place}": models["e0"] for place in range(1, count)}
    found = merged("widen", models, above_average_value_ratio=1e9)
    compare(found, wide(models["e0"]), 0)
    # By default about half of the columns count in full.
    found = merged("widen", models)
    base, expert = wide(models["base"]), wide(models["e0"])
    name = "model.layers.0.w"
    change = (found[name] - base[name]) / np.where(expert[name] == base[name], np.nan, 1)
    scores = np.nanmedian(change / (expert[name] - base[name]), axis=0)
    assert scores.min() > 1 - 1e-4
    assert scores.max() < count + 1e-4
    if count > 1:
        assert 0.2 < (scores > count - 0.1).mean() < 0.6


def test_nan_is_not_hidden() -> None:
    for name in ("model.norm", "model.layers.0.w"):
        models = family(5, 2)
        models["e1"][name].flat[7] = np.nan
        with pytest.raises(InputError, match=rf"'{name}'.*NaN"):
            merged("widen", models)
