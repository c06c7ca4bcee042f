"""The files of a merged adapter: what is written, what PEFT makes of it, and what is refused."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sensmerge
from adapters import PREFIX, Written
from families import tensor_family
from sensmerge import InputError, Recipe
from test_bad_input import run
from test_merge_lora import SHAPES, Family, module


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("models"))


def test_the_reader_of_models_adds_what_was_merged(family: Family) -> None:
    found = family.merge(family.recipe("dare_ties", parameters={"density": 0.6}))
    alone = {"merge_method": "linear", "models": [{"model": "base+out"}], "dtype": "float32"}
    tensors = sensmerge.merge_tensors(Recipe.from_dict(alone, folder=family.folder))
    for name, base in family.base.items():
        expected = base + found.get(name, 0.0)
        np.testing.assert_allclose(np.asarray(tensors[name]), expected, rtol=0, atol=3e-7)


def test_no_matrix_of_the_weights_size_is_formed(tmp_path: Path) -> None:
    rows, columns, rank = 1500, 2000, 4
    name = "model.layers.0.q_proj"
    tensor_family(tmp_path, experts=0, dtype="bfloat16", shapes={f"{name}.weight": (rows, columns)})
    draw = np.random.default_rng(0)
    for place in range(2):
        written = Written()
        written.factors(draw, name, rows, columns, rank)
        written.save(tmp_path / f"l{place}")
    models = [{"model": f"base+l{place}"} for place in range(2)]
    data = {"merge_method": "ties", "base_model": "base", "models": models}
    recipe = Recipe.from_dict(data, folder=tmp_path)
    tracemalloc.start()
    try:
        sensmerge.merge_lora(recipe, tmp_path / "out", progress=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    factors = 2 * rank * (rows + columns) * 8
    assert factors < peak < 12 * factors < rows * columns


def test_dtypes(family: Family, tmp_path: Path) -> None:
    half = Family(tmp_path, "bfloat16")

    def stored(source: Family, **keys: Any) -> str:
        recipe = Recipe.from_dict(source.recipe("task_arithmetic", **keys), folder=source.folder)
        sensmerge.merge_lora(recipe, source.folder / "out", progress=False, overwrite=True)
        header = (source.folder / "out" / "adapter_model.safetensors").read_bytes()
        length = int.from_bytes(header[:8], "little")
        tensors = json.loads(header[8 : 8 + length])
        (dtype,) = {each["dtype"] for key, each in tensors.items() if key != "__metadata__"}
        return str(dtype)

    assert stored(half) == "BF16"
    assert stored(half, dtype="float32") == "F32"
    assert stored(half, dtype="float32", out_dtype="float16") == "F16"
    half.written[2].save(half.folder / "l2", "float16")
    assert stored(half) == "F32"
    with pytest.raises(InputError, match="out_dtype: an adapter is written in float32, bfloat16"):
        stored(half, out_dtype="int4")


def test_config_says_what_the_adapters_say(family: Family, tmp_path: Path) -> None:
    family.merge(family.recipe("task_arithmetic"))
    config = json.loads((family.folder / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 10
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["rank_pattern"]["model.layers.1.down_proj"] == 9
    assert config["base_model_name_or_path"] == "base"
    # The first block's modules have the same last names, and are not adapted.
    assert "model.layers.3.o_proj" in config["target_modules"]
    assert "model.layers.0.o_proj" not in config["target_modules"]
    # Where they do not agree, the recipe's base.
    other = Family(tmp_path)
    other.written[0].config["base_model_name_or_path"] = "org/base"
    other.written[0].save(tmp_path / "l0")
    other.merge(other.recipe("task_arithmetic"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


def test_what_is_not_merged_says_what_to_do(
    family: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Family(tmp_path)
    draw = np.random.default_rng(0)
    name = module(1, "q_proj")

    def adapter(name_of: str, **keys: Any) -> Written:
        written = Written(config=keys)
        written.factors(draw, name, 12, 20, 4, magnitude=keys.get("use_dora", False))
        written.save(tmp_path / name_of)
        return written

    adapter("dora", use_dora=True)
    whole = adapter("whole")
    whole.tensors[f"{PREFIX}{module(2, 'o_proj')}.weight"] = np.ones((24, 24))
    whole.save(tmp_path / "whole")
    tokens = adapter("tokens", trainable_token_indices={"embed_tokens": [1, 2]})
    trained = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    tokens.tensors[trained] = np.ones((2, 20))
    tokens.save(tmp_path / "tokens")
    for broken, change in (("zero", 0.0), ("nan", math.nan)):
        written = adapter(broken)
        written.tensors[f"{PREFIX}{name}.lora_B.weight"][:] = change
        written.save(tmp_path / broken)
    fitting = adapter("unfit")
    fitting.tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ones((13, 4))
    fitting.save(tmp_path / "unfit")
    (tmp_path / "inner").mkdir()
    tensor_family(tmp_path / "inner", experts=0, dtype="float32", shapes=SHAPES)

    def refused(data: dict[str, Any], *said: str) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps(data))
        before = sorted(tmp_path.iterdir())
        assert run("merge-lora", str(recipe), str(tmp_path / "out"), "--quiet") == 2
        error = capfd.readouterr().err
        for words in said:
            assert words in error, error
        assert sorted(tmp_path.iterdir()) == before

    def with_second(model: str, method: str = "ties", **keys: Any) -> dict[str, Any]:
        models = [{"model": "base+l0"}, {"model": model}]
        return own.recipe(method, models=models, **keys)

    refused(
        with_second("base", "linear"), "model 'base': has no adapter; write base+ADAPTER, or merge "
        "such models as wholes with `sensmerge merge`", "extract-lora",
    )  # fmt: skip
    refused(with_second("inner/base+l1"), "model 'inner/base+l1': its adapter is added to ",
            "name the same model before every '+'")  # fmt: skip
    refused(with_second("base+l1", base_model="base+l0"), "is not the base base+l0 with a further")
    refused(with_second("base+dora"), "is of a DoRA adapter", "with `sensmerge merge`: 'base+dora'")
    refused(with_second("base+whole"), "is stored whole (modules_to_save", "with `sensmerge merge`")
    refused(with_second("base+tokens"), "rows of trained tokens", "with `sensmerge merge`")
    refused(with_second("base+zero"), "model 'base+zero': its adapters change nothing", "Remove it")
    refused(with_second("base+nan"), "lora_B.weight': holds NaN or infinite values")
    refused(with_second("base+unfit"), "has a change of [13, 20]", "made for another model")
    refused(with_second("base+l1", "widen"), "merge_method: widen", "`sensmerge merge`")
    refused(with_second("base+l1", "regmean"), "merge_method: regmean needs statistics")
    refused(with_second("base+l1", align="permutation"), "align: ", "remove the key")
    refused(
        with_second("base+l1", parameters={"lambda": "auto"}), "parameters.lambda", "write a number"
    )
    layers = {"layer_range": [0, 4]}
    sliced = [{"sources": [{"model": "base+l0"} | layers, {"model": "base+l1"} | layers]}]
    refused({"merge_method": "ties", "base_model": "base", "slices": sliced}, "list models, or")
    refused(with_second("base+l1", parameters={"weight": 0}), "leaves nothing of any change")


def test_the_folder_is_written_as_a_whole(
    family: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Family(tmp_path)
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "new" / "out"
    recipe.write_text(json.dumps(own.recipe("ties", tokenizer_source="base")))
    assert run("merge-lora", str(recipe), str(out), "--rank", "2") == 0
    said = capfd.readouterr()
    assert "modules of rank up to 2" in said.out
    assert "note: rank: 2 keeps " in said.err
    assert "note: tokenizer_source: without effect" in said.err
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert list(out.parent.iterdir()) == [out]
    before = (out / "adapter_model.safetensors").read_bytes()
    assert run("merge-lora", str(recipe), str(out)) == 2
    assert "not empty" in capfd.readouterr().err
    assert (out / "adapter_model.safetensors").read_bytes() == before
    assert run("merge-lora", str(recipe), str(out), "--force", "--quiet") == 0
    assert (out / "adapter_model.safetensors").read_bytes() != before
    assert run("merge-lora", str(recipe), str(tmp_path / "l1"), "--force") == 2
    with pytest.raises(InputError, match="rank: 0 is no rank"):
        sensmerge.merge_lora(recipe, out, 0)


ADAPTED = {
    "llama": ["q_proj", "o_proj", "down_proj", "embed_tokens", "lm_head"],
    "gpt2": ["c_attn", "c_proj", "wte"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", list(ADAPTED))
def test_peft_adds_what_was_merged(tmp_path: Path, architecture: str) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    from families import llama_family
    from test_adapters_peft import merged_by_peft, write_adapter, write_gpt2

    if architecture == "llama":
        llama_family(tmp_path, experts=0, layers=2)
    else:
        write_gpt2(tmp_path / "base")
    kinds = ADAPTED[architecture]
    for place, target in enumerate((kinds, kinds[1:])):
        keys: dict[str, Any] = {"rank_pattern": {kinds[1]: 3}} if place == 0 else {}
        if architecture == "gpt2":
            keys["fan_in_fan_out"] = True
        write_adapter(
            tmp_path / "base", tmp_path / f"l{place}", torch.float32, place,
            target_modules=target, use_rslora=place == 1, **keys,
        )  # fmt: skip
    models = [
        {"model": f"base+l{place}", "parameters": {"weight": weight}}
        for place, weight in enumerate((0.75, -0.5))
    ]
    data = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    recipe = Recipe.from_dict(data, folder=tmp_path)
    result = sensmerge.merge_lora(recipe, tmp_path / "out", progress=False)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["fan_in_fan_out"] == (architecture == "gpt2")
    assert set(config["target_modules"]) == set(kinds)
    assert len(set(result.ranks.values())) > 1
    changed = {}
    base = load_torch(tmp_path / "base" / "model.safetensors")
    for name in ("l0", "l1", "out"):
        merged_by_peft(tmp_path / "base", [tmp_path / name], tmp_path / "m", torch.float32)
        after = load_torch(tmp_path / "m" / "model.safetensors")
        changed[name] = {key: after[key] - tensor for key, tensor in base.items()}
    for key, found in changed["out"].items():
        expected = 0.75 * changed["l0"][key] - 0.5 * changed["l1"][key]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, msg=key)
    assert sum(bool(each.any()) for each in changed["out"].values()) == len(result.ranks)
