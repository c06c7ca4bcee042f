"""Bad input is refused with exit code 2, by name, and leaves no output folder."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from families import Family, tensor_family
from sensmerge.cli import main

Tensors = dict[str, Any]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tensor_family(tmp_path, experts=2, dtype="float32", shapes={"a.w": (3, 4), "b.w": (5,)})
    return tmp_path


def recipe(**keys: Any) -> dict[str, Any]:
    models = [{"model": "e0"}, {"model": "e1"}]
    return {"merge_method": "task_arithmetic", "base_model": "base", "models": models} | keys


def refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    data: dict[str, Any] | None = None,
    *options: str,
) -> str:
    """Run a merge that must be refused and return the message."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(data or recipe()))
    out = folder / "out"
    existed = out.exists()
    code = run("merge", str(path), str(out), *options)
    said = capsys.readouterr().err
    assert code == 2, said
    # A hint may follow.
    assert [line for line in said.splitlines() if not line.startswith("hint: ")][-1].startswith(
        "error: "
    ), said
    assert "Traceback" not in said
    assert out.exists() == existed
    return said


def run(*arguments: str) -> int:
    import sys

    before = sys.argv
    sys.argv = ["sensmerge", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def change(folder: Path, name: str, edit: Callable[[Tensors], Any]) -> None:
    path = folder / name / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def test_a_missing_tensor(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(models, "e1", lambda tensors: tensors.pop("a.w"))
    said = refused(models, capsys)
    assert "'a.w': is missing" in said
    assert "e1" in said


def test_an_extra_tensor(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(models, "e1", lambda tensors: tensors.update(new=tensors["a.w"].clone()))
    assert "'new': is not in" in refused(models, capsys)


def test_another_shape(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(models, "e1", lambda tensors: tensors.update({"a.w": tensors["a.w"].T.contiguous()}))
    assert "'a.w': has shape [4, 3]" in refused(models, capsys)


def test_another_dtype(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(models, "e1", lambda tensors: tensors.update({"a.w": tensors["a.w"].int()}))
    assert "'a.w': is I32" in refused(models, capsys)


def test_nan(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(models, "e1", lambda tensors: tensors["b.w"].fill_(float("nan")))
    assert "'b.w': holds NaN" in refused(models, capsys)
    path = models / "recipe.yaml"
    assert run("merge", str(path), str(models / "out"), "--allow-nan", "--quiet") == 0
    assert load_file(models / "out" / "model.safetensors")["b.w"].isnan().all()


def lie(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the header of e1 and leave its data."""
    path = folder / "e1" / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda h: h["a.w"].update(data_offsets=[0, 10**9]), "truncated"),
        (lambda h: h["b.w"].update(data_offsets=h["a.w"]["data_offsets"]), "'b.w'"),
        (lambda h: h["a.w"].update(shape=[2**40, 2**40]), "not a whole number of bytes"),
        (lambda h: h["a.w"].update(shape=[3, 5]), "60 bytes"),
        (lambda h: h["a.w"].update(dtype="Q5"), "dtype 'Q5'"),
    ],
)
def test_headers_that_lie(
    models: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[dict[str, Any]], Any],
    said: str,
) -> None:
    lie(models, edit)
    assert said in refused(models, capsys)


def test_a_truncated_file(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = models / "e1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert "truncated" in refused(models, capsys)
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "claims" in refused(models, capsys)


def test_names_that_occur_twice(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    text = f'{{"a.w":{entry},"a.w":{entry}}}'.encode()
    path = models / "e1" / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert "'a.w' occurs twice" in refused(models, capsys)


@pytest.mark.parametrize("target", ["../base/model.safetensors", "{absolute}"])
def test_an_index_that_leaves_the_folder(
    models: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    target = target.replace("{absolute}", str(models / "base" / "model.safetensors"))
    index = {"weight_map": {"a.w": target, "b.w": target}}
    (models / "e1" / "model.safetensors.index.json").write_text(json.dumps(index))
    (models / "e1" / "model.safetensors").rename(models / "e1" / "part.safetensors")
    assert "not a file name in this folder" in refused(models, capsys)


def test_a_tokenizer_file_that_leaves_the_folder(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "secret").write_text("secret")
    (models / "base" / "tokenizer.json").symlink_to(models / "secret")
    assert "leads outside" in refused(models, capsys)


def test_all_refusals_of_a_recipe_are_errors(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(models, capsys, recipe(merge_method="dare", dtype="int8", lamda=1)).splitlines()
    assert len(said) == 3
    assert all(line.startswith(f"error: {models / 'recipe.yaml'}: ") for line in said)
    assert "merge_method: unknown value 'dare'" in said[0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"parameters": {"weight": float("nan")}}, "parameters.weight"),
        ({"parameters": {"weight": float("inf")}}, "parameters.weight"),
        ({"parameters": {"density": 0}}, "parameters.density"),
        ({"parameters": {"density": 1.5}}, "parameters.density"),
        ({"merge_method": "dare_tie"}, "did you mean 'dare_ties'"),
        ({"sensitivty": {}}, "did you mean 'sensitivity'"),
        ({"base_model": "nowhere"}, "'nowhere'"),
        ({"models": [{"model": "e0"}, {"model": "e1+adapter"}]}, "adapter"),
    ],
)
def test_recipes_that_cannot_be_merged(
    models: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], said: str
) -> None:
    assert said in refused(models, capsys, recipe(**keys))


def test_experts_of_another_architecture(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"merge_method": "linear", "models": [{"model": "e0"}, {"model": "other"}]}
    (models / "other").mkdir()
    save_file(
        {"x.w": load_file(models / "e0" / "model.safetensors")["a.w"]},
        models / "other" / "model.safetensors",
    )
    assert "models of different architectures" in refused(models, capsys, other)


def test_configs_of_another_architecture(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in (("base", "llama"), ("e0", "llama"), ("e1", "gpt2")):
        (models / name / "config.json").write_text(json.dumps({"model_type": kind}))
    said = refused(models, capsys)
    assert "model_type 'gpt2'" in said
    assert "e1" in said
    (models / "e1" / "config.json").write_text("[")
    assert "cannot be read as JSON" in refused(models, capsys)


def test_an_output_that_is_not_empty(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "out").mkdir()
    (models / "out" / "mine.txt").write_text("mine")
    said = refused(models, capsys)
    assert "is not empty; name another folder" in said
    assert "hint: --force replaces" in said
    path = models / "recipe.yaml"
    assert run("merge", str(path), str(models / "out"), "--force", "--quiet") == 0
    assert (models / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_output_that_is_an_input(
    models: Path, capsys: pytest.CaptureFixture[str], force: list[str]
) -> None:
    path = models / "recipe.yaml"
    path.write_text(json.dumps(recipe()))
    before = (models / "e0" / "model.safetensors").read_bytes()
    assert run("merge", str(path), str(models / "e0"), *force) == 2
    assert "inputs are never written to" in capsys.readouterr().err
    assert (models / "e0" / "model.safetensors").read_bytes() == before


def test_a_calibration_of_other_experts(
    family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(family.folder, tmp_path, dirs_exist_ok=True)
    data = Family(tmp_path, 3).recipe(sensitivity={"samples": 2})
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(data))
    measured = tmp_path / "calibration.json"
    assert run("calibrate", str(path), "-o", str(measured), "--quiet") == 0
    merge = ["merge", str(path), str(tmp_path / "out"), "--calibration", str(measured), "--quiet"]
    assert run(*merge) == 0
    shutil.rmtree(tmp_path / "out")
    change(tmp_path, "e1", lambda tensors: tensors["lm_head.weight"][0, 0].add_(1))
    assert run(*merge) == 2
    assert "does not belong to expert 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no samples"),
        ("\n\n", "holds no samples"),
        ('{"prompt": "a"}\n', "line 1: has no 'completion'"),
        ('{"text": "w1"}\nnot json\n', "line 2: not JSON"),
        ('{"text": 3}\n', "line 1: 'text' is a number; expected text"),
        ('["w1"]\n', "line 1: is a list; expected an object"),
        ('{"prompt": "w1", "completion": ""}\n', "line 1: 'completion' is empty"),
        ('{"messages": []}\n', "line 1: 'messages' is empty; expected a list"),
        ('{"messages": [{"role": "user", "content": "w1"}]}\n', "no turn of the assistant"),
    ],
)
def test_samples_that_are_none(
    family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text(text)
    data = family.recipe(sensitivity={})
    data["models"][1]["calibration"] = str(samples)
    for model in [data, *data["models"]]:
        key = "model" if "model" in model else "base_model"
        model[key] = str(family.folder / model[key])
    data["models"][0]["calibration"] = str(family.folder / "t0.jsonl")
    data["models"][2]["calibration"] = str(family.folder / "t2.jsonl")
    message = refused(tmp_path, capsys, data)
    assert said in message
    assert str(samples) in message
