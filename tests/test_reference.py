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
        ([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
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
    # A fixed mask: a recipe's seed must give the same merge in every version.
    mask = reference.keep_mask(7, 2, "model.layers.0.w", 40, 0.3)
    assert "".join("01"[bit] for bit in mask.astype(int)) == (
        "0100010101010000010010100000001001010100"
    )


def test_masks_are_keyed_by_seed_place_and_tensor() -> None:
    first = reference.keep_mask(1, 0, "a", 2000, 0.5)
    for other in [(2, 0, "a"), (1, 1, "a"), (1, 0, "b")]:
        same = (first == reference.keep_mask(*other, 2000, 0.5)).mean()
        assert 0.4 < same < 0.6
    np.testing.assert_array_equal(first[:100], reference.keep_mask(1, 0, "a", 100, 0.5))


HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("base", "other", "t", "expected"),
    [
        ([1, 0], [0, 1], 0.0, [1, 0]),
        ([1, 0], [0, 1], 1.0, [0, 1]),
        ([1, 0], [0, 1], 1 / 3, [np.sqrt(0.75), 0.5]),
        # Norms do not change the angle, but are interpolated.
        ([2, 0], [0, 4], 0.5, [2 * HALF, 4 * HALF]),
        ([1, 0], [0.5, np.sqrt(0.75)], 0.5, [np.sqrt(0.75), 0.5]),
        # Parallel and opposite: a straight line.
        ([1, 0], [3, 0], 0.25, [1.5, 0]),
        ([1, 0], [-1, 0], 0.25, [0.5, 0]),
        # A zero vector counts as perpendicular to every other.
        ([0, 0], [3, 4], 1 / 3, [1.5, 2]),
        ([3, 4], [0, 0], 2 / 3, [1.5, 2]),
        ([0, 0], [0, 0], 0.5, [0, 0]),
    ],
)
def test_slerp_by_hand(
    base: list[float], other: list[float], t: float, expected: list[float]
) -> None:
    found = reference.slerp(np.array(base, dtype=float), np.array(other, dtype=float), t)
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_slerp_changes_to_a_straight_line_at_its_threshold() -> None:
    for cosine, straight in ((0.9996, True), (0.9994, False), (-0.9994, False), (-0.9996, True)):
        a, b = np.array([1.0, 0.0]), np.array([cosine, np.sqrt(1 - cosine**2)])
        found = reference.slerp(a, b, 0.5)
        assert (np.abs(found - (a + b) / 2).max() < 1e-12) == straight
        if not straight:
            assert np.linalg.norm(found) == pytest.approx(1)


def test_slerp_takes_a_tensor_as_one_vector() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    np.testing.assert_array_equal(
        reference.slerp(a, b, 0.3).ravel(), reference.slerp(a.ravel(), b.ravel(), 0.3)
    )
    assert reference.slerp(np.array(1.0), np.array(3.0), 0.25) == 1.5


def test_nuslerp_weighs_by_the_second_models_share() -> None:
    first, second = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for weights, expected in (
        ([2.0, 1.0], [np.sqrt(0.75), 0.5]),
        ([1.0, 0.0], [1, 0]),
        ([0.0, 5.0], [0, 1]),
        # Weights that sum to 0 do not divide: half and half.
        ([1.0, -1.0], [HALF, HALF]),
        ([0.0, 0.0], [HALF, HALF]),
    ):
        found = reference.nuslerp(first, second, weights)
        np.testing.assert_allclose(found, expected, atol=1e-15)


def test_nuslerp_over_rows_columns_or_the_whole() -> None:
    first, second = np.array([[1.0, 1.0], [0.0, 0.0]]), np.eye(2)
    weights = [1.0, 1.0]
    # One vector: 60 degrees, sin 30 / sin 60.
    whole = reference.nuslerp(first, second, weights, row_wise=True)
    np.testing.assert_allclose(whole, np.array([[2, 1], [0, 1]]) / np.sqrt(3))
    # Rows: 45 degrees, and a zero row.
    rows = reference.nuslerp(first, second, weights, flatten=False)
    share = np.sin(np.pi / 8) / np.sin(np.pi / 4)
    np.testing.assert_allclose(rows, [[2 * share, share], [0, HALF]])
    # What mergekit calls row-wise are columns: one parallel, one at a right angle.
    columns = reference.nuslerp(first, second, weights, flatten=False, row_wise=True)
    np.testing.assert_allclose(columns, [[1, HALF], [0, HALF]])


def test_nuslerp_of_a_tensor_of_one_axis_is_the_same_in_every_setting() -> None:
    for shape in ((), (5,)):
        first, second = np.random.default_rng(0).standard_normal((2, *shape))
        whole = reference.nuslerp(first, second, [1.0, 2.0])
        for row_wise in (False, True):
            found = reference.nuslerp(first, second, [1.0, 2.0], flatten=False, row_wise=row_wise)
            np.testing.assert_array_equal(found, whole)


def test_nuslerp_with_a_base_turns_task_vectors() -> None:
    base = np.array([1.0, 1.0])
    found = reference.nuslerp(np.array([2.0, 1.0]), np.array([1.0, 2.0]), [1.0, 1.0], base=base)
    np.testing.assert_allclose(found, [1 + HALF, 1 + HALF])
    # An expert that is the base: its task vector has no direction.
    found = reference.nuslerp(base, np.array([3.0, 1.0]), [2.0, 1.0], base=base)
    np.testing.assert_allclose(found, [1 + 2 * np.sin(np.pi / 6), 1])
    found = reference.nuslerp(base, base, [1.0, 1.0], base=base)
    np.testing.assert_array_equal(found, base)


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, -3.0])
def test_nuslerp_of_parallel_and_opposite_vectors_is_a_straight_line(factor: float) -> None:
    first = np.random.default_rng(0).standard_normal(1000)
    found = reference.nuslerp(first, factor * first, [3.0, 1.0])
    np.testing.assert_allclose(found, (0.75 + 0.25 * factor) * first, atol=1e-12)


