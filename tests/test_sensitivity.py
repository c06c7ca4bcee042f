"""Σ|θ · g| by layer against torch, computed one sample and one gradient at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import torch_oracle as oracle
from families import Family, byte_tokenizer, edit_weights, llama_family
from sensmerge import Calibration, InputError, _core, reference
from sensmerge.calibration import loading, sensitivity
from sensmerge.calibration.samples import Sample
from sensmerge.models.layers import layer_of


def layers_of(model: Any) -> dict[str, str]:
    return {name: layer_of(name) for name, _ in model.named_parameters()}


def measure(model: Any, samples: list[Sample], by: str = "taylor") -> dict[str, float]:
    return sensitivity.measure(
        model, layers_of(model), samples, expert="e0", threads=1, advance=lambda _: None, by=by
    )[0]


def test_every_layer_is_the_oracles(family: Family, measured: Calibration) -> None:
    assert measured.layers == [f"model.layers.{layer}" for layer in range(3)]
    assert measured.outside_layers == ["model.embed_tokens", "model.norm", "lm_head"]
    assert measured.order == ["model.embed_tokens", *measured.layers, "model.norm", "lm_head"]
    for place in range(3):
        expected = oracle.sensitivity(family, place)
        layers = [*measured.layers, *measured.outside_layers]
        values = [*measured.sensitivity[place], *measured.outside_sensitivity[place]]
        found = dict(zip(layers, values, strict=True))
        assert found.keys() == expected.keys()
        for layer, value in expected.items():
            assert found[layer] == pytest.approx(value, rel=1e-5)


def test_positions_all_is_the_oracles(family: Family, measured: Calibration) -> None:
    expected = oracle.sensitivity(family, 1, "all")
    found = measure(oracle.load(family, 1), oracle.samples_of(family, 1, "all"))
    assert found == pytest.approx(expected, rel=1e-5)
    # The prompt's tokens do make a difference.
    assert found["model.layers.0"] != pytest.approx(measured.sensitivity[1, 0], rel=0.01)


def test_squared_gradients_are_the_oracles(family: Family, measured: Calibration) -> None:
    found = oracle.calibrated(family, measure="fisher")
    assert found.options["measure"] == found.measure == "fisher"
    for place in range(3):
        expected = oracle.sensitivity(family, place, measure="fisher")
        layers = [*found.layers, *found.outside_layers]
        values = [*found.sensitivity[place], *found.outside_sensitivity[place]]
        assert dict(zip(layers, values, strict=True)) == pytest.approx(expected, rel=1e-5)
    # Everything else is as it was.
    np.testing.assert_array_equal(found.alignment, measured.alignment)
    assert [expert.loss for expert in found.experts] == [expert.loss for expert in measured.experts]


def test_the_reference_sums_the_same(family: Family) -> None:
    gradients = []
    model = oracle.load(family, 0)
    for sample in oracle.samples_of(family, 0):
        model.zero_grad()
        oracle.loss(model, sample).backward()
        gradients.append([each.grad.double().numpy() for each in model.parameters()])
    model.zero_grad()
    parameters = [each.detach().double().numpy() for each in model.parameters()]
    for by in ("taylor", "fisher"):
        expected = reference.sensitivity(parameters, gradients, by)
        found = measure(model, oracle.samples_of(family, 0), by)
        assert sum(found.values()) == pytest.approx(expected, rel=1e-5)


def test_another_tokenizer_and_biases(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(eos=False)
    family = llama_family(
        tmp_path, experts=1, tokenizer=tokenizer, attention_bias=True, mlp_bias=True
    )
    expected = oracle.sensitivity(family, 0, tokenizer=tokenizer)
    found = oracle.calibrated(family)
    np.testing.assert_allclose(
        found.sensitivity[0], [expected[layer] for layer in found.layers], rtol=1e-5
    )


def test_the_loss_is_transformers(family: Family, measured: Calibration) -> None:
    model, samples = oracle.load(family, 0), oracle.samples_of(family, 0)
    with torch.no_grad():
        expected = [float(oracle.loss(model, sample)) for sample in samples]
        found = [float(sensitivity.loss(model, sample)) for sample in samples]
    assert found == pytest.approx(expected, rel=1e-6)
    assert measured.experts[0].loss == pytest.approx(np.mean(expected), rel=1e-6)


def test_one_gradient_at_a_time(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = oracle.load(family, 0)
    most = 0

    def count(*arguments: Any) -> float:
        nonlocal most
        held = [parameter.grad for parameter in model.parameters()]
        most = max(most, sum(gradient is not None for gradient in held))
        return 1.0

    monkeypatch.setattr(_core, "sum_abs_product", count)
    sums = measure(model, oracle.samples_of(family, 0))
    assert most == 1
    assert sum(sums.values()) == oracle.SAMPLES * len(layers_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_left_on_the_model(family: Family) -> None:
    model, samples = oracle.load(family, 0), oracle.samples_of(family, 0)
    first = measure(model, samples)
    sensitivity.loss(model, samples[0]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert measure(model, samples) == first


def test_a_sample_counts_the_same_wherever_it_stands(family: Family) -> None:
    model, samples = oracle.load(family, 0), oracle.samples_of(family, 0)
    together = measure(model, samples)
    apart = [measure(model, [sample]) for sample in reversed(samples)]
    for layer, value in together.items():
        assert value == pytest.approx(sum(one[layer] for one in apart), rel=1e-12)


def test_the_absolute_value_is_taken_before_the_sum(family: Family) -> None:
    model, samples = oracle.load(family, 0), oracle.samples_of(family, 0)
    for sample in samples:
        oracle.loss(model, sample).backward()
    # Gradients of all samples added up cancel in part.
    summed = sum(
        float((parameter.detach() * parameter.grad).abs().sum()) for parameter in model.parameters()
    )
    model.zero_grad()
    assert sum(measure(model, samples).values()) > 1.1 * summed


def test_dropout_is_off(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1, attention_dropout=0.5)
    expected = oracle.sensitivity(family, 0)
    found = oracle.calibrated(family)
    np.testing.assert_allclose(
        found.sensitivity[0], [expected[layer] for layer in found.layers], rtol=1e-5
    )


class Odd(torch.nn.Module):
    """A model with a transposed weight, a frozen one, and an unused one."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Embedding(9, 4, _weight=torch.randn(9, 4, generator=draw))
        self.turned = torch.nn.Parameter(torch.randn(9, 4, generator=draw).t())
        self.frozen = torch.nn.Parameter(torch.randn(4, generator=draw), requires_grad=False)
        self.idle = torch.nn.Parameter(torch.randn(4, generator=draw))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = (self.embed(input_ids) * self.frozen) @ self.turned
        return type("Output", (), {"logits": logits})


