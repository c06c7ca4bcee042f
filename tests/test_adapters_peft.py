"""Adapters that PEFT writes give the weights that PEFT merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import sensmerge
from families import llama_family, word_tokenizer
from sensmerge import Recipe

LINEAR = ["q_proj", "v_proj", "down_proj"]


def write_gpt2(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=48
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_adapter(model: Path, folder: Path, dtype: torch.dtype, seed: int = 0, **keys: Any) -> Any:
    """Train nothing: give the factors of a new adapter random entries, and save it."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **keys)
    adapted = peft.get_peft_model(loaded, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
                if "magnitude" in name:
                    parameter.abs_().add_(0.1)
    adapted.save_pretrained(folder)


def merged_by_peft(model: Path, adapters: list[Path], out: Path, dtype: torch.dtype) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    for adapter in adapters:
        loaded = peft.PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    loaded.save_pretrained(out)


def merged(folder: Path, model: str, **keys: Any) -> dict[str, torch.Tensor]:
    data = {"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 1}}]}
    recipe = Recipe.from_dict(data | keys, folder=folder)
    sensmerge.merge(recipe, folder / "out", progress=False, sync=False, overwrite=True)
    return load_file(folder / "out" / "model.safetensors")


def ulps(one: torch.Tensor, other: torch.Tensor) -> int:
    """The largest distance of two bfloat16 tensors in units of their last place."""
    ordered = [
        torch.where(bits < 0, -(bits & 0x7FFF), bits)
        for bits in (tensor.view(torch.int16).int() for tensor in (one, other))
    ]
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    llama_family(folder / "llama", experts=0)
    llama_family(folder / "biased", experts=0, attention_bias=True)
    llama_family(folder / "tied", experts=0, tied=True)
    write_gpt2(folder / "gpt2" / "base")
    return folder


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": LINEAR}),
    "rslora": ("llama", {"target_modules": LINEAR, "use_rslora": True}),
    "dora": ("llama", {"target_modules": LINEAR, "use_dora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"layers.1.self_attn.q_proj": 7, "v_proj": 2},
            "alpha_pattern": {r"layers\.0\..*": 3},
        },
    ),
    "some layers": ("llama", {"target_modules": LINEAR, "layers_to_transform": [1]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding by dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "tied embedding": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "whole modules": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "biases": ("biased", {"target_modules": ["q_proj"], "bias": "all"}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 99, 0]}),
    "convolutions": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "square convolutions": ("gpt2", {"target_modules": ["attn.c_proj"]}),
    "convolutions by dora": ("gpt2", {"target_modules": ["c_attn"], "use_dora": True}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_peft_merges(models: Path, tmp_path: Path, case: str) -> None:
    family, keys = CASES[case]
    base = models / family / "base"
    write_adapter(base, tmp_path / "lora", torch.float32, **keys)
    merged_by_peft(base, [tmp_path / "lora"], tmp_path / "peft", torch.float32)
    found = merged(tmp_path, f"{base}+lora")
    expected = load_file(tmp_path / "peft" / "model.safetensors")
    assert found.keys() == expected.keys()
    before = load_file(base / "model.safetensors")
    assert any(not torch.equal(found[name], before[name]) for name in found)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore")
def test_two_adapters_are_merged_one_after_the_other(models: Path, tmp_path: Path) -> None:
    base = models / "llama" / "base"
    write_adapter(base, tmp_path / "a", torch.float32, target_modules=LINEAR)
    write_adapter(base, tmp_path / "b", torch.float32, 1, target_modules=["q_proj"], use_dora=True)
    merged_by_peft(base, [tmp_path / "a", tmp_path / "b"], tmp_path / "peft", torch.float32)
    found = merged(tmp_path, f"{base}+a+b")
    for name, tensor in load_file(tmp_path / "peft" / "model.safetensors").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore")
# Not of embeddings, whose change PEFT rounds before it adds it, and not of DoRA, whose norms it rounds.
@pytest.mark.parametrize("case", ["plain", "rslora", "patterns", "whole modules"])
def test_in_bfloat16_within_an_ulp(tmp_path: Path, case: str) -> None:
    base = llama_family(tmp_path, experts=0, dtype="bfloat16").folder / "base"
    write_adapter(base, tmp_path / "lora", torch.bfloat16, **CASES[case][1])
    merged_by_peft(base, [tmp_path / "lora"], tmp_path / "peft", torch.bfloat16)
    found = merged(tmp_path, "base+lora")
    for name, tensor in load_file(tmp_path / "peft" / "model.safetensors").items():
        assert ulps(found[name], tensor) <= 1, name


@pytest.mark.filterwarnings("ignore")
def test_a_merge_in_bfloat16_is_that_of_merged_copies(tmp_path: Path) -> None:
    base = llama_family(tmp_path, experts=0, dtype="bfloat16").folder / "base"
    for seed, name in enumerate(("a", "b")):
        write_adapter(base, tmp_path / name, torch.bfloat16, seed, target_modules=LINEAR)
        merged_by_peft(base, [tmp_path / name], tmp_path / f"copy-{name}", torch.bfloat16)

    def of(models: list[str]) -> dict[str, torch.Tensor]:
        data = {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": model} for model in models],
            "parameters": {"weight": 0.5},
        }
        recipe = Recipe.from_dict(data, folder=tmp_path)
        sensmerge.merge(recipe, tmp_path / "out", progress=False, sync=False, overwrite=True)
        return load_file(tmp_path / "out" / "model.safetensors")

    found, expected = of(["base+a", "base+b"]), of(["copy-a", "copy-b"])
    copies = [load_file(tmp_path / f"copy-{name}" / "model.safetensors") for name in ("a", "b")]
    for name, tensor in expected.items():
        # An ulp of the largest number that was rounded: the copies are rounded before the merge.
        largest = torch.stack([tensor.abs(), *(copy[name].abs() for copy in copies)]).amax(0)
        error = (found[name].float() - tensor.float()).abs()
        assert bool((error <= largest.float() / 128).all()), name
