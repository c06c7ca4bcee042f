"""Merges in memory give the bytes of merges on disk, and change only the outputs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sensmerge
from families import Family, llama_family
from sensmerge import Calibration, InputError, Recipe

SHAPES = {"model.layers.0.w": (700, 999), "model.layers.1.w": (3, 5), "model.norm": (7,), "e": (0,)}

METHODS = [
    (method, semantics)
    for method in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")
    for semantics in ("mergekit", "original")
]


def state(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (0.1 * torch.randn(shape, generator=draw)).to(dtype) for name, shape in SHAPES.items()
    }


def family_of(folder: Path, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    models = {name: state(seed, dtype) for seed, name in enumerate(["base", "e0", "e1"])}
    for name, tensors in models.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    return models


def recipe_of(folder: Path, method: str, semantics: str, **extra: Any) -> Recipe:
    parameters = {"weight": 0.7} | ({"density": 0.4} if method not in PLAIN else {})
    models = [{"model": name, "parameters": parameters} for name in ("e0", "e1")]
    data = {"merge_method": method, "semantics": semantics, "models": models, "seed": 3} | extra
    if method != "linear":
        data["base_model"] = "base"
    return Recipe.from_dict(data, folder=folder)


PLAIN = ("linear", "task_arithmetic")


def digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("method", "semantics"), METHODS)
def test_the_bytes_are_those_on_disk(
    tmp_path: Path, method: str, semantics: str, dtype: torch.dtype
) -> None:
    models = family_of(tmp_path, dtype)
    before = {name: digest(tensors) for name, tensors in models.items()}
    recipe = recipe_of(tmp_path, method, semantics)
    sensmerge.merge(recipe, tmp_path / "out", progress=False)
    expected = load_file(tmp_path / "out" / "model.safetensors")
    named = ["e0", "e1"] if method == "linear" else ["base", "e0", "e1"]
    for given in ({name: models[name] for name in named}, None, sensmerge.open_models(recipe)):
        found = sensmerge.merge_tensors(recipe, given)
        assert found.keys() == expected.keys()
        assert digest(found) == digest(expected)
        assert all(found[name].shape == expected[name].shape for name in found)
    assert {name: digest(tensors) for name, tensors in models.items()} == before


def test_numpy_in_and_a_mapping_out(tmp_path: Path) -> None:
    models = family_of(tmp_path, torch.float32)
    recipe = recipe_of(tmp_path, "ties", "mergekit")
    expected = sensmerge.merge_tensors(recipe)
    arrays: Any = {
        model: {name: tensor.numpy() for name, tensor in tensors.items()}
        for model, tensors in models.items()
    }
    out = {name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES.items()}
    sensmerge.merge_into(out, recipe, arrays)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(out[name], tensor.numpy())


def test_the_output_has_the_models_dtype(tmp_path: Path) -> None:
    family_of(tmp_path, torch.bfloat16)
    recipe = recipe_of(tmp_path, "task_arithmetic", "mergekit")
    wide = recipe_of(tmp_path, "task_arithmetic", "mergekit", out_dtype="float32")
    out = state(9, torch.float32)
    sensmerge.merge_into(out, recipe)
    assert digest(out) == digest(sensmerge.merge_tensors(wide))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_model_gives_the_logits_of_the_merged_folder(tmp_path: Path, tied: bool) -> None:
    family = llama_family(tmp_path, experts=2, dtype="bfloat16", tied=tied)
    data = family.recipe() | {"merge_method": "dare_ties", "parameters": {"density": 0.5}}
    data.pop("sensitivity", None)
    recipe = Recipe.from_dict(data, folder=tmp_path)
    sensmerge.merge(recipe, tmp_path / "out", progress=False)
    load = AutoModelForCausalLM.from_pretrained
    merged = load(tmp_path / "out", dtype=torch.bfloat16)
    model = load(tmp_path / "e0", dtype=torch.bfloat16)
    sensmerge.merge_into(model, recipe)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_coefficients_come_from_a_calibration(family: Family, measured: Calibration) -> None:
    recipe = Recipe.from_dict(family.recipe(sensitivity={}), folder=family.folder)
    plain = Recipe.from_dict(family.recipe(sensitivity={"mode": "off"}), folder=family.folder)
    with pytest.raises(InputError, match="give a calibration"):
        sensmerge.merge_tensors(recipe)
    found = sensmerge.merge_tensors(recipe, calibration=measured)
    assert digest(found) != digest(sensmerge.merge_tensors(plain))
    out = family.folder / "in-memory-or-not"
    sensmerge.merge(recipe, out, calibration=measured, progress=False)
    assert digest(found) == digest(load_file(out / "model.safetensors"))


REFUSED: dict[str, tuple[Any, str]] = {
    "not contiguous": (lambda base: base.t(), r"base, tensor 'w': is not contiguous"),
    "another device": (lambda base: base.to("meta"), r"base, tensor 'w': is on meta"),
    "not a tensor": (lambda base: [1.0], r"base, tensor 'w': is list"),
    "complex": (lambda base: base.to(torch.complex64), r"base, tensor 'w': is complex64"),
    "another shape": (lambda base: base[:2], r"'w'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_inputs_that_cannot_be_used_are_named(kind: str) -> None:
    change, message = REFUSED[kind]
    base = torch.randn(3, 4)
    recipe = Recipe.from_dict(
        {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "e0"}]}
    )
    with pytest.raises(InputError, match=message):
        sensmerge.merge_tensors(recipe, {"base": {"w": change(base)}, "e0": {"w": base.clone()}})
    with pytest.raises(InputError, match="'e9' is not a model of the recipe; it has base, e0"):
        sensmerge.merge_tensors(recipe, {"e9": {"w": base}})


def test_outputs_that_cannot_be_used_are_named() -> None:
    tensors = {"v": torch.randn(3, 4), "w": torch.randn(3, 4)}
    recipe = Recipe.from_dict(
        {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "e0"}]}
    )
    given: Any = {"base": tensors, "e0": {name: t + 1 for name, t in tensors.items()}}

    def out() -> Any:
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def refused(places: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            sensmerge.merge_into(places, recipe, given)

    refused({"v": out()["v"]}, "'w': the model has no such parameter")
    refused(out() | {"w": torch.empty(4, 3)}, r"'w': the model's parameter has shape \[4, 3\]")
    refused(
        out() | {"w": torch.empty(3, 4, dtype=torch.int32)}, "'w': the model's parameter is I32"
    )
    refused(out() | {"w": torch.empty(3, 4, dtype=torch.float16)}, "of several dtypes: float16")
    refused(out() | {"w": torch.empty(4, 3).t()}, "w: is not contiguous")
    refused(out() | {"w": tensors["w"]}, "w: its memory overlaps|overlaps an input")
    both = torch.empty(18)
    overlapping = {"v": both[:12].view(3, 4), "w": both[6:].view(3, 4)}
    refused(overlapping, "w: its memory overlaps another output")
    fixed = np.zeros((3, 4), np.float32)
    fixed.flags.writeable = False
    refused(out() | {"w": fixed}, "w: is read-only")

    class Larger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("v", "w", "x"):
                self.register_parameter(name, torch.nn.Parameter(torch.zeros(3, 4)))

    refused(Larger(), "'x': the model has this parameter, and the merge does not")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits data memory")
def test_nothing_of_the_inputs_is_copied() -> None:
    """A merge of models of 100 MB each needs at most 40 MB, at its peak."""
    code = """
import resource, torch, sensmerge
from pathlib import Path
from sensmerge import Recipe

shape = (5000, 10_000)
models = {name: {"w": torch.ones(shape, dtype=torch.bfloat16)} for name in ("base", "e0", "e1")}
out = {"w": torch.ones(shape, dtype=torch.bfloat16)}
data = {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.3},
        "models": [{"model": "e0"}, {"model": "e1"}]}
recipe = Recipe.from_dict(data)
status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 40 * 10**6, resource.RLIM_INFINITY))
sensmerge.merge_into(out, recipe, models, threads=2)
print("merged")
models["e0"]["w"].clone()
"""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert child.stdout == "merged\n", child.stderr
    # Check that the limit works.
    assert "can't allocate memory" in child.stderr


def test_memory_needs_no_torch() -> None:
    code = """
import sys
import numpy as np
import sensmerge
base = {"w": np.zeros(8, np.float32)}
given = {"base": base, "e0": {"w": np.ones(8, np.float32)}}
data = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "e0"}]}
found = sensmerge.merge_tensors(sensmerge.Recipe.from_dict(data), given)
assert found["w"].tolist() == [1.0] * 8
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