def test_model_stock_by_hand() -> None:
    base = np.array([1.0, 2.0, 3.0])

    def merged(*deltas: list[float]) -> reference.Array:
        experts = [base + np.array(delta) for delta in deltas]
        return np.asarray(reference.model_stock(base, experts) - base)

    # t is 1 for equal experts, and 0 for perpendicular task vectors.
    np.testing.assert_allclose(merged([1, 2, 3], [1, 2, 3]), [1, 2, 3])
    np.testing.assert_allclose(merged([1, 0, 0], [0, 4, 0]), [0, 0, 0], atol=1e-15)
    # 60 degrees: t = 2 * 0.5 / 1.5.
    sixty = [0.5, np.sqrt(0.75), 0]
    np.testing.assert_allclose(
        merged([1, 0, 0], sixty), [2 / 3 * 0.75, 2 / 3 * np.sqrt(0.75) / 2, 0], atol=1e-15
    )
    # Three: cosines 1, 0 and 0 have the mean 1/3; t = 3 * 1/3 / (1 + 2/3) = 0.6.
    np.testing.assert_allclose(merged([1, 0, 0], [1, 0, 0], [0, 1, 0]), [0.4, 0.2, 0], atol=1e-15)
    # An expert equal to the base has a cosine of 0 with every other.
    np.testing.assert_allclose(merged([0, 0, 0], [1, 2, 3]), [0, 0, 0], atol=1e-15)


