"""Sensitivity, alignment and coefficients against torch in float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import sensmerge
from families import Family, llama_family, word_tokenizer
from sensmerge import Calibration, InputError, Recipe, _core
from sensmerge.calibration import samples, sensitivity
from sensmerge.layers import layer_of


def recipe_of(family: Family, **sensitivity: Any) -> Recipe:
    options = {"dtype": "float32", "samples": 4} | sensitivity
    return Recipe.from_dict(family.recipe(sensitivity=options), folder=family.folder)


def run(family: Family, **sensitivity: Any) -> Calibration:
    return sensmerge.calibrate(recipe_of(family, **sensitivity), progress=False)


def tasks_of(family: Family, positions: str = "completion") -> list[list[samples.Sample]]:
    return [
        samples.load(
            family.folder / f"t{place}.jsonl", "", word_tokenizer(), count=4, seed=0,
            max_length=512, positions=positions,
        ).samples
        for place in range(family.experts)
    ]  # fmt: skip


def load(family: Family, place: int, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(family.folder / f"e{place}", dtype=dtype).eval()


@pytest.fixture(scope="module")
def measured(family: Family) -> Calibration:
    return run(family)


def oracle_sensitivity(family: Family, place: int, positions: str) -> dict[str, float]:
    """All gradients of a sample at once, products and sums in float64."""
    model = load(family, place)
    sums: dict[str, float] = {}
    for sample in tasks_of(family, positions)[place]:
        model.zero_grad()
        labels = torch.tensor([[-100] * len(sample.ids)])
        for where in sample.scored:
            labels[0, where] = sample.ids[where]
        model(input_ids=torch.tensor([sample.ids]), labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            product = parameter.double() * parameter.grad.double()
            layer = layer_of(name)
            sums[layer] = sums.get(layer, 0.0) + float(product.detach().abs().sum())
    return sums


def oracle_distance(family: Family, i: int, j: int, *, form: str, positions: str) -> float:
    one, other = load(family, i), load(family, j)
    total = []
    for sample in tasks_of(family, positions)[j]:
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            gap = one(ids).logits[0].double() - other(ids).logits[0].double()
        gap = gap[sample.logit_positions(positions)]
        total.append(float(gap.norm(dim=1).mean() if form == "token" else gap.norm()))
    return float(np.mean(total))


def test_sensitivity_is_the_oracles(family: Family, measured: Calibration) -> None:
    assert measured.layers == [f"model.layers.{layer}" for layer in range(3)]
    assert measured.outside_layers == ["model.embed_tokens", "model.norm", "lm_head"]
    assert measured.order == ["model.embed_tokens", *measured.layers, "model.norm", "lm_head"]
    for place in range(3):
        expected = oracle_sensitivity(family, place, "completion")
        layers = [*measured.layers, *measured.outside_layers]
        values = [*measured.sensitivity[place], *measured.outside_sensitivity[place]]
        found = dict(zip(layers, values, strict=True))
        assert found.keys() == expected.keys()
        for layer, value in expected.items():
            assert found[layer] == pytest.approx(value, rel=1e-5)


def test_alpha_tau_and_sigma_are_the_oracles(family: Family, measured: Calibration) -> None:
    found = sensmerge.coefficients(measured, recipe_of(family))
    s = np.array(
        [
            [oracle_sensitivity(family, place, "completion")[layer] for layer in measured.layers]
            for place in range(3)
        ]
    )
    g = np.array(
        [
            [
                oracle_distance(family, i, j, form="token", positions="completion") if i != j else 0
                for j in range(3)
            ]
            for i in range(3)
        ]
    )
    np.testing.assert_allclose(measured.alignment, g, rtol=1e-5)
    alpha = s / np.linalg.norm(s, axis=1, keepdims=True)
    tau = 1 - g.sum(axis=1) / g.sum()
    importance = np.exp(tau[:, None] * alpha / 0.05)
    np.testing.assert_allclose(found.alpha, alpha, rtol=1e-5)
    np.testing.assert_allclose(found.tau, tau, rtol=1e-5)
    np.testing.assert_allclose(found.sigma, importance / importance.sum(axis=0), rtol=1e-4)


def test_the_other_options_are_the_oracles(family: Family) -> None:
    found = run(family, positions="all", distance="sequence")
    expected = oracle_sensitivity(family, 1, "all")
    np.testing.assert_allclose(
        found.sensitivity[1], [expected[layer] for layer in found.layers], rtol=1e-5
    )
    assert found.alignment[2, 0] == pytest.approx(
        oracle_distance(family, 2, 0, form="sequence", positions="all"), rel=1e-5
    )


def test_the_loss_is_transformers(family: Family) -> None:
    model, sample = load(family, 0), tasks_of(family)[0][0]
    labels = torch.tensor([[-100] * len(sample.ids)])
    labels[0, sample.scored] = torch.tensor(sample.ids)[sample.scored]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([sample.ids]), labels=labels).loss
        found = sensitivity.loss(model, sample)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_one_gradient_at_a_time(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(family, 0)
    most = 0

    def count(*arguments: Any) -> float:
        nonlocal most
        held = [parameter.grad for parameter in model.parameters()]
        most = max(most, sum(gradient is not None for gradient in held))
        return 1.0

    monkeypatch.setattr(_core, "sum_abs_product", count)
    layers = {name: layer_of(name) for name, _ in model.named_parameters()}
    sums, _ = sensitivity.measure(
        model, layers, tasks_of(family)[0], expert="e0", threads=1, advance=lambda _: None
    )
    assert most == 1
    assert sum(sums.values()) == 4 * len(layers)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_sample_counts_the_same_wherever_it_stands(family: Family) -> None:
    model, task = load(family, 0), tasks_of(family)[0]
    layers = {name: layer_of(name) for name, _ in model.named_parameters()}

    def sums(chosen: list[samples.Sample]) -> dict[str, float]:
        return sensitivity.measure(
            model, layers, chosen, expert="e0", threads=2, advance=lambda _: None
        )[0]

    together = sums(task)
    apart = [sums([sample]) for sample in reversed(task)]
    for layer, value in together.items():
        assert value == pytest.approx(sum(one[layer] for one in apart), rel=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_stored_dtype_moves_alpha_by_a_few_percent(tmp_path: Path, dtype: str) -> None:
    family = llama_family(tmp_path, experts=2, dtype=dtype)
    stored = sensmerge.coefficients(run(family, dtype="stored"), recipe_of(family))
    exact = sensmerge.coefficients(run(family), recipe_of(family))
    np.testing.assert_allclose(stored.alpha, exact.alpha, rtol=0.05)
    assert not np.array_equal(stored.alpha, exact.alpha)


def test_a_tied_head_is_part_of_the_embedding(tmp_path: Path) -> None:
    found = run(llama_family(tmp_path, experts=2, tied=True))
    assert found.outside_layers == ["model.embed_tokens", "model.norm"]


def test_what_is_saved_is_what_is_loaded(measured: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    measured.save(path)
    loaded = Calibration.load(path)
    np.testing.assert_array_equal(loaded.sensitivity, measured.sensitivity)
    np.testing.assert_array_equal(loaded.alignment, measured.alignment)
    assert loaded.to_json() == measured.to_json()
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_experts_are_selected_in_any_order(measured: Calibration) -> None:
    prints = [expert.fingerprint for expert in measured.experts]
    chosen = measured.select([prints[2], prints[0]])
    np.testing.assert_array_equal(chosen.sensitivity, measured.sensitivity[[2, 0]])
    assert chosen.alignment[0, 1] == measured.alignment[2, 0]
    with pytest.raises(InputError, match="does not belong to expert 2"):
        measured.select([prints[0], "sampled-blake3:0"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(format="other"), "format"),
        (lambda data: data.update(version=99), "version: 99"),
        (lambda data: data.pop("layers"), "layers: is missing"),
        (lambda data: data["sensitivity"].pop(), "sensitivity: has shape"),
        (lambda data: data["sensitivity"][0].__setitem__(0, -1), "sensitivity: holds a number"),
        (lambda data: data["alignment"].pop(), "alignment: has shape"),
        (lambda data: data.update(order=[]), "order"),
        (lambda data: data["experts"][0].pop("task"), "task: is missing"),
        (lambda data: data["experts"][0].update(extra=1), "malformed"),
    ],
)
def test_files_that_are_no_calibration(
    measured: Calibration, tmp_path: Path, change: Any, said: str
) -> None:
    data = json.loads(measured.to_json())
    change(data)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as refused:
        Calibration.load(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def copied(family: Family, tmp_path: Path) -> Family:
    shutil.copytree(family.folder, tmp_path, dirs_exist_ok=True)
    return Family(tmp_path, family.experts)


def test_an_expert_without_samples_is_named(family: Family) -> None:
    data = family.recipe(sensitivity={})
    del data["models"][1]["calibration"]
    with pytest.raises(InputError, match="'e1' has no calibration samples"):
        sensmerge.calibrate(Recipe.from_dict(data, folder=family.folder), progress=False)


def test_tokenizers_that_disagree_are_refused(family: Family, tmp_path: Path) -> None:
    family = copied(family, tmp_path)
    path = family.folder / "e1" / "tokenizer.json"
    text = path.read_text()
    for old, new in [('"w1":', '"swap":'), ('"w2":', '"w1":'), ('"swap":', '"w2":')]:
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(InputError, match="token 4 is 'w1' for 'e0' and 'w2' for 'e1'"):
        run(family)


def test_a_borrowed_tokenizer_is_noted(family: Family, tmp_path: Path) -> None:
    family = copied(family, tmp_path)
    (family.folder / "e1" / "tokenizer.json").unlink()
    (family.folder / "e1" / "tokenizer_config.json").unlink()
    (family.folder / "e1" / "chat_template.jinja").unlink(missing_ok=True)
    assert "'e1' has no tokenizer" in run(family).notes[0]


def test_weights_that_do_not_fit_their_config_are_refused(family: Family, tmp_path: Path) -> None:
    family = copied(family, tmp_path)
    path = family.folder / "e1" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 4}))
    with pytest.raises(InputError, match="missing keys when loading"):
        run(family)


def test_options_that_differ_from_the_measured_are_refused(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"sensitivity.distance: the recipe says sequence"):
        sensmerge.merge(
            recipe_of(family, distance="sequence"), tmp_path / "out", measured, progress=False
        )
    assert not (tmp_path / "out").exists()
