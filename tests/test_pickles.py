"""Models stored as pickles: refused unless asked for, then read by another process, exactly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sensmerge
from adapters import Written
from families import Family, llama_family
from sensmerge import InputError, Recipe, _core
from sensmerge.models.pickles import unpickling
from sensmerge.models.references import resolve
from test_bad_input import run

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def pickled(folder: Path, shards: int = 1, **options: Any) -> dict[str, torch.Tensor]:
    """Replace a model's weight file by pickles, as transformers wrote them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if json.loads((folder / "config.json").read_text())["tie_word_embeddings"]:
        tensors[HEAD] = tensors[EMBEDDING]
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return tensors
    places: dict[str, str] = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[shard::shards])
        # As in transformers' shards, what is tied is in one file.
        part.pop(HEAD, None)
        part |= {HEAD: tensors[HEAD]} if EMBEDDING in part and HEAD in tensors else {}
        torch.save(part, folder / name, **options)
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return llama_family(
        tmp_path_factory.mktemp("whole"), experts=2, layers=2, dtype="bfloat16", tied=True
    )


@pytest.fixture
def models(whole: Family, tmp_path: Path) -> Family:
    return whole.copy(tmp_path / "models")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors*"))}


@pytest.mark.parametrize("shards", [1, 3])
def test_a_merge_of_pickles_is_that_of_the_same_models(
    whole: Family, models: Family, tmp_path: Path, shards: int
) -> None:
    for name in ("base", "e0"):
        pickled(models.folder / name, shards)
    # An older format of torch.save, which cannot be mapped.
    pickled(models.folder / "e1", shards, _use_new_zipfile_serialization=False)
    recipe = Recipe.from_dict(whole.recipe(parameters={"weight": 0.5}), whole.folder)
    sensmerge.merge(recipe, tmp_path / "expected", progress=False)
    recipe = Recipe.from_dict(whole.recipe(parameters={"weight": 0.5}), models.folder)
    result = sensmerge.merge(recipe, tmp_path / "out", progress=False, unpickle=True)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "expected")
    tied = f"{models.folder / 'base'}: '{HEAD}' is left out: it is tied to another tensor"
    assert tied in result.notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "models", "out"]


def test_the_copy_has_the_shards_and_the_files_of_the_model(models: Family, tmp_path: Path) -> None:
    folder = models.folder / "e0"
    expected = pickled(folder, 3)
    # Tied to the embedding, and in one file with it.
    del expected[HEAD]
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    with unpickling(tmp_path / "out", enabled=True, progress=False):
        copy = resolve("e0", models.folder)
        assert copy.name == "e0"
        assert resolve("e0", models.folder) == copy
        found: dict[str, torch.Tensor] = {}
        for shard in range(3):
            found |= load_file(copy / f"model-{shard + 1:05}-of-00003.safetensors")
        assert len(_core.Checkpoint(str(copy)).tensors) == len(expected)
        assert (copy / "config.json").read_bytes() == (folder / "config.json").read_bytes()
        assert (copy / "tokenizer.json").exists()
        assert not (copy / "training_args.bin").exists()
    assert not copy.exists()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_every_dtype_and_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    square = torch.randn(5, 7)
    tensors = {
        "f64": square.double(),
        "f32": square,
        "f16": square.half(),
        "bf16": square.bfloat16(),
        "f8": square.to(torch.float8_e4m3fn),
        "i64": torch.arange(5),
        "u8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": square.T,
        "part": square[1:4, ::2],
        "same": square,
        "parameter": torch.nn.Parameter(square.clone()),
    }
    torch.save(tensors, tmp_path / "weights.bin")
    with unpickling(tmp_path / "out", enabled=True, progress=False):
        copy = resolve("weights.bin", tmp_path)
        found = load_file(copy / "model.safetensors")
        stored = {tensor.name: tensor for tensor in _core.Checkpoint(str(copy)).tensors}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        torch.testing.assert_close(
            found[name].double(), tensor.detach().double(), rtol=0, atol=0, msg=name
        )
        assert stored[name].start % tensor.element_size() == 0