def test_model_stock_keeps_the_base_where_experts_cancel() -> None:
    base = np.array([1.0, 2.0])
    corners = [[np.cos(a), np.sin(a)] for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    for deltas in ([[1.0, 0.0], [-2.0, 0.0]], corners):
        found = reference.model_stock(base, [base + delta for delta in deltas])
        np.testing.assert_array_equal(found, base)


def test_model_stock_by_filter() -> None:
    base = np.zeros((2, 2))
    experts = [np.array([[2.0, 0.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0]])]
    by_filter = reference.model_stock(base, experts, filter_wise=True)
    np.testing.assert_allclose(by_filter, [[2, 0], [0, 0]], atol=1e-15)
    # The whole: cos = 4/5, t = 2 * 0.8 / 1.8.
    whole = reference.model_stock(base, experts)
    np.testing.assert_allclose(whole, 8 / 9 * np.array([[2, 0], [0.5, 0.5]]))
    row = [expert[1] for expert in experts]
    np.testing.assert_array_equal(
        reference.model_stock(base[0], row, filter_wise=True), reference.model_stock(base[0], row)
    )


def test_model_stock_trusts_tiny_task_vectors_less() -> None:
    delta = np.array([1e-4, 0.0])
    found = reference.model_stock(np.zeros(2), [delta, delta])
    # The product of the norms, 1e-8, counts as 1e-6: cos = 0.01.
    np.testing.assert_allclose(found, 0.02 / 1.01 * delta)


def test_passthrough_scales_where_it_is_told_to() -> None:
    tensor = np.array([1.0, -2.0])
    np.testing.assert_array_equal(reference.passthrough(tensor), [1, -2])
    np.testing.assert_array_equal(reference.passthrough(tensor, 0.5), [0.5, -1])
    np.testing.assert_array_equal(reference.passthrough(tensor, 0.0), [0, 0])


def test_a_band_by_hand() -> None:
    delta = np.array([1.0, -5.0, 2.0, 4.0, -3.0, 4.0, 0.0, 6.0, 1.0, 1.0])
    np.testing.assert_array_equal(
        reference.band(delta, 0.4, 0.2), [0, 0, 0, 4, -3, 4, 0, 0, 0, 0] + np.eye(10)[2] * 2
    )
    # Fewer are dropped where less than the density would be left; of ties, the first are larger.
    np.testing.assert_array_equal(reference.band(delta, 0.7, 0.9), [1, 0, 2, 0, -3, 4, 0, 0, 1, 1])
    np.testing.assert_array_equal(reference.band(delta, 1.0, 0.5), delta)
    rows = np.array([[1.0, 2.0, 3.0, 4.0], [9.0, 9.0, 9.0, 9.0]])
    np.testing.assert_array_equal(
        reference.band_of_rows(rows, 0.5, 0.25), [[0, 2, 3, 0], [0, 9, 9, 0]]
    )
    np.testing.assert_array_equal(reference.band_of_rows(rows, 1.0, 0.25)[0], [1, 2, 3, 0])


def test_chances_rise_with_the_rank_in_a_row() -> None:
    delta = np.array([[3.0, -1.0, 0.5], [1.0, 1.0, -2.0]])
    chances = reference.ranked_chances(delta, 0.5, 0.2)
    np.testing.assert_allclose(chances, [[0.7, 0.5, 0.3], [0.5, 0.3, 0.7]])
    np.testing.assert_array_equal(reference.ranked_chances(np.ones((3, 1)), 0.4, 0.1), 0.4)


def test_sce_by_hand() -> None:
    base = np.zeros(4)
    experts = [np.array([1.0, 3.0, 0.0, 2.0]), np.array([1.0, -1.0, 0.0, 4.0])]
    # Variances 0, 4, 0 and 1: half of two entries is the second. Mean squares 9/4 and 1/4.
    found = reference.sce(base, experts, select_topk=0.5)
    np.testing.assert_allclose(found, [0, 3, 0, 0])
    # All: mean squares 14 and 18 of 32; a draw is +.
    found = reference.sce(base, experts)
    np.testing.assert_allclose(found, [1, 3, 0, (14 * 2 + 18 * 4) / 32])


def test_nearswap_and_ram_by_hand() -> None:
    base = np.array([0.0, 0.0, 1.0])
    found = reference.nearswap(base, np.array([0.1, -0.5, 1.0]), 0.2)
    np.testing.assert_allclose(found, [0.1, -0.2, 1.0])
    experts = [np.array([1.0, 2.0, 1.0]), np.array([0.0, 4.0, 1.0])]
    np.testing.assert_allclose(reference.ram(base, experts), [1, 3, 1])
    # The first shares one entry and has one of its own: 1 + 0.5 * min(1, 0.4).
    plus = reference.ram(base, experts, strengthen=(0.5, 0.4))
    np.testing.assert_allclose(plus, [1.2, 3, 1])


def test_arcee_fusion_keeps_what_stands_out() -> None:
    base = np.zeros((2, 8))
    other = base.copy()
    # A row that is shifted as a whole has the base's softmax: nothing in it is important.
    other[0] = 5.0
    # Importances c, seven times, and 9 c: the quartiles are 0, 0 and c.
    other[1] = [1, 1, 1, 9, 1, 1, 1, 1]
    found = reference.arcee_fusion(base, other)
    np.testing.assert_array_equal(found, [[0] * 8, [0, 0, 0, 9, 0, 0, 0, 0]])


def test_points_between_three_on_the_sphere() -> None:
    corners = list(np.eye(3))
    for found in (
        reference.multislerp(corners, [1.0, 1.0, 1.0]), reference.karcher(corners),
    ):  # fmt: skip
        np.testing.assert_allclose(found, np.full(3, np.sqrt(1 / 3)), rtol=1e-6)
    # Lengths are averaged, directions are not weighted by them.
    found = reference.karcher([2 * corners[0], 4 * corners[1]])
    np.testing.assert_allclose(found, [3 * HALF, 3 * HALF, 0], atol=1e-12)
    # Between two the Karcher mean is the middle of the arc; multislerp cuts it where the chord is.
    found = reference.multislerp(corners[:2], [0.75, 0.25])
    np.testing.assert_allclose(found, np.array([3.0, 1.0, 0.0]) / np.sqrt(10), atol=1e-9)
