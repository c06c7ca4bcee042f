"""SCE, NearSwap, Arcee Fusion and RAM against their float64 references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sensmerge
from sensmerge import InputError, Recipe, reference

Array = NDArray[np.float64]
Models = dict[str, dict[str, Any]]

# A tensor of several chunks, one that is small enough to be read whole, rows longer than a block, a
# vector, three axes, tensors of few entries, and nothing.
SHAPES = {
    "model.layers.0.w": (700, 999),
    "model.layers.0.small": (64, 65),
    "model.layers.1.w": (40, 2500),
    "model.layers.1.conv": (4, 5, 6),
    "model.norm": (1500,),
    "model.three": (3,),
    "model.alpha": (),
    "model.none": (0, 4),
}

# Beside tensors that may be zero throughout: a model whose every tensor is, is refused.
ONE = np.ones(1, np.float32)

# Entries whose score lies on a threshold within rounding may go either way.
EXCEPTIONS = 1 / 2000


def family(seed: int, count: int, *, size: float = 0.05, steps: bool = True) -> Models:
    """A base and experts, each of which changed a half of the entries by up to ``size``.

    In eight steps, so that many are equal, or in any.
    """
    draw = np.random.default_rng(seed)
    base = {name: draw.standard_normal(shape) for name, shape in SHAPES.items()}
    found = {"base": {name: np.asarray(value, np.float32) for name, value in base.items()}}
    for place in range(count):
        tensors = {}
        for name, value in found["base"].items():
            change = draw.uniform(-8, 8, value.shape)
            change = np.round(change) if steps else change
            change = size / 8 * change * (draw.random(value.shape) < 0.5)
            tensors[name] = np.asarray(value + change, np.float32)
        found[f"e{place}"] = tensors
    return found


def merged(data: dict[str, Any], models: Models) -> dict[str, Array]:
    recipe = Recipe.from_dict(
        data | {"base_model": "base", "models": [{"model": name} for name in list(models)[1:]]}
    )
    out = {
        name: np.full(np.shape(value), np.nan, np.float32) for name, value in models["base"].items()
    }
    sensmerge.merge_into(out, recipe, models)
    return {name: tensor.astype(np.float64) for name, tensor in out.items()}


def wide(tensors: dict[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}


def compare(found: dict[str, Array], expected: dict[str, Array], exceptions: float) -> None:
    assert found.keys() == expected.keys()
    apart = total = 0
    for name, value in expected.items():
        apart += int((np.abs(found[name] - value) > 1e-6 * (1 + np.abs(value))).sum())
        total += value.size
    assert apart <= exceptions * total, f"{apart} of {total} entries"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("select_topk", [None, 1, 0.9, 0.3, 0.001, 0])
# Task vectors whose mean squares decide the weights, and smaller ones, whose weights are equal.
@pytest.mark.parametrize("size", [0.05, 0.0002])
def test_sce(count: int, select_topk: float | None, size: float) -> None:
    models = family(1, count, size=size, steps=False)
    options = {} if select_topk is None else {"select_topk": select_topk}
    base, *experts = map(wide, models.values())
    # Differences as the core computes them, so that equal variances are equal.
    deltas = [
        {name: (e[name] - base[name]).astype(np.float32).astype(np.float64) for name in base}
        for e in experts
    ]
    zero = {name: np.zeros_like(value) for name, value in base.items()}
    chosen = 1.0 if select_topk is None else select_topk
    expected = {
        name: base[name] + reference.sce(zero[name], [d[name] for d in deltas], select_topk=chosen)
        for name in base
    }
    found = merged({"merge_method": "sce", "parameters": options}, models)
    compare(found, expected, EXCEPTIONS)
    if chosen == 0 or (count == 1 and chosen < 1):
        # Nothing differs between the models, so that nothing is selected.
        compare(found, base, 0)


@pytest.mark.parametrize("t", [0, 1e-7, 0.02, 0.05, 1.0])
def test_nearswap(t: float) -> None:
    models = family(2, 1)
    base, other = map(wide, models.values())
    expected = {name: reference.nearswap(base[name], other[name], t) for name in base}
    compare(merged({"merge_method": "nearswap", "parameters": {"t": t}}, models), expected, 0)


def test_nearswap_by_depth() -> None:
    models = family(3, 1)
    t = [{"filter": "conv", "value": 1.0}, {"filter": "layers", "value": [0.0, 0.02]}, {"value": 0}]
    wanted = dict.fromkeys(SHAPES, 0.0)
    wanted |= {"model.layers.1.w": 0.02, "model.layers.1.conv": 1.0}
    base, other = map(wide, models.values())
    expected = {name: reference.nearswap(base[name], other[name], wanted[name]) for name in base}
    compare(merged({"merge_method": "nearswap", "parameters": {"t": t}}, models), expected, 0)


@pytest.mark.parametrize("size", [0.05, 0.5])
def test_arcee_fusion(size: float) -> None:
    models = family(4, 1, size=size)
    base, other = map(wide, models.values())
    expected = {name: reference.arcee_fusion(base[name], other[name]) for name in base}
    found = merged({"merge_method": "arcee_fusion"}, models)
    compare(found, expected, EXCEPTIONS)
    taken = found["model.layers.0.w"] != base["model.layers.0.w"]
    assert 0.01 < taken.mean() < 0.5


def test_arcee_fusion_takes_all_where_nothing_is_more_important() -> None:
    # Rows of one entry: softmax is 1, nothing diverges, and every importance is 0.
    base = np.arange(6, dtype=np.float32).reshape(6, 1)
    models: Models = {"base": {"w": base}, "e0": {"w": base + np.float32(1)}}
    np.testing.assert_array_equal(merged({"merge_method": "arcee_fusion"}, models)["w"], base + 1)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [None, 0.02, 0])
def test_ram(method: str, count: int, epsilon: float | None) -> None:
    models = family(5, count)
    options: dict[str, Any] = {} if epsilon is None else {"epsilon": epsilon}
    strengthen = None
    if method == "ramplus_tl":
        options |= {"r": 0.3, "alpha": 0.9}
        strengthen = (0.3, 0.9)
    base, *experts = map(wide, models.values())
    expected = {
        name: reference.ram(
            base[name],
            [expert[name] for expert in experts],
            epsilon=1e-5 if epsilon is None else epsilon,
            strengthen=strengthen,
        )
        for name in base
    }
    compare(merged({"merge_method": method, "parameters": options}, models), expected, 0)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 400), st.floats(0, 1), st.integers(1, 4), st.integers(0, 2**32 - 1),
    st.booleans(),
)  # fmt: skip
def test_sce_selects_exactly_as_many_as_it_should(
    size: int, share: float, count: int, seed: int, few: bool
) -> None:
    """Of small whole numbers, many of which are equal or 0."""
    draw = np.random.default_rng(seed)
    bound = 2 if few else 9
    deltas = draw.integers(-bound, bound, (count, size)).astype(np.float64)
    models: Models = {"base": {"w": np.zeros(size, np.float32), "one": ONE}}
    models |= {
        f"e{i}": {"w": delta.astype(np.float32), "one": ONE} for i, delta in enumerate(deltas)
    }
    found = merged({"merge_method": "sce", "parameters": {"select_topk": share}}, models)["w"]
    if share < 1:
        spread = deltas.var(axis=0) > 1e-12
        assert np.count_nonzero(found) <= int(share * spread.sum())
        assert not (found[~spread] != 0).any()
    if count == 2:
        # The variances are exact in float32 too, so that the first of equal ones are selected.
        expected = reference.sce(np.zeros(size), list(deltas), select_topk=share)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for j in np.flatnonzero(found):
        # A mean of entries of one sign lies between them.
        agreeing = [d for d in deltas[:, j] if d * found[j] > 0]
        assert min(np.abs(agreeing)) - 1e-5 <= abs(found[j]) <= max(np.abs(agreeing)) + 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_ram_takes_over_what_one_expert_changed(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    base = draw.standard_normal(300).astype(np.float32)
    models: Models = {"base": {"w": base}}
    owner = draw.integers(-1, count, 300)
    for place in range(count):
        changed = np.where(owner == place, draw.standard_normal(300), base)
        models[f"e{place}"] = {"w": np.asarray(changed, np.float32)}
    found = merged({"merge_method": "ram", "parameters": {"epsilon": 0}}, models)["w"]
    for j in range(300):
        wanted = base[j] if owner[j] < 0 else models[f"e{owner[j]}"]["w"][j]
        assert found[j] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("wrong", [0.15, 0.2, 0.86, 0.999])
def test_della_refuses_chances_beyond_0_and_1(tmp_path: Path, wrong: float) -> None:
    models: Models = {"base": {"w": np.zeros(4, np.float32)}, "e0": {"w": np.ones(4, np.float32)}}
    epsilon = 0.2 if wrong == 0.2 else 0.15
    data = {"merge_method": "della", "parameters": {"density": wrong, "epsilon": epsilon}}
    with pytest.raises(InputError, match=r"epsilon.*'w'.*choose a smaller epsilon"):
        merged(data, models)
    # At density 1 nothing is dropped, whatever epsilon is.
    np.testing.assert_array_equal(merged(data | {"parameters": {"density": 1}}, models)["w"], 1)


@pytest.mark.parametrize("semantics", ["mergekit", "original"])
def test_della_keeps_large_entries_more_often(semantics: str) -> None:
    """By rank, over many rows: the fraction kept, and what rescaling does to the sum."""
    draw = np.random.default_rng(6)
    rows, length = 4000, 50
    delta = draw.standard_normal((rows, length)).astype(np.float32)
    models: Models = {"base": {"w": np.zeros_like(delta)}, "e0": {"w": delta}}
    data = {
        "merge_method": "della_linear",
        "parameters": {"density": 0.5, "epsilon": 0.3},
        "semantics": semantics,
    }
    found = merged(data, models)["w"]
    ranks = np.argsort(np.argsort(np.abs(delta), axis=1), axis=1)
    chances = 0.2 + ranks / (length - 1) * 0.6
    for rank in range(length):
        kept = (found[ranks == rank] != 0).mean()
        chance = 0.2 + rank / (length - 1) * 0.6
        assert abs(kept - chance) < 5 * np.sqrt(chance * (1 - chance) / rows)
    factors = found[found != 0] / delta[found != 0]
    if semantics == "original":
        np.testing.assert_allclose(factors, 1 / chances[found != 0], rtol=1e-5)
    else:
        np.testing.assert_allclose(factors, factors[0], rtol=1e-5)
        assert np.abs(found).sum() == pytest.approx(np.abs(delta).sum(dtype=np.float64), rel=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 300), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 2**32 - 1),
    st.booleans(),
)  # fmt: skip
def test_breadcrumbs_keep_a_band(
    size: int, density: float, gamma: float, seed: int, few: bool
) -> None:
    draw = np.random.default_rng(seed)
    drawn = draw.integers(-3, 4, size) if few else draw.standard_normal(size)
    delta = np.asarray(drawn, np.float32)
    models: Models = {
        "base": {"w": np.zeros(size, np.float32), "one": ONE},
        "e0": {"w": delta, "one": ONE},
    }
    options = {"density": density, "gamma": gamma}
    data: dict[str, Any] = {"merge_method": "breadcrumbs", "parameters": options}
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        found = merged(data | {"merge_method": name}, models)["w"]
        expected = reference.band(delta.astype(np.float64), density, gamma)
        np.testing.assert_array_equal(found, expected)
    found = merged(data | {"semantics": "original"}, models)["w"]
    expected = reference.band_of_rows(delta.astype(np.float64), density, gamma)
    np.testing.assert_array_equal(found, expected)


def test_published_breadcrumbs_look_at_every_row() -> None:
    delta = np.array([[1, 2, 3, 4, 5], [50, 40, 30, 20, 10]], np.float32)
    models: Models = {
        "base": {"w": np.zeros_like(delta), "scalar": np.zeros((), np.float32)},
        "e0": {"w": delta, "scalar": np.full((), 7, np.float32)},
    }
    data: dict[str, Any] = {
        "merge_method": "breadcrumbs", "parameters": {"density": 0.4, "gamma": 0.2},
    }  # fmt: skip
    found = merged(data | {"semantics": "original"}, models)
    np.testing.assert_array_equal(found["w"], [[0, 0, 3, 4, 0], [0, 40, 30, 0, 0]])
    assert found["scalar"] == 7
    # mergekit's: over the whole tensor, two are dropped at the top and four kept.
    found = merged(data, models)
    np.testing.assert_array_equal(found["w"], [[0, 0, 0, 0, 5], [0, 0, 30, 20, 10]])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"merge_method": "nearswap", "models": [{"model": "a"}]}, "parameters.t"),
        (
            {"merge_method": "arcee_fusion", "models": [{"model": m} for m in "ac"]},
            "exactly 1",
        ),
        (
            {"merge_method": "nearswap", "models": [{"model": "a"}], "parameters": {"t": -1}},
            "at least 0",
        ),
        (
            {"merge_method": "karcher", "models": [{"model": "a"}],
             "parameters": {"max_iter": 1e7}},
            "at most 1e",
        ),
        (
            {"merge_method": "sce", "models": [{"model": "a"}], "sensitivity": {}},
            "sensitivity",
        ),
    ],
    ids=["no t", "two models", "negative t", "many steps", "coefficients"],
)  # fmt: skip
def test_what_a_method_cannot_use_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        Recipe.from_dict(data | {"base_model": "b"})
    assert said in str(refused.value)


def test_weights_that_sum_to_0_cannot_be_normalised() -> None:
    models: Models = {"base": {"w": np.zeros(4, np.float32)}}
    models |= {f"e{i}": {"w": np.full(4, i + 1, np.float32)} for i in range(2)}
    data = {"merge_method": "multislerp", "parameters": {"weight": 0}}
    with pytest.raises(InputError, match="sum to 0"):
        merged(data, models)
