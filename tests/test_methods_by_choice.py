"""MagMax, EMR-Merging, Consensus Task Arithmetic, PCB-Merging and WSM against their references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sensmerge
from sensmerge import InputError, Recipe, reference
from test_methods_by_entries import EXCEPTIONS, ONE, Models, compare, family, wide

Array = NDArray[np.float64]
Oracle = Callable[..., Array]

ORACLES: dict[str, Oracle] = {
    "magmax": reference.magmax, "emr": reference.emr, "consensus": reference.consensus,
    "pcb": reference.pcb,
}  # fmt: skip
WEIGHTS = [1.0, 0.7, -0.4, 1.3, 0.6]


def merged(
    method: str,
    models: Models,
    weights: list[float] | None = None,
    own: list[dict[str, Any]] | None = None,
    lambda_: Any = None,
    **parameters: Any,
) -> dict[str, Array]:
    """Merge with these weights, other parameters by model (``own``) and parameters of the merge."""
    parameters |= {} if lambda_ is None else {"lambda": lambda_}
    names = list(models)[1:] if "base" in models else list(models)
    listed: list[dict[str, Any]] = [{"model": name, "parameters": {}} for name in names]
    for place, each in enumerate(listed):
        each["parameters"] |= {} if weights is None else {"weight": weights[place]}
        each["parameters"] |= {} if own is None else own[place]
    data: dict[str, Any] = {"merge_method": method, "models": listed, "parameters": parameters}
    if "base" in models:
        data["base_model"] = "base"
    first = next(iter(models.values()))
    out = {name: np.full(np.shape(value), np.nan, np.float32) for name, value in first.items()}
    sensmerge.merge_into(out, Recipe.from_dict(data), models)
    return {name: tensor.astype(np.float64) for name, tensor in out.items()}


def whole(count: int, size: int, seed: int) -> tuple[Models, list[Array]]:
    """Experts that differ from a base of 0 by small whole numbers, and the differences."""
    draw = np.random.default_rng(seed)
    deltas = [draw.integers(-4, 5, size).astype(np.float64) for _ in range(count)]
    models: Models = {"base": {"w": np.zeros(size, np.float32), "one": ONE}}
    models |= {f"e{i}": {"w": d.astype(np.float32), "one": ONE} for i, d in enumerate(deltas)}
    return models, deltas


@pytest.mark.parametrize(
    ("method", "steps"),
    # Whether steps claim an entry would hang on their rounding.
    [
        ("magmax", False),
        ("magmax", True),
        ("emr", False),
        ("emr", True),
        ("consensus", False),
        ("pcb", False),
        ("pcb", True),
    ],
)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("lambda_", [None, 0.8])
def test_choices(
    method: str, count: int, weighted: bool, steps: bool, lambda_: float | None
) -> None:
    models = family(1, count, steps=steps)
    weights = WEIGHTS[:count] if weighted else None
    base, *experts = map(wide, models.values())
    oracle = ORACLES[method]
    said: dict[str, Any] = {} if lambda_ is None else {"lambda_": lambda_}
    # Differences as the core computes them, so that equal ones are equal.
    deltas = [
        {name: (e[name] - base[name]).astype(np.float32).astype(np.float64) for name in base}
        for e in experts
    ]
    zero = {name: np.zeros_like(value) for name, value in base.items()}
    expected = {
        name: base[name]
        + oracle(zero[name], [d[name] for d in deltas], weights or [1.0] * count, **said)
        for name in base
    }
    found = merged(method, models, weights, lambda_=lambda_)
    rounded = weighted or steps or method == "pcb"
    compare(found, expected, EXCEPTIONS if rounded else 0)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["magmax", "emr", "consensus"]), st.integers(2, 5), st.integers(1, 300),
    st.integers(0, 2**32 - 1), st.lists(st.sampled_from([-2, -0.5, 0, 0.5, 1, 2]), min_size=5),
)  # fmt: skip
def test_whole_numbers_are_chosen_exactly(
    method: str, count: int, size: int, seed: int, weights: list[float]
) -> None:
    """Many magnitudes are equal and many sums are 0, and no product is rounded."""
    models, deltas = whole(count, size, seed)
    said: dict[str, Any] = {"mask_lambda": 0.5} if method == "consensus" else {}
    found = merged(method, models, weights[:count], lambda_=1, **said)["w"]
    expected = ORACLES[method](np.zeros(size), deltas, weights[:count], lambda_=1, **said)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_what_is_chosen_is_one_models_change(count: int, seed: int) -> None:
    models, deltas = whole(count, 200, seed)
    stacked = np.stack(deltas)
    largest = np.abs(stacked).max(axis=0)
    found = merged("magmax", models, lambda_=1)["w"]
    np.testing.assert_array_equal(np.abs(found), largest)
    # Of equal magnitudes the first model's.
    for j in range(200):
        assert found[j] == next(d for d in stacked[:, j] if abs(d) == largest[j])
    # Where all agree, the elected sign changes nothing.
    unified = merged("emr", models)["w"]
    agree = (stacked >= 0).all(axis=0) | (stacked <= 0).all(axis=0)
    np.testing.assert_array_equal(unified[agree], found[agree])
    assert (unified * stacked.sum(axis=0) >= 0).all()


@pytest.mark.parametrize("k", [0, 1, 2, 3, 2.5])
@pytest.mark.parametrize("mask_lambda", [0, 0.4, [0.2, 0.6, 1.5]], ids=str)
def test_consensus(k: float, mask_lambda: Any) -> None:
    models = family(2, 3, steps=False)
    by_model = isinstance(mask_lambda, list)
    own = [{"mask_lambda": each} for each in mask_lambda] if by_model else None
    said = {} if by_model else {"mask_lambda": mask_lambda}
    base, *experts = map(wide, models.values())
    expected = {
        name: reference.consensus(
            base[name], [e[name] for e in experts], [1.0] * 3, mask_lambda=mask_lambda, k=k
        )
        for name in base
    }
    found = merged("consensus", models, own=own, k=k, **said)
    compare(found, expected, EXCEPTIONS)
    if k == 0:
        # Nothing is left out.
        compare(found, merged("task_arithmetic", models), 0)


def test_consensus_leaves_out_what_one_alone_changed() -> None:
    base = np.zeros(4, np.float32)
    models: Models = {
        "base": {"w": base},
        "e0": {"w": np.array([1, 1, 1, 0], np.float32)},
        "e1": {"w": np.array([0, 1, -1, 0], np.float32)},
    }
    np.testing.assert_array_equal(merged("consensus", models)["w"], [0, 2, 0, 0])
    np.testing.assert_array_equal(merged("consensus", models, k=1)["w"], [1, 2, 0, 0])
    with pytest.raises(InputError, match=r"parameters\.k.*only 2 models.*'w'.*choose 2 or less"):
        merged("consensus", models, k=3)


@pytest.mark.parametrize("density", [0.02, 0.3, 1, [0.1, 0.5, 1]], ids=str)
@pytest.mark.parametrize("size", [0.05, 3.0])
def test_pcb(density: Any, size: float) -> None:
    models = family(7, 3, size=size, steps=False)
    by_model = isinstance(density, list)
    own = [{"density": each} for each in density] if by_model else None
    said = {} if by_model else {"density": density}
    base, *experts = map(wide, models.values())
    deltas = [
        {name: (e[name] - base[name]).astype(np.float32).astype(np.float64) for name in base}
        for e in experts
    ]
    expected = {
        name: base[name]
        + reference.pcb(
            np.zeros_like(base[name]), [d[name] for d in deltas], WEIGHTS[:3], density=density
        )
        for name in base
    }
    compare(merged("pcb", models, WEIGHTS[:3], own, **said), expected, EXCEPTIONS)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 300), st.floats(0.01, 1), st.integers(0, 2**32 - 1),
    st.booleans(),
)  # fmt: skip
def test_winners_go_the_way_of_the_sum(
    count: int, size: int, density: float, seed: int, few: bool
) -> None:
    models, deltas = whole(count, size, seed)
    if not few:
        draw = np.random.default_rng(seed)
        deltas = [draw.standard_normal(size).astype(np.float32).astype(np.float64) for _ in deltas]
        for place, delta in enumerate(deltas):
            models[f"e{place}"]["w"] = delta.astype(np.float32)
    found = merged("pcb", models, density=density)["w"]
    total = np.sum(deltas, axis=0)
    assert (found * total >= 0).all()
    assert (np.abs(found) <= np.abs(deltas).max(axis=0) * (1 + 1e-6)).all()
    if not few:
        # Of each model's entries as many as are above the one of the rank.
        assert np.count_nonzero(found) <= count * max(1, np.ceil(density * size))
        expected = reference.pcb(np.zeros(size), deltas, [1.0] * count, density=density)
        assert (np.abs(found - expected) > 1e-5).sum() <= 1


def test_winners_that_no_sample_shows() -> None:
    """16 of every 64 entries are of another size: evenly spaced samples may hit only these."""
    draw = np.random.default_rng(9)
    size = 64 * 2048 + 48
    scale = np.where(np.arange(size) % 64 < 16, 0.01, 1.0)
    deltas = [np.asarray(scale * draw.standard_normal(size), np.float32) for _ in range(3)]
    models: Models = {"base": {"w": np.zeros(size, np.float32)}}
    models |= {f"e{i}": {"w": delta} for i, delta in enumerate(deltas)}
    wanted = [delta.astype(np.float64) for delta in deltas]
    for density in (0.1, 0.8):
        expected = {"w": reference.pcb(np.zeros(size), wanted, [1.0] * 3, density=density)}
        compare(merged("pcb", models, density=density), expected, EXCEPTIONS)


def test_equal_experts_win_alike() -> None:
    delta = np.array([0, 0.5, -1, 2, 3], np.float32)
    models: Models = {"base": {"w": np.zeros(5, np.float32)}}
    models |= {f"e{i}": {"w": delta} for i in range(2)}
    # The lowest score of those that count has the scale 0, as in the authors' code.
    np.testing.assert_allclose(merged("pcb", models, density=1)["w"], delta, rtol=1e-6)
    np.testing.assert_allclose(merged("pcb", models, density=0.5)["w"], [0, 0, 0, 2, 3], rtol=1e-6)
    # One entry is all there is.
    np.testing.assert_allclose(merged("pcb", models, density=0.2)["w"], [0, 0, 0, 0, 3], rtol=1e-6)


@pytest.mark.parametrize("method", ORACLES)
def test_nan_is_not_hidden(method: str) -> None:
    models = family(3, 2)
    models["e1"]["model.norm"][7] = np.nan
    with pytest.raises(InputError, match=r"'model\.norm'.*NaN"):
        merged(method, models)


@pytest.mark.parametrize("method", ORACLES)
def test_coefficients_multiply_the_weights(method: str) -> None:
    """Weights by layer, as those of Sens-Merging, change the choice in that layer alone."""
    models = family(4, 2)
    weight = [{"filter": "layers.1", "value": 3.0}, {"value": 1.0}]
    found = merged(method, models, own=[{"weight": weight}, {}])
    base, *experts = map(wide, models.values())
    expected = {
        name: ORACLES[method](
            base[name], [e[name] for e in experts], [3.0 if "layers.1" in name else 1.0, 1.0]
        )
        for name in base
    }
    compare(found, expected, EXCEPTIONS)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("power", [None, 0.5, 1, 2, 0.3])
def test_wsm(count: int, power: float | None) -> None:
    run = family(5, count)
    del run["base"]
    said: dict[str, Any] = {} if power is None else {"power": power}
    checkpoints = [wide(model) for model in run.values()]
    expected = {
        name: reference.wsm([each[name] for each in checkpoints], **said) for name in checkpoints[0]
    }
    found = merged("wsm", run, **said)
    compare(found, expected, 0)
    if power == 1:
        # The linear decay is the plain mean.
        compare(found, merged("linear", run), 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(0.05, 4))
def test_the_weights_of_a_decay_sum_to_1(count: int, power: float) -> None:
    run: Models = {f"m{i}": {"w": np.eye(count, dtype=np.float32)[i]} for i in range(count)}
    found = merged("wsm", run, power=power)["w"]
    assert found.sum() == pytest.approx(1, abs=1e-6)
    # What is later is in fewer checkpoints, so that it counts less.
    left = 1 - np.concatenate([[0.0], np.cumsum(found)])
    np.testing.assert_allclose(left, 1 - (np.arange(count + 1) / count) ** power, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"merge_method": "consensus", "models": [{"model": "a"}]}, "at least 2"),
        ({"merge_method": "wsm", "parameters": {"power": 0}}, "above 0"),
        ({"merge_method": "wsm", "sensitivity": {}}, "sensitivity"),
        ({"merge_method": "consensus", "parameters": {"mask_lambda": -1}}, "at least 0"),
    ],
    ids=["one model", "no power", "coefficients", "negative"],
)
def test_what_a_method_cannot_use_is_refused(data: dict[str, Any], said: str) -> None:
    models = [{"model": "a"}, {"model": "c"}]
    with pytest.raises(InputError) as refused:
        Recipe.from_dict({"base_model": "b", "models": models} | data)
    assert said in str(refused.value)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "emr"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.6), (1.0, -0.5)])
def test_lines_is_a_lambda_of_two_numbers(method: str, alpha: float, beta: float) -> None:
    """LiNeS (Wang et al. 2025): α + β · l / (L − 1) in block l, α outside the blocks."""
    draw = np.random.default_rng(6)
    blocks = [f"model.layers.{block}.mlp.up_proj.weight" for block in range(5)]
    outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names = [*outside, *blocks]
    models: Models = {
        model: {name: np.asarray(draw.standard_normal((6, 4)), np.float32) for name in names}
        for model in ("base", "e0", "e1", "e2")
    }
    # The base is 0, so that a merged entry is the scaled merged task vector itself.
    models["base"] = {name: np.zeros((6, 4), np.float32) for name in names}
    plain = merged(method, models, lambda_=1)
    expected = {name: alpha * plain[name] for name in outside}
    expected |= {
        name: (alpha + beta * block / 4) * plain[name] for block, name in enumerate(blocks)
    }
    compare(merged(method, models, lambda_=[alpha, alpha + beta]), expected, 0)
