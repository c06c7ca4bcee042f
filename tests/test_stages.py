"""Recipes of several documents: later ones merge the models of earlier ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import sensmerge
from families import Family, tensor_family
from sensmerge import InputError, workflow
from sensmerge.merging.stages import StagedPlan
from sensmerge.recipe import StagedRecipe, load
from test_bad_input import run

Said = pytest.CaptureFixture[str]

SHAPES = {"model.layers.0.mlp.up_proj.weight": (7, 5), "model.norm.weight": (6,)}

TEXT = """
name: first
merge_method: linear
models: [{model: base}, {model: e0}]
parameters: {weight: 0.5}
---
merge_method: task_arithmetic
base_model: base
models: [{model: third, parameters: {weight: 0.25}}, {model: e2}]
---
name: third
merge_method: task_arithmetic
base_model: {model: {path: first}}
models: [{model: e1}]
parameters: {lambda: 2}
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tensor_family(tmp_path, experts=3, dtype="float32", shapes=SHAPES)
    return tmp_path


def write(folder: Path, text: str = TEXT) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def weights(folder: Path) -> dict[str, Any]:
    return {
        name: value.astype(np.float64)
        for name, value in load_file(folder / "model.safetensors").items()
    }


def others(folder: Path) -> set[str]:
    """What lies in a folder beside the models and the recipe."""
    return {path.name for path in folder.iterdir()} - {"base", "e0", "e1", "e2", "recipe.yaml"}


def test_stages_are_merged_in_their_order(models: Path) -> None:
    out = models / "out"
    sensmerge.merge(write(models), out, progress=False)
    base, e0, e1, e2 = (weights(models / name) for name in ("base", "e0", "e1", "e2"))
    merged = weights(out)
    for name in SHAPES:
        first = ((base[name] + e0[name]) / 2).astype(np.float32).astype(np.float64)
        third = (first + 2 * (e1[name] - first)).astype(np.float32).astype(np.float64)
        expected = base[name] + 0.25 * (third - base[name]) + (e2[name] - base[name])
        np.testing.assert_allclose(merged[name], expected, rtol=0, atol=1e-7)
    assert others(models) == {"out"}


def test_the_output_says_all(models: Path) -> None:
    path, out = write(models), models / "out"
    result = sensmerge.merge(path, out, progress=False)
    written = load(out / "sensmerge_recipe.yaml")
    asked = load(path)
    assert isinstance(written, StagedRecipe)
    assert isinstance(asked, StagedRecipe)
    assert [stage.recipe.source for stage in written.stages] == [
        stage.recipe.source for stage in asked.stages
    ]
    card = (out / "README.md").read_text()
    assert "name: first" in card
    assert "| third | expert |" in card
    assert "stages-" not in card
    # A stage is no model on the Hub.
    assert "base_model:\n-" not in card.partition("# Merged model")[0]
    assert result.output == out


def test_the_order_and_the_result() -> None:
    documents = [
        {"merge_method": "linear", "models": [{"model": "b"}, {"model": "org/x"}], "name": "c"},
        {"merge_method": "linear", "models": [{"model": "a"}], "name": "b"},
        {"merge_method": "linear", "models": [{"model": "org/x"}], "name": "a"},
        {"merge_method": "linear", "models": [{"model": "a"}], "name": "unused"},
    ]
    with pytest.raises(InputError, match="no stage merges 'c' and 'unused'; take the name from"):
        StagedRecipe.from_documents(documents)
    # Without a name, a document is the result, wherever it stands.
    del documents[0]["name"]
    staged = StagedRecipe.from_documents(documents)
    assert [stage.name for stage in staged.stages] == ["a", "b", None]
    assert [sorted(stage.uses) for stage in staged.stages] == [[], ["a"], ["b"]]
    assert staged.notes == ["'unused': the result does not use it, so that it is not merged"]
    # Where all have names, the one that no other merges is the result.
    named = [documents[0] | {"name": "c"}, *documents[1:3]]
    assert StagedRecipe.from_documents(named).result.name == "c"


