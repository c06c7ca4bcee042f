"""The merged folder: its files, and that transformers loads it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sensmerge
from families import Family, llama_family, tensor_family
from sensmerge import Calibration, Recipe
from sensmerge.recipe.numbers import resolve
from sensmerge.scaling.mergekit import mergekit_recipe


def merge(family: Family, out: Path, method: str = "task_arithmetic", **keys: Any) -> Any:
    recipe = Recipe.from_dict(family.recipe(method, **keys), folder=family.folder)
    return sensmerge.merge(recipe, out, progress=False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_transformers_loads_it_and_generates(
    tmp_path: Path, dtype: str, tied: bool, shard: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family = llama_family(tmp_path, dtype=dtype, tied=tied, max_shard_size=shard, layers=2)
    data = family.recipe("ties", parameters={"density": 0.5}, sensitivity={"samples": 2})
    recipe = Recipe.from_dict(data, folder=tmp_path)
    result = sensmerge.merge(recipe, tmp_path / "out", progress=False, max_shard_size=shard)
    assert (len(result.shards) > 1) == (shard != "5GB")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, use_safetensors=True
    )
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("w1 w2 w3", return_tensors="pt")
    ids = model.generate(
        input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=3,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert ids.shape[1] > prompt["input_ids"].shape[1]


def test_what_stands_beside_the_weights(family: Family, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = merge(family, out, sensitivity={"samples": 2, "temperature": 0.01})
    base = family.folder / "base"
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    again = Recipe.load(out / "sensmerge_recipe.yaml")
    assert again.model_dump() == Recipe.from_dict(family.recipe(
        sensitivity={"samples": 2, "temperature": 0.01})).model_dump()  # fmt: skip
    kept = Calibration.load(out / "sensmerge_calibration.json")
    np.testing.assert_array_equal(kept.sensitivity, result.calibration.sensitivity)
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "task_arithmetic with Sens-Merging" in card
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_configs_dtype_is_the_outputs(family: Family, tmp_path: Path) -> None:
    merge(family, tmp_path / "out", dtype="float32", out_dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    tensors = sensmerge._core.Checkpoint(str(tmp_path / "out")).tensors
    assert {tensor.dtype for tensor in tensors} == {"BF16"}


def test_a_larger_vocabulary_keeps_the_bases_rows(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    family = llama_family(tmp_path, experts=2)
    path = tmp_path / "e1" / "model.safetensors"
    tensors = dict(load_file(path))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name].repeat(2, 1)[:103].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config = tmp_path / "e1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 103}))
    result = merge(family, tmp_path / "out", sensitivity={"samples": 2})
    notes = " ".join(result.notes)
    assert "103 rows" in notes
    assert "common prefix" in notes
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].shape[0] == 100


def test_weights_follow_mergekits_gradients_and_filters(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shapes = {f"model.layers.{layer}.mlp.w": (4,) for layer in range(3)} | {"lm_head.w": (4,)}
    base, (expert,) = tensor_family(tmp_path, experts=1, dtype="float32", shapes=shapes)
    weight = [{"filter": "lm_head", "value": 5}, {"value": [0, 1, 4]}]
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "e0", "parameters": {"weight": weight}}],
    }
    sensmerge.merge(Recipe.from_dict(data, folder=tmp_path), tmp_path / "out", progress=False)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in zip(shapes, [0, 1, 4, 5], strict=True):
        expected = base[name] + value * (expert[name] - base[name])
        np.testing.assert_allclose(merged[name].numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("layers", [1, 2, 3, 22])
def test_the_mergekit_recipe_gives_the_same_blocks(layers: int) -> None:
    from test_scaling import measured

    calibration = measured(2, layers)
    names = [f"model.layers.{layer}.w" for layer in range(layers)] + ["lm_head.weight"]
    models = [{"model": "e0", "parameters": {"weight": 0.5}}, {"model": "e1"}]
    recipe = Recipe.from_dict(
        {"merge_method": "ties", "base_model": "b", "models": models, "sensitivity": {},
         "parameters": {"density": 0.3}, "semantics": "mergekit", "seed": 3}
    )  # fmt: skip
    found = sensmerge.coefficients(calibration, recipe)
    text = mergekit_recipe(recipe, found, names)
    plain = Recipe.from_dict(read_yaml(text))
    assert plain.sensitivity is None
    assert plain.parameters.density == 0.3
    for place, expert in enumerate(plain.experts):
        for layer in range(layers):
            position = layer / (layers - 1) if layers > 1 else 1.0
            value = resolve(expert.parameters.weight, f"model.layers.{layer}.w", position, 1.0)
            expected = [0.5, 1.0][place] * found.scale[place, layer]
            assert value == pytest.approx(expected, rel=1e-12)
        assert resolve(expert.parameters.weight, "lm_head.weight", 0, 1.0) == [0.5, 1.0][place]


def read_yaml(text: str) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)


LARGE = {f"model.layers.{layer}.w": (3000, 3000) for layer in range(8)}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    tensor_family(folder, experts=2, dtype="bfloat16", shapes=LARGE)
    return folder


def recipe_file(folder: Path, method: str, semantics: str) -> Path:
    models = [{"model": f"e{place}", "parameters": {"density": 0.3}} for place in range(2)]
    path = folder / f"{method}-{semantics}.yaml"
    path.write_text(
        json.dumps(
            {
                "merge_method": method,
                "base_model": "base",
                "models": models,
                "semantics": semantics,
            }
        )
    )
    return path


# Writable mappings, used or not, are an upper bound of a process's anonymous memory, so that a
# limit on them also limits the highest peak, however short.
LIMITED = """
import resource, sys
import sensmerge

limit = 256 * 10**6
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sensmerge.merge(sys.argv[1], sys.argv[2], threads=4, progress=False, sync=False)
print("merged")
bytearray(limit)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits data memory")
@pytest.mark.parametrize("semantics", ["mergekit", "original"])
@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
)
def test_memory_is_bounded(large: Path, tmp_path: Path, method: str, semantics: str) -> None:
    """At most 256 MB anonymous, for a model whose tensors would need 860 MB in float32."""
    path = recipe_file(large, method, semantics)
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout == "merged\n", child.stderr
    # Check that the limit works.
    assert "MemoryError" in child.stderr


# A model whose merge takes many minutes on any machine: 256 GB, in tensors of a window each.
ENDLESS = {f"model.layers.{layer}.w": (8192, 8192) for layer in range(96)}


def hollow_model(folder: Path) -> None:
    """A model of those tensors in a sparse file: zeros that take no space on the disk."""
    size = 2 * 8192 * 8192
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [place * size, (place + 1) * size]}
        for place, (name, shape) in enumerate(ENDLESS.items())
    }
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        # One entry is not zero, since a model of zeros is refused after a search through all of it.
        file.write(len(text).to_bytes(8, "little") + text + b"\x80\x3f")
        file.truncate(8 + len(text) + size * len(ENDLESS))


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_stops_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    for name in ("base", "e0", "e1"):
        hollow_model(tmp_path / name)
    # Thresholds over the whole model come first: nothing is written before they are known.
    path, out = recipe_file(tmp_path, "ties", "original"), tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-m", "sensmerge.cli", "merge", str(path), str(out), "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        # Once its folder exists the merge has begun, and it is far from its end.
        while not out.exists():
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        # A merge that did not stop would go on for much longer.
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not out.exists()