def test_parameters_of_every_kind() -> None:
    model: Any = Odd()
    assert not model.turned.is_contiguous()
    sample = Sample([1, 2, 3, 4], [2, 3], "line 1")
    found = sensitivity.measure(
        model,
        {name: name for name, _ in model.named_parameters()},
        [sample],
        expert="odd",
        threads=1,
        advance=lambda _: None,
    )[0]
    logits = model(torch.tensor(sample.ids)).logits[[1, 2]]
    torch.nn.functional.cross_entropy(logits, torch.tensor([3, 4])).backward()
    for name in ("turned", "frozen"):
        parameter = getattr(model, name)
        expected = float((parameter.detach() * parameter.grad).abs().sum())
        assert found[name] == pytest.approx(expected, rel=1e-6)
    assert found["idle"] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_stored_dtype_moves_alpha_by_a_few_percent(tmp_path: Path, dtype: str) -> None:
    family = llama_family(tmp_path, experts=2, dtype=dtype)
    stored, exact = (
        oracle.calibrated(family, dtype=chosen).sensitivity for chosen in ("stored", "float32")
    )
    alpha, expected = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in (stored, exact))
    np.testing.assert_allclose(alpha, expected, rtol=0.03)
    assert not np.array_equal(stored, exact)


@pytest.mark.parametrize("by", ["taylor", "fisher"])
def test_small_gradients_of_float16_do_not_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    family = llama_family(tmp_path, experts=1, dtype="float16")

    def found(dtype: torch.dtype) -> dict[str, float]:
        model = oracle.load(family, 0, dtype)
        with torch.no_grad():
            # Exact in both dtypes, and gradients of the blocks shrink to 2^-16 of what they were.
            model.lm_head.weight *= 2.0**-8
            model.model.norm.weight *= 2.0**-8
        return measure(model, oracle.samples_of(family, 0), by)

    exact = found(torch.float32)
    assert found(torch.float16) == pytest.approx(exact, rel=0.005)
    monkeypatch.setattr(sensitivity, "_FLOAT16_SCALES", (1.0,))
    assert found(torch.float16) != pytest.approx(exact, rel=0.02)