def linear(*models: Any, **keys: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": model} for model in models]} | keys


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([linear("b", name="a"), linear("a", name="b"), linear("a")],
         "stages merge each other in a circle: 'a' → 'b' → 'a'"),
        ([linear("a", name="a"), linear("a")], "in a circle: 'a' → 'a'"),
        ([linear("x/y"), linear("x/y")], "documents 1, 2 have no name; only the result has none"),
        ([linear("x/y", name="a"), linear("x/y", name="a"), linear("a")],
         "document 2: name: 'a' is also the name of document 1"),
        ([linear("x/y", name=1), linear("x/y")], "document 1: name: '1' is not text"),
        ([linear("x/y", name="first"), linear("frist")],
         "document 2: models[0].model: 'frist' is neither a stage nor a folder; did you mean"),
        ([linear("x/y", name="a", dtype="int8"), linear("a", lamda=1)],
         "document 2: lamda: unknown key; did you mean 'parameters.lambda'?"),
        ([linear("x/y", name="a"), 5], "document 2: a recipe is a mapping"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_stages(documents: list[Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        StagedRecipe.from_documents(documents)
    assert said in str(refused.value)


def test_all_that_is_wrong_with_all_stages_is_said_at_once(models: Path) -> None:
    path = write(
        models, TEXT.replace("weight: 0.5", "wieght: 1").replace("{model: e1}", "{modl: 1}")
    )
    with pytest.raises(InputError) as refused:
        load(path)
    lines = [line.removeprefix(f"{path}: ") for line in str(refused.value).splitlines()]
    assert [line.split(":")[0] for line in lines] == ["document 1", "document 3", "document 3"]


@pytest.mark.parametrize(
    "reference",
    ["first", "{path: first}", "{model: first}", "{model: {path: first}, lora: null}"],
)
def test_every_form_of_a_reference_names_a_stage(models: Path, reference: str) -> None:
    text = TEXT.replace("{model: {path: first}}", reference)
    sensmerge.merge(write(models, text), models / "other", progress=False)
    sensmerge.merge(write(models), models / "out", progress=False)
    same = [(models / name / "model.safetensors").read_bytes() for name in ("other", "out")]
    assert same[0] == same[1]


def test_a_stage_comes_before_a_folder_of_its_name(models: Path) -> None:
    shutil.copytree(models / "e2", models / "first")
    plain = write(models)
    result = sensmerge.merge(plain, models / "out", progress=False)
    assert "'first': a folder has this name too; the stage counts" in result.notes
    shutil.rmtree(models / "first")
    sensmerge.merge(plain, models / "other", progress=False)
    same = [(models / name / "model.safetensors").read_bytes() for name in ("other", "out")]
    assert same[0] == same[1]


def test_nothing_is_left_behind_by_a_merge_that_fails(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sensmerge.merging import disk

    path, plain, calls = write(models), disk.write, list[Any]()

    def third_fails(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt if len(calls) == 3 else OSError("the disk is full")
        return plain(*arguments, **keywords)

    monkeypatch.setattr(disk, "write", third_fails)
    for error in (KeyboardInterrupt, OSError):
        with pytest.raises(error):
            sensmerge.merge(path, models / "deep" / "out", progress=False)
        assert others(models) == set()


def test_what_cannot_be_merged_is_refused_before_the_first_stage(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sensmerge.merging import disk

    def write_nothing(*_: Any, **__: Any) -> Any:
        raise AssertionError("a stage was merged")

    monkeypatch.setattr(disk, "write", write_nothing)
    shutil.rmtree(models / "e2")
    tensor_family(models / "other", experts=0, dtype="float32", shapes={"x.weight": (3, 4)})
    (models / "other" / "base").rename(models / "e2")
    with pytest.raises(InputError, match=r"document 2: .*e2"):
        sensmerge.merge(write(models), models / "out", progress=False)
    shutil.rmtree(models / "e2")
    with pytest.raises(InputError, match=r"document 2: .*'e2'"):
        sensmerge.merge(write(models), models / "out", progress=False)
    (models / "out").mkdir()
    (models / "out" / "mine").touch()
    path = write(models, TEXT.replace(", {model: e2}", ""))
    with pytest.raises(InputError, match="is not empty"):
        sensmerge.merge(path, models / "out", progress=False)


def test_a_plan_of_stages(models: Path, capsys: Said) -> None:
    path, out = write(models), models / "out"
    assert run("merge", str(path), str(out), "--dry-run") == 0
    said = capsys.readouterr().out
    heads = [line for line in said.splitlines() if line.startswith("#")]
    assert heads == ["# stage first", "# stage third", "# result"]
    assert "task_arithmetic of e1; base_model: first" in said
    assert "note: planned by what is known of third before it is merged" in said
    assert "sensmerge-plan-" not in said
    assert run("plan", str(path), "-o", str(models / "plan.json")) == 0
    stages = json.loads((models / "plan.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["first", "third", None]
    assert all("fingerprint" in model for model in stages[0]["manifest"]["models"])
    base, expert = stages[1]["manifest"]["models"]
    assert base == {"stage": "first"}
    assert expert["path"].endswith("e1")
    (stored,) = [
        tensor["content"]["merge"]["base"]
        for tensor in stages[1]["manifest"]["tensors"]
        if tensor["name"] == "model.norm.weight"
    ]
    assert stored["shape"] == [6]
    assert "bytes" not in stored
    assert others(models) == {"plan.json"}


def test_what_is_planned_is_what_is_merged(models: Path) -> None:
    path = write(models, TEXT.replace("name: first\n", "name: first\ndtype: bfloat16\n"))
    planned = workflow.plan(path)
    assert isinstance(planned, StagedPlan)
    sensmerge.merge(path, models / "out", progress=False, stages=models / "kept")
    for name, plan in planned.stages:
        folder = models / "out" if name is None else models / "kept" / name
        written = sensmerge._core.Checkpoint(str(folder))
        assert [(t.name, t.dtype, t.shape) for t in plan.manifest.tensors] == [
            (t.name, t.dtype, t.shape) for t in written.tensors
        ]


def test_models_of_stages_that_are_kept(models: Path, capsys: Said) -> None:
    path, kept = write(models), models / "kept"
    assert run("merge", str(path), str(models / "one"), "-I", str(kept)) == 0
    capsys.readouterr()
    assert {each.name for each in kept.iterdir()} == {"first", "third"}
    merged = (kept / "third" / "model.safetensors").stat().st_mtime_ns
    # Another result, and then another third stage.
    path = write(models, TEXT.replace("0.25", "0.75"))
    assert run("merge", str(path), str(models / "two"), "-I", str(kept)) == 0
    said = capsys.readouterr().err
    assert f"stage 'third': was merged into {kept} earlier, and is used as it is" in said
    assert (kept / "third" / "model.safetensors").stat().st_mtime_ns == merged
    path = write(models, TEXT.replace("lambda: 2", "lambda: 3"))
    assert run("merge", str(path), str(models / "three"), "-I", str(kept)) == 0
    said = capsys.readouterr().err
    assert "stage 'first': was merged into" in said
    assert "stage 'third': was merged into" not in said
    assert (kept / "third" / "model.safetensors").stat().st_mtime_ns != merged
    assert run("merge", str(path), str(models / "four"), "-I", str(kept), "--no-lazy") == 0
    assert "was merged into" not in capsys.readouterr().err
    fresh = models / "fresh"
    assert run("merge", str(path), str(fresh), "--quiet") == 0
    for name in ("three", "four"):
        assert (models / name / "model.safetensors").read_bytes() == (
            fresh / "model.safetensors"
        ).read_bytes()


def test_names_that_are_no_file_names(models: Path) -> None:
    text = TEXT.replace("first", "'../first of all'").replace("third", ".hidden")
    sensmerge.merge(write(models, text), models / "out", progress=False, stages=models / "kept")
    assert {each.name for each in (models / "kept").iterdir()} == {"1-_first_of_all", "3-hidden"}
    assert others(models) == {"out", "kept"}


def test_a_seed_for_all_stages(models: Path, capsys: Said) -> None:
    text = TEXT.replace("task_arithmetic", "dare_linear").replace("lambda: 2", "density: 0.5")
    outputs = []
    for name, written, options in (
        ("one", text, ["--random-seed", "7"]),
        ("two", text.replace("merge_method", "seed: 7\nmerge_method"), []),
        ("three", text, []),
    ):
        path = write(models, written)
        assert run("merge", str(path), str(models / name), *options, "--quiet") == 0
        outputs.append((models / name / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]
    said = load(models / "one" / "sensmerge_recipe.yaml")
    assert isinstance(said, StagedRecipe)
    assert {stage.recipe.seed for stage in said.stages} == {7}


def test_a_stage_with_sensitivity_is_calibrated(family: Family, tmp_path: Path) -> None:
    home = family.copy(tmp_path)
    first = home.recipe(sensitivity={"samples": 2}, name="first")
    second = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "first", "calibration": "t0.jsonl"},
                   {"model": "e2", "calibration": "t2.jsonl"}],
        "sensitivity": {"samples": 2},
        "tokenizer_source": "first",
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{json.dumps(first)}\n---\n{json.dumps(second)}\n")
    result = sensmerge.merge(path, tmp_path / "out", progress=False)
    assert result.calibration is not None
    assert [expert.model for expert in result.calibration.experts] == ["first", "e2"]
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert run("report", str(tmp_path / "out"), "-o", str(tmp_path / "report.html")) == 0


def test_commands_that_take_one_recipe_say_so(models: Path, capsys: Said) -> None:
    path = write(models)
    for command in ("calibrate", "learn", "tune"):
        assert run(command, str(path), "-o", str(models / "x")) == 2
        assert "holds several documents (stages" in capsys.readouterr().err


def test_an_empty_document_at_the_end_is_none(models: Path) -> None:
    text = "merge_method: linear\nmodels: [{model: base}, {model: e0}]\n---\n"
    assert not isinstance(load(write(models, text)), StagedRecipe)
