"""Adapters, quantised weights, vocabularies and slices in one merge, against models in float32.

Every model has a twin: the same weights, written out in float32. Merges of both are the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sensmerge
from adapters import Written, changed, scale_of
from families import Family, add_tokens, llama_family
from quantisation import fp8_blocks, int4, quantise, read
from sensmerge import Recipe

CONFIG = {"r": 4, "lora_alpha": 8}
SCHEMES = {"fp8": fp8_blocks((16, 24)), "int4": int4()}

LINEAR = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def adapter(folder: Path, base: Path, seed: int, *, magnitude: bool) -> Written:
    """An adapter of two layers and the embedding."""
    draw = np.random.default_rng(seed)
    weights = load_file(base / "model.safetensors")
    written = Written(config=CONFIG | {"use_dora": magnitude})
    for module in LINEAR:
        rows, columns = weights[f"{module}.weight"].shape
        written.factors(draw, module, rows, columns, 4, magnitude=magnitude)
    tokens, width = weights["model.embed_tokens.weight"].shape
    written.factors(
        draw, "model.embed_tokens", width, tokens, 4, magnitude=magnitude, embedding=True
    )
    written.save(folder)
    return written


def twin(model: Path, meant: dict[str, torch.Tensor], written: Written | None, out: Path) -> None:
    """Write what a model and its adapter stand for, in float32."""
    out.mkdir(parents=True)
    for path in model.iterdir():
        if "safetensors" not in path.name:
            (out / path.name).write_bytes(path.read_bytes())
    config = json.loads((out / "config.json").read_text())
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.double().numpy() for name, tensor in meant.items()}
    for module in (*LINEAR, "model.embed_tokens"):
        if written is None:
            break
        name, embedding = f"{module}.weight", "embed" in module
        scale = scale_of(CONFIG)
        weights[name] = changed(weights[name], written, module, scale=scale, embedding=embedding)
    stored = {name: torch.tensor(weight).float().contiguous() for name, weight in weights.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})


def merged(folder: Path, out: Path, recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
    done = Recipe.from_dict(recipe | {"out_dtype": "float32"}, folder=folder)
    sensmerge.merge(done, out, progress=False, sync=False)
    return read(out)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Twins are rounded to float32 before the merge.
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=2e-6 * float(tensor.abs().max())
        )


@pytest.fixture(params=SCHEMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Quantised base, e0 and e1, of which e1 has two tokens more; adapters plain and dora for base
    and e1; twins of all in ``twins``."""
    family = llama_family(tmp_path, experts=2, layers=2, dtype="bfloat16")
    add_tokens(tmp_path / "e1", "<one>", "<two>")
    scheme = SCHEMES[request.param]
    adapters = {}
    for seed, (name, on) in enumerate([("plain", "base"), ("dora", "base"), ("grown", "e1")]):
        path = tmp_path / name
        adapters[name] = adapter(path, tmp_path / on, seed, magnitude=name == "dora")
    for name in ("base", "e0", "e1"):
        meant = quantise(tmp_path / name, scheme, shards=2)
        twin(tmp_path / name, meant, None, tmp_path / "twins" / name)
        for each, on in (("plain", "base"), ("dora", "base"), ("grown", "e1")):
            if on == name:
                out = tmp_path / "twins" / f"{name}-{each}"
                twin(tmp_path / name, meant, adapters[each], out)
    assert isinstance(family, Family)
    return tmp_path


def both(folder: Path, recipe: dict[str, Any]) -> None:
    """Merge a recipe and that of its twins, and compare."""
    found = merged(folder, folder / "out", recipe)
    text = json.dumps(recipe).replace("+", "-")
    assert_same(found, merged(folder / "twins", folder / "out-of-twins", json.loads(text)))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "model_stock"])
def test_adapters_of_a_quantised_base(folder: Path, method: str) -> None:
    models = [{"model": "base+plain"}, {"model": "base+dora"}, {"model": "e0"}]
    both(folder, {"merge_method": method, "base_model": "base", "models": models})


@pytest.mark.parametrize("source", ["union", "base", "e1"])
def test_rows_by_token_of_adapted_and_quantised_models(folder: Path, source: str) -> None:
    both(
        folder,
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": "base+plain"}, {"model": "base+dora"}, {"model": "e1+grown"}],
            "tokenizer_source": source,
        },
    )


def test_padding_is_a_mean_of_adapted_rows(folder: Path) -> None:
    both(
        folder,
        {
            "merge_method": "linear",
            "models": [{"model": "base+dora"}, {"model": "e1+grown"}],
            "tokenizer": {"source": "union", "pad_to_multiple_of": 64},
        },
    )


def test_slices_of_adapted_and_quantised_models(folder: Path) -> None:
    def layers(first: int, end: int, *models: str) -> dict[str, Any]:
        return {"sources": [{"model": name, "layer_range": [first, end]} for name in models]}

    both(
        folder,
        {
            "merge_method": "linear",
            "slices": [layers(0, 2, "base+dora", "e0"), layers(1, 2, "base+plain")],
        },
    )
