"""Models whose tensors do not match are refused by what is probably the matter, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from families import llama_family
from sensmerge import InputError, Recipe, workflow

Tensors = dict[str, torch.Tensor]

AGAIN = "(AutoModelForCausalLM's from_pretrained and save_pretrained)"
BODY = [f"model.layers.{block}.{name}.weight" for block in range(2) for name in ("attn", "mlp")]
NAMES = ["lm_head.weight", "model.embed_tokens.weight", *BODY]


def tensors(names: list[str] = NAMES, prefix: str = "") -> Tensors:
    return {prefix + name: torch.ones(4, 4) for name in names}


def write(folder: Path, content: Tensors, **config: Any) -> None:
    folder.mkdir()
    save_file(content, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))


def refusal(folder: Path, base: Tensors, expert: Tensors) -> str:
    """What is said of these two models; folders are named as in a recipe."""
    write(folder / "base", base)
    write(folder / "one", expert)
    return planned(folder, "base", "one")


def planned(folder: Path, *names: str, method: str = "linear") -> str:
    data = {"merge_method": method, "models": [{"model": name} for name in names]}
    recipe = Recipe.from_dict(data, folder=folder)
    with pytest.raises(InputError) as refused:
        workflow.plan(recipe)
    return str(refused.value).replace(f"{folder}/", "")


def test_names_that_differ_by_a_prefix(tmp_path: Path) -> None:
    # GPT-2 as published, and as transformers saves it; the old one has masks beside.
    old = tensors(BODY) | {"model.layers.0.attn.bias": torch.ones(1, 1, 3, 3)}
    new = tensors(BODY, "transformer.")
    said = refusal(tmp_path, old, new)
    assert said == (
        "one: tensor 'transformer.model.layers.0.attn.weight': is not in base, like 3 more; names "
        "in one start with 'transformer.', and those in base are the same without it: save both "
        f"alike {AGAIN}"
    )
    assert "names in one start with 'transformer.'" in planned(tmp_path, "one", "base")


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "a data-parallel run"),
        ("base_model.model.", "PEFT"),
        ("module._orig_mod.", "a data-parallel run"),
    ],
)
def test_names_that_carry_a_wrapping(tmp_path: Path, prefix: str, wrapper: str) -> None:
    said = refusal(tmp_path, tensors(), tensors(prefix=prefix))
    assert said == (
        f"one: tensor '{prefix}lm_head.weight': is not in base, like 5 more; names in one start "
        f"with '{prefix}', which {wrapper} left there: save the model inside the wrapper, or take "
        "the prefix off"
    )


def test_an_adapter_is_no_wrapping(tmp_path: Path) -> None:
    prefix = "base_model.model."
    adapter = {f"{prefix}{BODY[0]}.lora_A.default.weight": torch.ones(2, 4)}
    said = refusal(tmp_path, tensors(), tensors(prefix=prefix) | adapter)
    assert said.endswith(
        "one holds tensors of a LoRA adapter: merge it into its base first (PEFT's "
        "merge_and_unload)"
    )


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("model.layers.61", ["eh_proj.weight", "enorm.weight", "mlp.weight"]),
        ("mtp", ["fc.weight", "layers.0.mlp.weight"]),
        ("model.mtp_layers", ["0.mlp.weight", "0.input_proj.weight"]),
    ],
)
def test_layers_for_multi_token_prediction(tmp_path: Path, layers: str, names: list[str]) -> None:
    dropped = tensors([f"{layers}.{name}" for name in names])
    said = refusal(tmp_path, tensors() | dropped, tensors())
    assert said == (
        f"one: tensor '{min(dropped)}': is missing, like {len(names) - 1} more that base has; "
        f"'{layers}' is for multi-token prediction, which transformers leaves out when it loads a "
        f"model, so that fine-tunes lack it: save base again {AGAIN}, which leaves it out there too"
    )
    said = planned(tmp_path, "one", "base")
    assert said.startswith(f"base: tensor '{min(dropped)}': is not in one, like ")
    assert "save base again" in said


def test_causal_masks(tmp_path: Path) -> None:
    masks = {
        "model.layers.0.attn.bias": torch.ones(1, 1, 3, 3),
        "model.layers.1.attention.masked_bias": torch.tensor(-1e9),
    }
    said = refusal(tmp_path, tensors() | masks, tensors())
    assert said == (
        "one: tensor 'model.layers.0.attn.bias': is missing, like 1 more that base has; it is a "
        "causal mask, which old checkpoints store and which is no parameter: save base again "
        f"{AGAIN}, which leaves it out"
    )
    bias = {"model.layers.0.attn.bias": torch.ones(4)}
    write(tmp_path / "biased", tensors() | bias)
    assert "causal mask" not in planned(tmp_path, "biased", "one")


def test_a_head_that_only_one_model_has(tmp_path: Path) -> None:
    said = refusal(tmp_path, tensors(NAMES[1:]), tensors())
    advice = (
        "it is the output head: if that of {0} is tied to its input embedding, as Gemma's is "
        'without being said, write "tie_word_embeddings": true into {0}\'s config.json; otherwise '
        "one of the two was saved without its head"
    )
    assert said == f"one: tensor 'lm_head.weight': is not in base; {advice.format('one')}"
    said = planned(tmp_path, "one", "base")
    assert said == (
        f"base: tensor 'lm_head.weight': is missing, and one has it; {advice.format('base')}"
    )
    # The advice works.
    (tmp_path / "base" / "config.json").write_text('{"tie_word_embeddings": true}')
    models = [{"model": "one"}, {"model": "base"}]
    workflow.plan(Recipe.from_dict({"merge_method": "linear", "models": models}, tmp_path))


def test_models_that_have_little_in_common(tmp_path: Path) -> None:
    said = refusal(tmp_path, tensors(), tensors(["encoder.weight", "decoder.weight"]))
    assert said == (
        "one: tensor 'decoder.weight': is not in base, like 1 more; the two are models of "
        "different architectures, or one was saved in part"
    )


QUANTISED = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, torch.uint8, "bitsandbytes, 4 bit"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, torch.int8, "bitsandbytes, 8 bit"),
    (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        torch.uint8,
        "compressed-tensors, nvfp4-pack-quantized",
    ),
    ({"quant_method": "gptq", "bits": 4}, torch.int32, "gptq, 4 bit"),
    ({}, torch.int32, "by an unnamed method"),
]


@pytest.mark.parametrize(("config", "dtype", "said"), QUANTISED)
def test_quantised_models_are_named_with_their_method(
    tmp_path: Path, config: dict[str, Any], dtype: torch.dtype, said: str
) -> None:
    packed = tensors() | {BODY[0]: torch.ones(4, 4).to(dtype)}
    write(tmp_path / "base", tensors())
    for name in ("one", "two"):
        write(tmp_path / name, packed, quantization_config=config)
    advice = "convert it to bfloat16 first"
    if config.get("quant_method") == "bitsandbytes":
        advice = "load it with transformers, call dequantize() and save_pretrained()"
    lines = [
        f"{name}: is quantised ({said}, as its config.json says), which is not read: {advice}, or "
        "name the model that it was made from"
        for name in ("one", "two")
    ]
    assert planned(tmp_path, "base", "one") == lines[0]
    assert planned(tmp_path, "one", "two") == "\n".join(lines)
    # A copy is no merge, and a model that was converted back is no quantised one.
    write(tmp_path / "back", tensors(), quantization_config=config)
    for method, names in (("passthrough", ["one"]), ("linear", ["base", "back"])):
        models = [{"model": name} for name in names]
        workflow.plan(Recipe.from_dict({"merge_method": method, "models": models}, tmp_path))


def test_models_that_cannot_be_measured(tmp_path: Path) -> None:
    from sensmerge import calibrate

    family = llama_family(tmp_path, experts=2, layers=1)
    recipe = Recipe.from_dict(family.recipe(sensitivity={}), folder=tmp_path)
    path = tmp_path / "e1" / "config.json"
    before = path.read_text()
    custom = {"model_type": "tinyown", "auto_map": {"AutoConfig": "own.Own"}}
    path.write_text(json.dumps(json.loads(before) | custom))
    with pytest.raises(
        InputError, match=r"e1: its config\.json has model_type 'tinyown', .* merge"
    ):
        calibrate(recipe, progress=False)
    path.write_text(json.dumps(json.loads(before) | {"quantization_config": {"bits": 4}}))
    save_file({"x": torch.ones(3, dtype=torch.int32)}, tmp_path / "e1" / "model.safetensors")
    with pytest.raises(InputError, match=r"e1: is quantised \(by an unnamed method, 4 bit"):
        calibrate(recipe, progress=False)
