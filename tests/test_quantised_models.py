"""Quantised models, measured and run: on what their weights stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sensmerge
from families import Family, llama_family
from quantisation import Scheme, fp8_blocks, int4, quantise, read, write
from sensmerge import Recipe, calibrate, workflow
from sensmerge.calibration.mapped import mapped

SCHEMES = {"fp8": fp8_blocks((16, 24)), "int4": int4()}


def twins(folder: Path, scheme: Scheme) -> tuple[Family, Family]:
    """A family whose models are quantised, and the same dequantised."""
    family = llama_family(folder / "quantised", experts=2, layers=2, dtype="bfloat16")
    plain = family.copy(folder / "plain")
    for name in ("base", "e0", "e1"):
        meant = quantise(family.folder / name, scheme, shards=2)
        stored = {key: tensor.bfloat16().contiguous() for key, tensor in meant.items()}
        save_file(stored, plain.folder / name / "model.safetensors", metadata={"format": "pt"})
    return family, plain


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("on_disk", [False, True])
def test_weights_are_dequantised_for_torch(tmp_path: Path, name: str, *, on_disk: bool) -> None:
    family, plain = twins(tmp_path, SCHEMES[name])
    found = mapped(family.folder / "e0", on_disk=on_disk)
    wanted = read(plain.folder / "e0")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key].view(torch.int16), tensor.view(torch.int16)), key


@pytest.mark.parametrize("memory", ["whole", "stream"])
@pytest.mark.parametrize("dtype", ["stored", "float32"])
def test_calibrations_are_those_of_the_dequantised_models(
    tmp_path: Path, memory: str, dtype: str
) -> None:
    family, plain = twins(tmp_path, SCHEMES["fp8"])
    keys: dict[str, Any] = {"sensitivity": {"samples": 2, "dtype": dtype}}
    found, wanted = (
        calibrate(Recipe.from_dict(each.recipe(**keys), each.folder), memory=memory, progress=False)
        for each in (family, plain)
    )
    assert np.array_equal(found.sensitivity, wanted.sensitivity)
    assert np.array_equal(found.alignment, wanted.alignment)
    told = [note for note in found.notes if "dequantised into a temporary file" in note]
    assert bool(told) == (memory == "stream")
    # And it is taken for a merge of the same models.
    recipe = Recipe.from_dict(family.recipe(**keys), family.folder)
    workflow.merge(recipe, tmp_path / "out", calibration=found, progress=False)
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in read(tmp_path / "out").values())


def logits(model: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.no_grad():
        found: torch.Tensor = loaded(torch.tensor([[1, 5, 9, 30, 8]])).logits
    return found


def test_transformers_runs_what_is_written(tmp_path: Path) -> None:
    # Whole tiles: transformers dequantises no others on a CPU.
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "initializer_range": 0.05,
    }
    family = llama_family(tmp_path, experts=2, layers=2, dtype="bfloat16", **sizes)
    recipe = Recipe.from_dict(family.recipe(out_dtype="float8_e4m3fn"), tmp_path)
    workflow.merge(recipe, tmp_path / "out", progress=False)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["modules_to_not_convert"] == ["lm_head"]
    copy = {"merge_method": "passthrough", "models": [{"model": "out"}]}
    meant = sensmerge.merge_tensors(Recipe.from_dict(copy, tmp_path))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "meant").mkdir()
    (tmp_path / "meant" / "config.json").write_text(json.dumps(config))
    write(tmp_path / "meant", meant, None)
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "meant"))


def test_candidates_are_merged_from_what_is_meant(tmp_path: Path) -> None:
    from sensmerge.merging.manifest import request
    from sensmerge.models import open_models
    from sensmerge.search.candidates import Candidate

    found = []
    for family in twins(tmp_path, SCHEMES["fp8"]):
        recipe = Recipe.from_dict(family.recipe(), family.folder)
        models = open_models(recipe)
        candidate = Candidate(models, request(recipe, None, models), dtype="stored", threads=1)
        found.append(candidate.model.state_dict())
    one, other = found
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        # Inputs of the first are rounded once, those of the second twice.
        torch.testing.assert_close(one[name], tensor, rtol=0.02, atol=0.002)


def test_converting_copies_or_dequantises(tmp_path: Path) -> None:
    from sensmerge.merging.conversion import convert

    family, plain = twins(tmp_path, SCHEMES["int4"])
    model = family.folder / "e0"
    convert(model, tmp_path / "copy", progress=False)
    for name, tensor in read(model).items():
        bits = read(tmp_path / "copy")[name].contiguous().view(torch.uint8)
        assert torch.equal(bits, tensor.contiguous().view(torch.uint8)), name
    assert read(tmp_path / "copy").keys() == read(model).keys()
    convert(model, tmp_path / "plain-again", dtype="bfloat16", progress=False)
    for name, tensor in read(plain.folder / "e0").items():
        assert torch.equal(read(tmp_path / "plain-again")[name], tensor), name
    config = json.loads((tmp_path / "plain-again" / "config.json").read_text())
    assert "quantization_config" not in config
    convert(plain.folder / "e0", tmp_path / "fp8", dtype="float8_e4m3fn", progress=False)
    said = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["weight_block_size"]) == ("fp8", [128, 128])
