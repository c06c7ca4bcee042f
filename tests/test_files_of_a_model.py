"""The choice of a model's files in a folder: that of transformers, in every part of the package."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sensmerge
from families import Family, llama_family
from sensmerge import Recipe, _core
from sensmerge.calibration import loading
from sensmerge.calibration.mapped import mapped
from sensmerge.models.inspection import inspect
from sensmerge.models.opened import open_models
from test_bad_input import run

HEAD = "lm_head.weight"


@pytest.fixture
def models(tmp_path: Path) -> Family:
    return llama_family(tmp_path, experts=2, layers=1)


def sharded(folder: Path, value: float, names: tuple[str, str] = ("00001", "00002")) -> None:
    """Add a sharded checkpoint to a folder: the same model with ``value`` as its head."""
    tensors = {name: tensor.clone() for name, tensor in mapped(folder).items()}
    tensors[HEAD].fill_(value)
    files = [f"model-{name}-of-00002.safetensors" for name in names]
    first = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    save_file(first, folder / files[0], metadata={"format": "pt"})
    save_file({HEAD: tensors[HEAD]}, folder / files[1], metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(first, files[0]) | {HEAD: files[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def single(folder: Path, value: float, name: str = "model.safetensors") -> None:
    """Add a checkpoint of one file to a folder."""
    tensors = {name: tensor.clone() for name, tensor in mapped(folder).items()}
    tensors[HEAD].fill_(value)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def stale_index(folder: Path) -> None:
    sharded(folder, 1.0)
    single(folder, 2.0)


def index_alone(folder: Path) -> None:
    sharded(folder, 3.0)
    (folder / "model.safetensors").unlink()


def pickle_beside(folder: Path) -> None:
    single(folder, 4.0)
    torch.save({HEAD: torch.zeros(1)}, folder / "pytorch_model.bin")


def named_by_config(folder: Path) -> None:
    single(folder, 5.0, "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "other.safetensors"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("odd", [stale_index, index_alone, pickle_beside, named_by_config])
def test_all_read_what_transformers_loads(models: Family, odd: Callable[[Path], None]) -> None:
    from transformers import AutoModelForCausalLM

    folder = models.folder / "e0"
    odd(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    head = loaded.lm_head.weight
    torch.testing.assert_close(mapped(folder)[HEAD], head.detach(), rtol=0, atol=0)
    source = loading.open_source("e0", folder, None)
    calibrated: Any = loading.load(source, "stored")
    torch.testing.assert_close(calibrated.lm_head.weight, head, rtol=0, atol=0)
    recipe = Recipe.from_dict(
        {"merge_method": "linear", "models": [{"model": "e0"}]}, models.folder
    )
    sensmerge.merge(recipe, models.folder / "out", progress=False)
    merged = load_file(models.folder / "out" / "model.safetensors")
    torch.testing.assert_close(merged[HEAD], head.detach(), rtol=0, atol=0)


def test_what_is_passed_over_is_told(models: Family) -> None:
    recipe = Recipe.from_dict(models.recipe(), models.folder)
    assert open_models(recipe).notes == []
    assert "note:" not in inspect(models.folder / "e0").describe()
    stale_index(models.folder / "e0")
    (note,) = open_models(recipe).notes
    assert note.startswith(f"{models.folder / 'e0'}: is read from model.safetensors")
    assert "model.safetensors.index.json" in note
    assert f"note: {note}" in inspect(models.folder / "e0").describe()


def test_weights_that_were_not_gathered_are_suspicious(models: Family) -> None:
    folder = models.folder / "e0"
    assert _core.Checkpoint(str(folder)).suspicions() == []
    tensors = {name: torch.zeros_like(tensor) for name, tensor in mapped(folder).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (said,) = _core.Checkpoint(str(folder)).suspicions()
    assert said.startswith(f"{folder}: every tensor is zero; ")
    save_file({HEAD: torch.zeros(0, 16)}, folder / "model.safetensors")
    (said,) = _core.Checkpoint(str(folder)).suspicions()
    assert f"model.safetensors: tensor '{HEAD}' is empty, of shape [0, 16]; " in said
    assert f"note: {said}" in inspect(folder).describe()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let every access to files of a name fail like a broken disk."""

    def fail(name: str) -> None:
        def failing_when_asked(ask: Callable[..., Any]) -> Callable[..., Any]:
            def asked(path: Any, *rest: Any, **options: Any) -> Any:
                if not isinstance(path, int) and Path(os.fsdecode(path)).name == name:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), os.fsdecode(path))
                return ask(path, *rest, **options)

            return asked

        monkeypatch.setattr(os, "stat", failing_when_asked(os.stat))
        monkeypatch.setattr(os, "lstat", failing_when_asked(os.lstat))

    return fail


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json", "e1"]
)
def test_a_disk_that_fails_takes_no_file_away(
    models: Family,
    capsys: pytest.CaptureFixture[str],
    failing: Callable[[str], None],
    name: str,
) -> None:
    path = models.write_recipe(models.recipe(), "recipe.json")
    failing(name)
    assert run("merge", str(path), str(models.folder / "out")) == 1
    said = capsys.readouterr().err
    assert name in said
    assert os.strerror(errno.EIO) in said
    assert not os.path.lexists(models.folder / "out")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "tokenizer.json"])