def test_a_scale_that_overflows_is_given_up(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = oracle.load(family, 0, torch.float16)
    samples = oracle.samples_of(family, 0)
    monkeypatch.setattr(sensitivity, "_FLOAT16_SCALES", (16.0,))
    expected = measure(model, samples)
    monkeypatch.setattr(sensitivity, "_FLOAT16_SCALES", (2.0**60, 16.0))
    assert measure(model, samples) == expected
    monkeypatch.setattr(sensitivity, "_FLOAT16_SCALES", (2.0**60,))
    with pytest.raises(InputError, match=r"expert 'e0': its gradients on .*, line 1 are not fin"):
        measure(model, samples)


def test_a_loss_that_is_not_finite_names_expert_and_sample(family: Family) -> None:
    model = oracle.load(family, 0)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"expert 'e0': its loss on .*t0.jsonl, line 1 is nan"):
        measure(model, oracle.samples_of(family, 0))


def test_what_is_tied_counts_once(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2, tied=True)
    found = oracle.calibrated(family)
    assert found.outside_layers == ["model.embed_tokens", "model.norm"]
    expected = oracle.sensitivity(family, 0)["model.embed_tokens"]
    assert found.outside_sensitivity[0, 0] == pytest.approx(expected, rel=1e-5)


def test_what_is_tied_has_the_name_it_is_stored_under(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2, tied=True)
    expected = oracle.calibrated(family)

    def rename(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    for expert in ("e0", "e1"):
        edit_weights(tmp_path / expert, rename)
    found = oracle.calibrated(family)
    assert found.outside_layers == ["lm_head", "model.norm"]
    np.testing.assert_array_equal(found.outside_sensitivity, expected.outside_sensitivity)


def test_experts_that_tie_beside_others_that_do_not(tmp_path: Path) -> None:
    tied = llama_family(tmp_path / "tied", experts=2, tied=True)
    family = llama_family(tmp_path / "untied", experts=2)
    apart = oracle.calibrated(family)
    (family.folder / "e1").rename(tmp_path / "old")
    (tied.folder / "e1").rename(family.folder / "e1")
    found = oracle.calibrated(family)
    assert found.order == apart.order
    np.testing.assert_array_equal(found.outside_sensitivity[0], apart.outside_sensitivity[0])
    assert found.outside_layers == ["model.embed_tokens", "model.norm", "lm_head"]
    assert found.outside_sensitivity[1, 0] == found.outside_sensitivity[1, 2]
    assert "some experts tie layers (e1)" in found.notes[0]


def test_names_without_the_models_own_prefix(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1, tied=True)
    expected = oracle.calibrated(family)

    def strip(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_weights(tmp_path / "e0", strip)
    found = oracle.calibrated(family)
    assert found.layers == ["layers.0", "layers.1", "layers.2"]
    assert found.outside_layers == ["embed_tokens", "norm"]
    np.testing.assert_array_equal(found.sensitivity, expected.sensitivity)


def test_names_that_transformers_changes_when_loading(tmp_path: Path) -> None:
    # Its checkpoints say embed_out, and transformers says lm_head.
    shape: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48}
    torch.manual_seed(0)
    model: Any = GPTNeoXForCausalLM(
        GPTNeoXConfig(**shape, num_hidden_layers=2, num_attention_heads=4)
    )
    model.save_pretrained(tmp_path)
    stored = {tensor.name for tensor in _core.Checkpoint(tmp_path).tensors}
    layers = loading.parameter_layers(model, tmp_path)
    assert layers.tied == {}
    assert set(layers.of.values()) == {layer_of(name) for name in stored}
    assert "embed_out" in layers.of.values()


def test_a_parameter_without_a_tensor_is_refused(family: Family, tmp_path: Path) -> None:
    model = oracle.load(family, 0)
    family = family.copy(tmp_path)
    edit_weights(tmp_path / "e0", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(InputError, match=r"no tensor for the layer of parameter 'model.norm.weig"):
        loading.parameter_layers(model, tmp_path / "e0")
