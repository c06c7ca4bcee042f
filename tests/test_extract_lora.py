"""A task vector as a LoRA adapter: against exact decompositions, and as PEFT reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import sensmerge
from families import Family, llama_family
from sensmerge import InputError
from sensmerge.lora import lowrank
from sensmerge.lora.lowrank import decompose
from sensmerge.lora.stored import rounded
from test_bad_input import run

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return llama_family(tmp_path_factory.mktemp("models"), experts=1, layers=2)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def restored(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The base's tensors with the adapter merged by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = PeftModel.from_pretrained(model, adapter)
    merged: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return merged


def relative(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor) -> float:
    return float((found - expected).norm() / (expected - base).norm())


def best_error(delta: torch.Tensor, rank: int) -> float:
    """The least error that any matrix of this rank can have, by that of the whole."""
    s = torch.linalg.svdvals(delta.double())
    return float(s[rank:].norm() / s.norm())


def test_peft_restores_the_expert(models: Family, tmp_path: Path) -> None:
    base, expert = models.folder / "base", models.folder / "e0"
    norms = ["input_layernorm", "post_attention_layernorm", "model.norm"]
    found = sensmerge.extract_lora(
        expert, base, tmp_path / "lora", 200, modules_to_save=norms, progress=False
    )
    assert found.error < 1e-3
    merged, expected = restored(base, tmp_path / "lora"), tensors(expert)
    assert set(expected) <= set(merged)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=2e-5, msg=name)
    assert not [note for note in found.notes if "left out" in note]
    assert len(found.saved) == 5


@pytest.mark.parametrize("rank", [1, 4])
def test_to_the_accuracy_of_the_rank(models: Family, tmp_path: Path, rank: int) -> None:
    base, expert = models.folder / "base", models.folder / "e0"
    found = sensmerge.extract_lora(expert, base, tmp_path / "lora", rank, progress=False)
    merged, before, after = restored(base, tmp_path / "lora"), tensors(base), tensors(expert)
    lacking: dict[str, float] = {}
    for name, tensor in after.items():
        delta = tensor - before[name]
        if tensor.ndim == 2:
            error = relative(merged[name], tensor, before[name])
            assert error == pytest.approx(best_error(delta, rank), rel=0.02), name
            whole, lost = found.lost[name]
            assert (lost / whole) ** 0.5 == pytest.approx(error, abs=1e-3)
        else:
            torch.testing.assert_close(merged[name], before[name], rtol=0, atol=0)
            lacking[name] = float(delta.norm())
    (note,) = [note for note in found.notes if "left out" in note]
    total = sum(float((after[name] - before[name]).norm() ** 2) for name in after) ** 0.5
    share = sum(each**2 for each in lacking.values()) ** 0.5 / total
    assert note.startswith(f"left out, with {share:.2g} of the task vector's norm: ")
    lines = found.describe().splitlines()
    assert lines[1].split()[0] == "model.layers.0"
    assert f"{found.layers['model.layers.1']:.4f}" in lines[2]


def test_what_is_asked_for(models: Family, tmp_path: Path) -> None:
    base, expert = models.folder / "base", models.folder / "e0"
    arguments = ["extract-lora", str(expert), str(base), "-o", str(tmp_path / "lora")]
    arguments += ["--rank", "8", "-i", r"self_attn|mlp", "-e", "o_proj", "-e", r"layers\.1\.mlp"]
    arguments += ["--modules-to-save", "lm_head", "--dtype", "bfloat16", "--quiet"]
    assert run(*arguments) == 0
    found = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    modules = {
        name.removeprefix(PREFIX).partition(".lora_")[0] for name in found if ".lora_" in name
    }
    assert set(config["target_modules"]) == modules
    assert "model.layers.0.mlp.up_proj" in modules
    assert not [name for name in modules if "o_proj" in name or "layers.1.mlp" in name]
    assert "model.embed_tokens" not in modules
    assert config["modules_to_save"] == ["lm_head"]
    torch.testing.assert_close(
        found[f"{PREFIX}lm_head.weight"], tensors(expert)["lm_head.weight"], rtol=0, atol=0
    )
    down = found[f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert down.dtype == torch.bfloat16
    assert down.shape == (8, 32)
    assert run(*arguments) == 2
    assert run(*arguments, "--force") == 0


def test_ranks_follow_the_singular_values(models: Family, tmp_path: Path) -> None:
    base, expert = models.folder / "base", models.folder / "e0"
    found = sensmerge.extract_lora(
        expert, base, tmp_path / "lora", 30, sv_epsilon=0.45, progress=False
    )
    before, after = tensors(base), tensors(expert)
    for module, rank in found.ranks.items():
        delta = after[f"{module}.weight"] - before[f"{module}.weight"]
        assert rank == min(30, int((torch.linalg.svdvals(delta) > 0.45).sum())), module
    assert len(set(found.ranks.values())) > 1
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == max(found.ranks.values())
    assert config["rank_pattern"] == config["alpha_pattern"]
    merged = restored(base, tmp_path / "lora")
    for name, (whole, lost) in found.lost.items():
        error = relative(merged[name], after[name], before[name])
        assert error == pytest.approx((lost / whole) ** 0.5, abs=2e-3), name


def test_transposed_layers_and_tied_embeddings(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 50,
        "n_positions": 16,
        "n_embd": 12,
        "n_layer": 1,
        "n_head": 2,
    }
    model = GPT2LMHeadModel(GPT2Config(**shape))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "expert")
    found = sensmerge.extract_lora(
        tmp_path / "expert", tmp_path / "base", tmp_path / "lora", 12, progress=False
    )
    merged = restored(tmp_path / "base", tmp_path / "lora")
    for name, tensor in tensors(tmp_path / "expert").items():
        if tensor.ndim == 2:
            key = name if name in merged else f"transformer.{name}"
            torch.testing.assert_close(merged[key], tensor, rtol=0, atol=2e-5, msg=name)
    torch.testing.assert_close(merged["lm_head.weight"], merged["transformer.wte.weight"])
    assert any("the output head is tied to it" in note for note in found.notes)


def test_refusals(models: Family, tmp_path: Path) -> None:
    base, expert = models.folder / "base", models.folder / "e0"

    def refused(said: str, expert: Path, base: Path, rank: int = 4, **options: Any) -> None:
        out = tmp_path / "lora"
        with pytest.raises(InputError, match=said):
            sensmerge.extract_lora(expert, base, out, rank, progress=False, **options)
        assert not (tmp_path / "lora").exists()

    refused("rank: 0 is no rank", expert, base, rank=0)
    refused("include: is not a regular expression", expert, base, include=["("])
    refused("dtype: unknown value 'int8'", expert, base, dtype="int8")
    refused("differs from .* in no matrix", base, base)
    refused("differs from .* in no matrix", expert, base, exclude=["."])
    broken = tmp_path / "broken.safetensors"
    save_file({name: tensor / 0 for name, tensor in tensors(expert).items()}, broken)
    refused("holds NaN or infinite", broken, base)


sizes = st.integers(1, 70)


@given(height=sizes, width=sizes, rank=sizes, inner=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_decompositions_are_nearly_the_best(
    height: int, width: int, rank: int, inner: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    matrix: NDArray[Any] = random.normal(size=(height, inner)) @ random.normal(size=(inner, width))
    matrix = (matrix + 0.3 * random.normal(size=matrix.shape)).astype(np.float32)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    whole = float((exact**2).sum())
    before = lowrank._PIECE
    # Small pieces, so that the matrix is read in several, and projected.
    lowrank._PIECE = 300
    try:
        found = decompose(lambda a, b: matrix[a:b], matrix.shape, rank, "name")
        again = decompose(lambda a, b: matrix[a:b], matrix.shape, rank, "name")
    finally:
        lowrank._PIECE = before
    rank = min(rank, height, width)
    assert found.u.shape == (height, rank)
    assert found.v.shape == (rank, width)
    lost = float((exact[rank:] ** 2).sum())
    product = (found.u * found.s) @ found.v
    error = float(((matrix - product).astype(np.float64) ** 2).sum())
    assert error <= 1.05 * lost + 1e-9 * whole
    assert whole - found.squared == pytest.approx(error, abs=1e-5 * whole)
    np.testing.assert_array_equal(found.u, again.u)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30))
def test_rounding_is_torchs(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    floats = floats[np.abs(floats) < 3e38]
    bits = torch.tensor(floats).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(rounded(floats, "bfloat16"), bits)
