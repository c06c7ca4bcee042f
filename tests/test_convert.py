"""A model in another form: dtype, weight files, and all that lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import sensmerge
from adapters import Written, changed
from families import Family, llama_family
from quantisation import fp8_blocks, quantise
from sensmerge import InputError, Recipe
from test_bad_input import run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Family:
    family = llama_family(tmp_path_factory.mktemp("models"), experts=1, max_shard_size="20KB")
    for name in ("README.md", "LICENSE", "preprocessor_config.json"):
        (family.folder / "base" / name).write_text("{}")
    (family.folder / "base" / "optimizer.pt").write_text("a pickle")
    (family.folder / "base" / "runs").mkdir()
    return family


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", None])
def test_every_entry_is_rounded_once(models: Family, tmp_path: Path, dtype: str | None) -> None:
    source, out = models.folder / "base", tmp_path / "out"
    result = sensmerge.convert(source, out, dtype=dtype, progress=False)
    assert result.shards == ["model.safetensors"]
    found, expected = weights(out), weights(source)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        to = tensor.dtype if dtype is None else getattr(torch, dtype)
        assert found[name].dtype == to
        torch.testing.assert_close(found[name], tensor.to(to), rtol=0, atol=0)
    names = {path.name for path in source.iterdir() if "safetensors" not in path.name}
    beside = {path.name for path in out.iterdir()}
    assert beside == names - {"optimizer.pt", "runs"} | {
        "model.safetensors",
        "sensmerge_output.json",
    }
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text()) | {
        "dtype": dtype or "float32"
    }


def test_its_bytes_are_those_of_a_merge(models: Family, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(
        {"merge_method": "passthrough", "models": [{"model": "base"}], "dtype": "bfloat16"},
        models.folder,
    )
    sensmerge.merge(recipe, tmp_path / "merged", progress=False, max_shard_size="10KB")
    arguments = ["--dtype", "bfloat16", "--max-shard-size", "10KB", "--quiet"]
    assert run("convert", str(models.folder / "base"), str(tmp_path / "out"), *arguments) == 0
    files = sorted(path.name for path in (tmp_path / "merged").glob("model*"))
    assert len(files) > 2
    assert files == sorted(path.name for path in (tmp_path / "out").glob("model*"))
    for name in files:
        merged, converted = ((tmp_path / each / name).read_bytes() for each in ("merged", "out"))
        assert merged == converted


def test_it_can_be_loaded(models: Family, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    sensmerge.convert(models.folder / "base", out, dtype="bfloat16", progress=False)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(out)) == model.config.vocab_size


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9),
    count=st.integers(0, 3),
)
@settings(max_examples=20, deadline=None)
def test_integers_and_odd_shapes(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], count: int
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    floats = np.array(values, dtype=np.float32)
    # Beyond its range bfloat16 has no number.
    floats = floats[np.abs(floats) < 3e38]
    tensors = {"a": torch.tensor(floats), "b": torch.arange(count), "c": torch.tensor(1.0)}
    save_file(tensors, folder / "model.safetensors")
    out = folder.with_name(f"{folder.name}-out")
    sensmerge.convert(folder, out, dtype="bfloat16", progress=False, sync=False, overwrite=True)
    found = load_file(out / "model.safetensors")
    torch.testing.assert_close(found["a"], tensors["a"].bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(found["b"], tensors["b"], rtol=0, atol=0)


def test_refusals(models: Family, tmp_path: Path) -> None:
    base = models.folder / "base"
    with pytest.raises(InputError, match="dtype: unknown value 'bf16'"):
        sensmerge.convert(base, tmp_path / "out", dtype="bf16")
    with pytest.raises(InputError, match="inputs are never written to"):
        sensmerge.convert(base, base, overwrite=True)
    with pytest.raises(InputError, match="no such folder"):
        sensmerge.convert(tmp_path / "none", tmp_path / "out")
    single = tmp_path / "w.safetensors"
    save_file({"w": torch.tensor([1.0, float("nan")])}, single)
    with pytest.raises(InputError, match="'w': holds NaN"):
        sensmerge.convert(single, tmp_path / "out")
    result = sensmerge.convert(single, tmp_path / "out", allow_nan=True, progress=False)
    assert f"{single}: is a single file: nothing beside it was copied" in result.notes


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_adapters_are_merged_into_the_model(
    models: Family, tmp_path: Path, dtype: str | None
) -> None:
    module, draw = "model.layers.0.mlp.down_proj", np.random.default_rng(0)
    rows, columns = weights(models.folder / "base")[f"{module}.weight"].shape
    written = Written()
    written.factors(draw, module, rows, columns, 4)
    written.save(tmp_path / "lora")
    name = f"{models.folder / 'base'}+{tmp_path / 'lora'}"
    sensmerge.convert(name, tmp_path / "out", dtype=dtype, progress=False)
    base, found = weights(models.folder / "base"), weights(tmp_path / "out")
    stored = base.pop(f"{module}.weight").double().numpy()
    expected = torch.tensor(changed(stored, written, module, scale=2.0))
    kind = torch.float32 if dtype is None else torch.bfloat16
    torch.testing.assert_close(found.pop(f"{module}.weight"), expected.float().to(kind))
    assert all(torch.equal(found[key], base[key].to(kind)) for key in base)
    assert found.keys() == base.keys()


def test_an_adapter_of_a_quantised_model_needs_a_dtype(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1, dtype="bfloat16")
    quantise(family.folder / "base", fp8_blocks((16, 16)))
    written = Written()
    written.factors(np.random.default_rng(0), "model.layers.0.self_attn.q_proj", 32, 32, 4)
    written.save(tmp_path / "lora")
    name = f"{family.folder / 'base'}+{tmp_path / 'lora'}"
    with pytest.raises(InputError, match=r"dtype: .*base is quantised, and adapters change"):
        sensmerge.convert(name, tmp_path / "out", progress=False)
    sensmerge.convert(name, tmp_path / "out", dtype="bfloat16", progress=False)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
