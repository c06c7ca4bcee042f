"""Models whose tensors do not match are refused by what is probably the matter, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sensmerge
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


def merged(folder: Path, *names: str, **keys: Any) -> tuple[Tensors, list[str]]:
    """The mean of these models, and the notes on it."""
    data = {"merge_method": "linear", "models": [{"model": name} for name in names]} | keys
    recipe = Recipe.from_dict(data, folder=folder)
    done = sensmerge.merge(recipe, folder / "merged", progress=False, overwrite=True)
    return load_file(folder / "merged" / "model.safetensors"), done.notes


def numbered(names: list[str], prefix: str = "", start: float = 0.0) -> Tensors:
    """A different number in every tensor."""
    return {prefix + name: torch.full((2, 2), start + at) for at, name in enumerate(sorted(names))}


@pytest.mark.parametrize("prefix", ["transformer.", "model.language_model.", "_orig_mod."])
def test_names_that_differ_by_a_prefix_are_the_same_tensors(tmp_path: Path, prefix: str) -> None:
    head = {"lm_head.weight": torch.full((2, 2), 3.0)}
    write(tmp_path / "bare", numbered(BODY) | head)
    write(tmp_path / "long", numbered(BODY, prefix, 2.0) | head)
    of_bare, notes = merged(tmp_path, "bare", "long")
    assert {name: float(tensor[0, 0]) for name, tensor in of_bare.items()} == {
        "lm_head.weight": 3.0,
        **{name: at + 1.0 for at, name in enumerate(sorted(BODY))},
    }
    assert any(f"names start with '{prefix}'" in note for note in notes)
    if prefix != "_orig_mod.":
        of_long, notes = merged(tmp_path, "long", "bare")
        assert set(of_long) == {"lm_head.weight", *(prefix + name for name in BODY)}
        assert all(torch.equal(of_long[prefix + name], of_bare[name]) for name in BODY)
        assert any(f"names lack the '{prefix}'" in note for note in notes)


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "a data-parallel run"),
        ("base_model.model.", "PEFT"),
    ],
)
def test_an_output_does_not_get_a_wrappers_names(tmp_path: Path, prefix: str, wrapper: str) -> None:
    said = refusal(tmp_path, tensors(prefix=prefix), tensors())
    assert f"; names in base start with '{prefix}', which {wrapper} left there: save the" in said


def test_tensors_that_only_some_models_have(tmp_path: Path) -> None:
    names = ["a.weight", "b.weight", "mtp.weight"]
    write(tmp_path / "one", numbered(names))
    write(tmp_path / "two", numbered([*names[:2], "vision.weight"], "", 4.0))
    with_base, notes = merged(tmp_path, "one", "two", missing="base")
    assert {name: float(tensor[0, 0]) for name, tensor in with_base.items()} == {
        "a.weight": 2.0, "b.weight": 3.0, "mtp.weight": 2.0,
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    left_out = f"{two}: 'vision.weight' that {one} lacks; left out"
    assert left_out in notes
    assert f"{two}: lacks 'mtp.weight' that {one} has; those of {one} stand in for them" in notes
    skipped, notes = merged(tmp_path, "one", "two", missing="skip")
    assert set(skipped) == {"a.weight", "b.weight"}
    assert left_out in notes
    assert f"{two}: lacks 'mtp.weight' that {one} has; the output has none of them" in notes


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
        "model, so that fine-tunes lack it: write missing: base to keep it as it is, or missing: "
        "skip to leave it out"
    )
    said = planned(tmp_path, "one", "base")
    assert said.startswith(f"base: tensor '{min(dropped)}': is not in one, like ")
    assert "missing: skip to leave it out" in said


def test_causal_masks(tmp_path: Path) -> None:
    masks = {
        "model.layers.0.attn.bias": torch.ones(1, 1, 3, 3),
        "model.layers.1.attention.masked_bias": torch.tensor(-1e9),
    }
    said = refusal(tmp_path, tensors() | masks, tensors())
    assert said == (
        "one: tensor 'model.layers.0.attn.bias': is missing, like 1 more that base has; it is a "
        "causal mask, which old checkpoints store and which is no parameter: save base again "
        f"{AGAIN}, which leaves it out, or write missing: skip"
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
        "different architectures, or one was saved in part; missing: base or missing: skip in the "
        "recipe merge what both have"
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
