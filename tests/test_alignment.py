"""Distances between logits against torch, and which models can be compared at all."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sensmerge
import torch_oracle as oracle
from families import Family, add_tokens, llama_family, remove_tokenizer
from sensmerge import Calibration, InputError, Recipe, _core
from sensmerge.calibration import alignment, loading
from sensmerge.calibration.entering import States
from sensmerge.calibration.runner import Opened, Runner
from sensmerge.calibration.samples import Sample
from sensmerge.calibration.vocabularies import Vocabulary, common_columns
from test_vocabulary import swap


def test_tokens_and_completions_are_the_oracles(family: Family, measured: Calibration) -> None:
    np.testing.assert_allclose(measured.alignment, oracle.alignment(family), rtol=1e-5)
    assert not measured.alignment.diagonal().any()
    # The samples are those of the column's task, so the matrix has no symmetry.
    assert abs(measured.alignment[0, 1] / measured.alignment[1, 0] - 1) > 1e-3


def distance(
    one: Any, other: Any, samples: list[Sample], *, positions: str, form: str, pair: str = ""
) -> float:
    first, second = (
        alignment.states(model, samples, positions, advance=lambda _: None)
        for model in (one, other)
    )
    return alignment.distance(
        alignment.Head(one, None),
        alignment.Head(other, None),
        first,
        second,
        samples,
        pair=pair,
        form=form,
        threads=1,
    )


@pytest.mark.parametrize("positions", ["completion", "all"])
@pytest.mark.parametrize("memory", ["whole", "stream"])
def test_an_expert_runs_on_its_own_samples_once(
    family: Family, memory: str, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, list[str]] = {}
    states = Runner.states

    def noted(self: Runner, opened: Opened, samples: list[Sample], *rest: Any) -> States:
        ran[opened.name] = [Path(sample.place.split(",")[0]).name for sample in samples]
        return states(self, opened, samples, *rest)

    monkeypatch.setattr(Runner, "states", noted)
    asked = oracle.recipe_of(family, positions=positions)
    found = sensmerge.calibrate(asked, progress=False, memory=memory)
    # On its own it ran when its sensitivity was measured.
    assert ran == {
        f"e{place}": [f"t{j}.jsonl" for j in range(3) if j != place for _ in range(oracle.SAMPLES)]
        for place in range(3)
    }
    expected = oracle.alignment(family, positions=positions)
    np.testing.assert_allclose(found.alignment, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "positions"), [("sequence", "completion"), ("token", "all"), ("sequence", "all")]
)
def test_the_other_forms_are_the_oracles(family: Family, form: str, positions: str) -> None:
    one, other = oracle.load(family, 2), oracle.load(family, 0)
    samples = oracle.samples_of(family, 0, positions)
    found = distance(one, other, samples, positions=positions, form=form)
    expected = oracle.distance(family, 2, 0, form=form, positions=positions)
    assert found == pytest.approx(expected, rel=1e-5)


def test_every_position_counts_the_last_included(family: Family) -> None:
    sample = oracle.samples_of(family, 0, "all")[0]
    length = len(sample.ids)
    places = torch.tensor(sample.logit_positions("all")).float()[:, None]

    class Times(alignment.Head):
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * self.factor

    for form, expected in [
        ("token", sum(range(length)) / length),
        ("sequence", sum(place * place for place in range(length)) ** 0.5),
    ]:
        found = alignment.distance(
            Times(2.0), Times(1.0), [places], [places], [sample], pair="", form=form, threads=1
        )
        assert found == pytest.approx(expected, rel=1e-6)


def test_options_reach_the_measurement(family: Family) -> None:
    found = oracle.calibrated(family, distance="sequence", positions="all")
    expected = oracle.alignment(family, form="sequence", positions="all")
    np.testing.assert_allclose(found.alignment, expected, rtol=1e-5)
    assert (found.options["distance"], found.options["positions"]) == ("sequence", "all")


def test_low_precision_logits_are_compared_in_float32(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2, dtype="bfloat16")
    found = oracle.calibrated(family, dtype="stored")
    total = []
    one, other = (oracle.load(family, place, torch.bfloat16) for place in range(2))
    for sample in oracle.samples_of(family, 1):
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            gap = one(ids).logits[0].double() - other(ids).logits[0].double()
        total.append(float(gap[[place - 1 for place in sample.scored]].norm(dim=1).mean()))
    assert found.alignment[0, 1] == pytest.approx(np.mean(total), rel=1e-5)


def test_vocabularies_of_different_size_share_a_prefix(family: Family, tmp_path: Path) -> None:
    family = family.copy(tmp_path)
    add_tokens(tmp_path / "e1", "[PAD]", "<extra>")
    found = oracle.calibrated(family)
    assert [expert.vocabulary for expert in found.experts] == [100, 102, 100]
    np.testing.assert_allclose(found.alignment, oracle.alignment(family), rtol=1e-5)
    assert found.notes == [
        "vocabularies differ (e0 100, e1 102, e2 100); logits were compared on their common prefix"
    ]


def test_a_token_that_another_expert_does_not_know_is_named(family: Family, tmp_path: Path) -> None:
    family = family.copy(tmp_path)
    add_tokens(tmp_path / "e1", "[PAD]")
    samples = tmp_path / "t1.jsonl"
    samples.write_text('{"text": "w1 w2"}\n{"text": "w1 [PAD]"}\n')
    with pytest.raises(InputError) as refused:
        oracle.calibrated(family)
    assert str(refused.value) == (
        f"{samples}, line 2: holds token 100 ('[PAD]'), which 'e0' does not know; leave the sample "
        "out, or give the experts one vocabulary"
    )


def test_experts_with_swapped_ids_are_compared_by_token(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    family = family.copy(tmp_path)
    swap(tmp_path / "e1", "w1", "w2")
    found = oracle.calibrated(family)
    np.testing.assert_allclose(found.alignment, measured.alignment, rtol=1e-6)
    np.testing.assert_allclose(found.sensitivity, measured.sensitivity, rtol=1e-5)
    assert found.notes == [
        "the experts' tokenizers give some tokens other ids; samples and logits were matched by "
        "token"
    ]


def test_tokens_of_ones_own_are_left_out_of_the_comparison(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    family = family.copy(tmp_path)
    add_tokens(tmp_path / "e0", "[PAD]")
    add_tokens(tmp_path / "e1", "<|end|>", "[PAD]")
    found = oracle.calibrated(family)
    # Both know [PAD], under ids of their own: one logit more is compared.
    assert found.alignment[0, 1] > measured.alignment[0, 1]
    np.testing.assert_allclose(found.alignment[0, 2], measured.alignment[0, 2], rtol=1e-5)
    assert "matched by token" in found.notes[0]


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(1, 10), st.integers(1, 10))
@settings(deadline=None)
def test_the_logits_in_common_are_those_of_the_same_tokens(
    one: list[int], other: list[int], first: int, second: int
) -> None:
    tokens = [f"t{place}" for place in range(8)]
    ours = Vocabulary("ours", dict(zip(tokens[:6], one[:6], strict=True)), first)
    theirs = Vocabulary("theirs", dict(zip(tokens[2:], other[2:], strict=True)), second)
    columns = common_columns(ours, theirs, (first, second))
    if columns is None:
        assert all(one[place] == other[place] for place in range(2, 6))
        return
    pairs = {(a + step, b + step) for a, b, count in columns for step in range(count)}
    assert pairs == {
        (one[place], other[place])
        for place in range(2, 6)
        if one[place] < first and other[place] < second
    }


@given(st.lists(st.tuples(st.integers(0, 49), st.integers(0, 69), st.integers(0, 20)), max_size=6))
@settings(deadline=None)
def test_columns_are_compared_wherever_they_stand(runs: list[tuple[int, int, int]]) -> None:
    rng = np.random.default_rng(len(runs))
    a, b = (rng.standard_normal((3, size), dtype=np.float32) for size in (50, 70))
    runs = [(one, other, min(count, 50 - one, 70 - other)) for one, other, count in runs]
    ours = [one + step for one, _, count in runs for step in range(count)]
    theirs = [other + step for _, other, count in runs for step in range(count)]
    flat = [matrix.reshape(-1).view(np.uint8) for matrix in (a, b)]
    found = _core.row_distances(flat[0], flat[1], "float32", 3, runs, threads=1)
    gap = a[:, ours].astype(np.float64) - b[:, theirs]
    np.testing.assert_allclose(found, np.linalg.norm(gap, axis=1), rtol=1e-5)


def test_columns_that_there_are_not_are_refused() -> None:
    flat = np.zeros(24, dtype=np.uint8)
    for rows, columns in [(2, (0, 2, 2)), (2, (3, 0, 1)), (4, (0, 0, 1)), (0, (0, 0, 0))]:
        with pytest.raises(InputError, match=r"rows|columns"):
            _core.row_distances(flat, flat, "float32", rows, [columns])


def test_a_borrowed_tokenizer_is_noted(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    family = family.copy(tmp_path)
    remove_tokenizer(tmp_path / "e1")
    found = oracle.calibrated(family)
    assert found.notes == ["expert 'e1' has no tokenizer; the base's was used"]
    np.testing.assert_array_equal(found.alignment, measured.alignment)
    remove_tokenizer(tmp_path / "base")
    with pytest.raises(InputError, match="e1: has no tokenizer files, and there is no base"):
        oracle.calibrated(family)


def test_logits_that_are_not_finite_name_experts_and_sample(family: Family) -> None:
    one, other = oracle.load(family, 0), oracle.load(family, 1)
    with torch.no_grad():
        other.lm_head.weight[0, 0] = float("inf")
    samples = oracle.samples_of(family, 0)
    with pytest.raises(InputError, match=r"e0 and e1: their logits on .*t0.jsonl, line 1 are not"):
        distance(one, other, samples, positions="completion", form="token", pair="e0 and e1")


def test_the_blocks_of_one_model_at_most_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = llama_family(tmp_path, experts=4, layers=1)
    held: list[weakref.ref[Any]] = []
    most = []
    load = loading.load

    def holds_blocks(reference: weakref.ref[Any]) -> bool:
        model = reference()
        return model is not None and any(
            parameter.numel() for parameter in model.model.layers.parameters()
        )

    def counted(*arguments: Any) -> Any:
        model = load(*arguments)
        held.append(weakref.ref(model))
        most.append(sum(map(holds_blocks, held)))
        return model

    monkeypatch.setattr(loading, "load", counted)
    oracle.calibrated(family)
    # Once each for sensitivity, and once each for alignment, of which the heads are kept.
    assert most == [1] * 8
    assert not any(one() is not None for one in held)


def test_a_single_expert_has_nothing_to_be_compared_with(family: Family) -> None:
    data = family.recipe(sensitivity={"samples": 2})
    data["models"] = data["models"][:1]
    found = sensmerge.calibrate(Recipe.from_dict(data, folder=family.folder), progress=False)
    assert found.alignment.tolist() == [[0.0]]
