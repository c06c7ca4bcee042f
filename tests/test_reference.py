"""The reference itself, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sensmerge import reference


def tensors(*values: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return {"w": np.array(values, dtype=np.float64)}


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_random123s_known_answers(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    assert reference.philox4x32(counter, key) == expected


def test_trim_keeps_exactly_k_and_breaks_ties_by_index() -> None:
    delta = np.array([1.0, -3.0, 2.0, -2.0, 2.0])
    np.testing.assert_array_equal(reference.trim_tensor(delta, 0.6), [0, -3, 2, -2, 0])
    np.testing.assert_array_equal(reference.trim_tensor(delta, 0.01), [0, -3, 0, 0, 0])


def test_the_whole_model_trim_keeps_all_ties() -> None:
    deltas = {"a": np.array([1.0, -3.0]), "b": np.array([2.0, -2.0, 2.0])}
    trimmed = reference.trim_model(deltas, 0.4)
    # n = 5, k = 5 - 2 = 3: the third smallest magnitude is 2, and everything at it stays.
    np.testing.assert_array_equal(trimmed["a"], [0, -3])
    np.testing.assert_array_equal(trimmed["b"], [2, -2, 2])


def test_ties_by_hand_in_both_semantics() -> None:
    base = tensors(0, 0, 0)
    experts = [tensors(4, 1, 1), tensors(-2, 1, -1), tensors(0, -1, 0)]
    weights = {"w": [1.0, 2.0, 1.0]}
    mergekit = reference.merge("ties", "mergekit", base, experts, weights=weights)
    # Weighted sums 0, 2, -1: a draw is +, so 4 alone; (1 + 2) / 3; -2 / 2.
    np.testing.assert_allclose(mergekit["w"], [4, 1, -1])
    original = reference.merge("ties", "original", base, experts, weights=weights)
    # Plain sums 2, 1, 0; the majority of elected signs is +: 4 / 1, (1 + 2) / 2, 1 / 1.
    np.testing.assert_allclose(original["w"], [4, 1.5, 1])


def test_linear_and_task_arithmetic_by_hand() -> None:
    base, experts = tensors(1, 1), [tensors(2, 1), tensors(4, 0)]
    weights = {"w": [1.0, 3.0]}
    linear = reference.merge("linear", "mergekit", None, experts, weights=weights)
    np.testing.assert_allclose(linear["w"], [3.5, 0.25])
    task = reference.merge(
        "task_arithmetic", "original", base, experts, weights=weights, lambda_=0.5
    )
    np.testing.assert_allclose(task["w"], [1 + 0.5 * (1 + 9), 1 + 0.5 * (-3)])
    mean = reference.merge(
        "task_arithmetic", "mergekit", base, experts, weights=weights, normalize=True
    )
    np.testing.assert_allclose(mean["w"], [1 + 10 / 4, 1 - 3 / 4])


def test_dare_keeps_the_expectation_or_the_norm() -> None:
    size = 4000
    base = {"w": np.zeros(size)}
    expert = {"w": np.random.default_rng(0).standard_normal(size)}
    weights = {"w": [1.0]}
    for semantics in ("mergekit", "original"):
        merged = reference.merge(
            "dare_linear", semantics, base, [expert], weights=weights, densities=[0.25], seed=3
        )["w"]
        kept = merged != 0
        assert 0.2 < kept.mean() < 0.3
        factor = merged[kept] / expert["w"][kept]
        if semantics == "original":
            np.testing.assert_allclose(factor, 4)
        else:
            assert np.abs(merged).sum() == pytest.approx(np.abs(expert["w"]).sum())


def test_a_nan_is_not_lost_in_an_election() -> None:
    base, experts = tensors(0, 0), [tensors(np.nan, 1), tensors(1, 3)]
    for semantics in ("mergekit", "original"):
        merged = reference.merge("ties", semantics, base, experts, weights={"w": [1.0, 1.0]})
        np.testing.assert_array_equal(merged["w"], [np.nan, 2])


def test_a_mask_never_changes() -> None:
    # Written down once: a recipe's seed must give the same merge in every version.
    mask = reference.keep_mask(7, 2, "model.layers.0.w", 40, 0.3)
    assert "".join("01"[bit] for bit in mask.astype(int)) == (
        "0000101110000000000000000000101111000001"
    )


def test_masks_are_keyed_by_seed_place_and_tensor() -> None:
    first = reference.keep_mask(1, 0, "a", 2000, 0.5)
    for other in [(2, 0, "a"), (1, 1, "a"), (1, 0, "b")]:
        same = (first == reference.keep_mask(*other, 2000, 0.5)).mean()
        assert 0.4 < same < 0.6
    np.testing.assert_array_equal(first[:100], reference.keep_mask(1, 0, "a", 100, 0.5))