class Harmful:
    """A pickle of it runs a command when it is loaded."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.made),))


@pytest.mark.parametrize("content", ["code", "list", "number", "nothing", "not a pickle"])
def test_what_is_not_tensors_is_refused(models: Family, tmp_path: Path, content: str) -> None:
    folder, made = models.folder / "e0", tmp_path / "made"
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    data: dict[str, Any] = {
        "code": {"a": Harmful(made)},
        "list": [torch.zeros(2)],
        "number": {"a": torch.zeros(2), "step": 3},
        "nothing": {},
    }
    if content in data:
        torch.save(data[content], weights)
    else:
        weights.write_bytes(b"text")
    said = {
        "code": "holds more than tensors, which could run code, and is not read",
        "list": "holds a list, not tensors by name",
        "number": "holds a int under 'step'",
        "nothing": "holds no tensors",
        "not a pickle": "pytorch_model.bin: ",
    }
    with pytest.raises(InputError, match=said[content]) as refusal:
        sensmerge.convert(folder, tmp_path / "out", unpickle=True, progress=False)
    assert str(weights) in str(refusal.value)
    assert not made.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_an_index_that_lies(models: Family, tmp_path: Path) -> None:
    folder = models.folder / "e0"
    pickled(folder, 2)
    path = folder / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["other"] = "pytorch_model-00001-of-00002.bin"
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"'other': the index places it in .* does not hold it"):
        sensmerge.convert(folder, tmp_path / "out", unpickle=True, progress=False)
    index["weight_map"] = {"other": "../e1/pytorch_model.bin"}
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match="is not a file name in this folder"):
        sensmerge.convert(folder, tmp_path / "out", unpickle=True, progress=False)


def test_refused_by_default_with_the_option(
    models: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled(models.folder / "e0")
    recipe = models.write_recipe(models.recipe(parameters={"weight": 1.0}))
    out = tmp_path / "out"
    assert run("merge", str(recipe), str(out)) == 2
    said = capsys.readouterr().err
    assert "holds weights only as pytorch_model.bin: a pickle can run code" in said
    assert (
        "\nhint: merge, merge-lora, calibrate, convert and eval read pickles with --unpickle"
        in said
    )
    file = models.folder / "e0" / "pytorch_model.bin"
    assert run("convert", str(file), str(out)) == 2
    assert "--unpickle" in capsys.readouterr().err
    assert run("merge", str(recipe), str(out), "--unpickle", "--dry-run") == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not out.exists()
    assert run("merge", str(recipe), str(out), "--unpickle", "--quiet") == 0
    assert (out / "model.safetensors").exists()


def test_safetensors_are_read_where_there_are_both(models: Family, tmp_path: Path) -> None:
    folder = models.folder / "e0"
    shutil.copyfile(folder / "model.safetensors", tmp_path / "kept")
    pickled(folder)
    shutil.copyfile(tmp_path / "kept", folder / "model.safetensors")
    with unpickling(tmp_path / "out", enabled=True):
        assert resolve("e0", models.folder) == folder


def test_the_model_is_not_its_own_output(models: Family) -> None:
    pickled(models.folder / "e0")
    with pytest.raises(InputError, match="input"):
        sensmerge.convert(models.folder / "e0", models.folder / "e0", unpickle=True, overwrite=True)
    recipe = Recipe.from_dict(models.recipe(parameters={"weight": 1.0}), models.folder)
    with pytest.raises(InputError, match="input"):
        sensmerge.merge(recipe, models.folder / "e0" / "out", unpickle=True, progress=False)


def test_calibrations_are_those_of_the_same_models(
    whole: Family, models: Family, tmp_path: Path
) -> None:
    for name in ("base", "e0", "e1"):
        pickled(models.folder / name)
    first = sensmerge.calibrate(Recipe.from_dict(whole.recipe(), whole.folder), progress=False)
    recipe = Recipe.from_dict(models.recipe(), models.folder)
    again = sensmerge.calibrate(recipe, progress=False, keep=tmp_path / "kept", unpickle=True)
    assert [expert.fingerprint for expert in again.experts] == [
        expert.fingerprint for expert in first.experts
    ]
    assert again.alignment.tolist() == first.alignment.tolist()


def test_without_torch(models: Family, tmp_path: Path) -> None:
    pickled(models.folder / "e0")
    # A torch that cannot be imported, found before the real one.
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [str(Path(sys.executable).parent / "sensmerge"), "convert", "--unpickle"]
    command += [str(models.folder / "e0"), str(tmp_path / "out")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert "error: reading pickles needs torch; pip install 'sensmerge[calibrate]'" in run.stderr


def test_an_adapter_that_is_a_pickle(models: Family, tmp_path: Path) -> None:
    module, draw = "model.layers.0.mlp.down_proj", np.random.default_rng(0)
    rows, columns = load_file(models.folder / "base" / "model.safetensors")[
        f"{module}.weight"
    ].shape
    written = Written()
    written.factors(draw, module, rows, columns, 4)
    written.save(models.folder / "lora")
    recipe = {"merge_method": "linear", "models": [{"model": "base+lora"}, {"model": "e0"}]}
    sensmerge.merge(Recipe.from_dict(recipe, models.folder), tmp_path / "expected", progress=False)
    weights = models.folder / "lora" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    again = Recipe.from_dict(recipe, models.folder)
    with pytest.raises(InputError, match=r"adapter_model\.bin: is a pickle, .* --unpickle"):
        sensmerge.merge(again, tmp_path / "out", progress=False)
    sensmerge.merge(again, tmp_path / "out", progress=False, unpickle=True)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "expected")
    assert [path.name for path in tmp_path.iterdir() if "unpickled" in path.name] == []