def test_a_calibration_takes_none_away_either(
    models: Family, failing: Callable[[str], None], name: str
) -> None:
    failing(name)
    with pytest.raises(OSError, match=name):
        loading.open_source("e0", models.folder / "e0", models.folder / "base")


def test_a_config_that_cannot_be_read_is_not_the_callers_fault(
    models: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    path = models.write_recipe(models.recipe(), "recipe.json")
    config = models.folder / "base" / "config.json"
    config.unlink()
    config.symlink_to("config.json")
    assert run("merge", str(path), str(models.folder / "out")) == 1
    assert "config.json" in capsys.readouterr().err
    config.unlink()
    os.mkfifo(config)
    assert run("merge", str(path), str(models.folder / "out")) == 2
    assert "config.json: is not a regular file" in capsys.readouterr().err
    assert not (models.folder / "out").exists()


def test_an_output_takes_its_own_files_away_and_no_others(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2, layers=1)
    out = tmp_path / "out"
    path = str(family.write_recipe(family.recipe(), "recipe.json"))
    assert run("merge", path, str(out), "--max-shard-size", "20KB", "--quiet") == 0
    assert len(list(out.glob("model-*.safetensors"))) > 1
    listing = json.loads((out / "sensmerge_output.json").read_text())
    assert listing["sensmerge"] == sensmerge.__version__
    assert sorted(listing["files"]) == sorted(entry.name for entry in out.iterdir())

    strangers = {"adapter_model.safetensors", "vae.safetensors", "notes.txt", "more"}
    (out / "vae.safetensors").write_bytes(b"")
    (out / "adapter_model.safetensors").write_bytes(b"")
    (out / "notes.txt").write_text("mine")
    (out / "more").mkdir()
    (tmp_path / "base" / "chat_template.jinja").unlink()
    assert run("merge", path, str(out), "--force", "--quiet") == 0
    listing = json.loads((out / "sensmerge_output.json").read_text())
    assert "chat_template.jinja" not in listing["files"]
    found = {entry.name for entry in out.iterdir()}
    assert found == set(listing["files"]) | strangers
    assert len([name for name in found if name.startswith("model")]) == 1


def test_weights_of_others_are_never_replaced(
    models: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(models.write_recipe(models.recipe(), "recipe.json"))
    shutil.copytree(models.folder / "e0", models.folder / "theirs")
    before = (models.folder / "theirs" / "model.safetensors").read_bytes()
    assert run("merge", path, str(models.folder / "theirs"), "--force") == 2
    said = capsys.readouterr().err
    assert "model.safetensors; move or delete them" in said
    assert "hint:" not in said
    assert (models.folder / "theirs" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("out", [".", "e0", "e0/below", "link"])
def test_an_output_is_no_input_and_neither_in_nor_around_one(
    models: Family, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    path = str(models.write_recipe(models.recipe(), "recipe.json"))
    (models.folder / "link").symlink_to(models.folder)
    before = sorted(models.folder.rglob("*"))
    assert run("merge", path, str(models.folder / out), "--force") == 2
    assert "inputs are never written to" in capsys.readouterr().err
    assert sorted(models.folder.rglob("*")) == before
