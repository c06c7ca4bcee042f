"""``calibrate``: coefficients against torch, the content of the file, refusals."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging

import sensmerge
import torch_oracle as oracle
from families import Family, edit_weights, llama_family
from sensmerge import Calibration, InputError, Recipe, _core
from sensmerge.calibration import loading, sensitivity


def test_alpha_tau_and_sigma_are_the_oracles(family: Family, measured: Calibration) -> None:
    found = sensmerge.coefficients(measured, oracle.recipe_of(family))
    s = np.array(
        [[oracle.sensitivity(family, i)[layer] for layer in measured.layers] for i in range(3)]
    )
    g = oracle.alignment(family)
    alpha = s / np.linalg.norm(s, axis=1, keepdims=True)
    tau = 1 - g.sum(axis=1) / g.sum()
    importance = np.exp(tau[:, None] * alpha / 0.05)
    np.testing.assert_allclose(found.alpha, alpha, rtol=1e-5)
    np.testing.assert_allclose(found.tau, tau, rtol=1e-5)
    np.testing.assert_allclose(found.sigma, importance / importance.sum(axis=0), rtol=1e-4)


def test_the_file_says_what_was_measured_on_what(family: Family, measured: Calibration) -> None:
    assert measured.base == "base"
    assert measured.options == {
        "measure": "taylor",
        "base": "origin",
        "positions": "completion",
        "distance": "token",
        "dtype": "float32",
        "samples": 4,
        "max_length": 512,
        "seed": 0,
    }
    assert measured.versions.keys() == {"sensmerge", "torch", "transformers", "python"}
    assert measured.versions["torch"] == torch.__version__
    assert all(seconds > 0 for seconds in measured.seconds.values())
    for place, expert in enumerate(measured.experts):
        task, samples = expert.task, oracle.samples_of(family, place)
        checkpoint = _core.Checkpoint(family.folder / f"e{place}")
        assert (expert.model, expert.fingerprint) == (f"e{place}", checkpoint.fingerprint())
        assert expert.vocabulary == 100
        assert (task.path, task.rows, task.drawn) == (f"t{place}.jsonl", 12, [0, 4, 6, 11])
        assert (task.used, task.left_out, task.max_length) == (4, 0, 512)
        assert task.scored_tokens == sum(len(sample.scored) for sample in samples)
        pairs = [[sample.ids, sample.scored] for sample in samples]
        text = "".join(map(json.dumps, pairs))
        assert task.token_ids == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_a_task_may_have_its_own_options(family: Family) -> None:
    data = family.recipe(sensitivity={"samples": 3, "seed": 5})
    path = str(family.folder / "t0.jsonl")
    data["models"][0]["calibration"] = {"path": path, "samples": 20, "max_length": 9}
    found = sensmerge.calibrate(Recipe.from_dict(data, folder=family.folder), progress=False)
    first, second, _ = (expert.task for expert in found.experts)
    assert (first.drawn, first.max_length) == (list(range(12)), 9)
    assert (len(second.drawn), second.max_length) == (3, 512)
    assert first.left_out > 0
    assert found.notes == [
        f"expert 'e0': {first.left_out} of 12 samples had every scored token cut away and were "
        "left out"
    ]


def test_a_recipe_may_be_named_by_its_path(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    family = family.copy(tmp_path)
    recipe = family.recipe(sensitivity={"dtype": "float32", "samples": 4})
    path = family.write_recipe(recipe, "recipe.yaml")
    for name in (path, str(path)):
        found = sensmerge.calibrate(name, progress=False)
        np.testing.assert_array_equal(found.sensitivity, measured.sensitivity)


def test_shards_and_dtypes_do_not_matter(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    sharded = llama_family(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "e0").glob("*.safetensors"))) > 1
    found = oracle.calibrated(sharded)
    np.testing.assert_allclose(found.sensitivity, measured.sensitivity, rtol=1e-12)
    np.testing.assert_allclose(found.alignment, measured.alignment, rtol=1e-12)
    assert [one.fingerprint for one in found.experts] == [
        one.fingerprint for one in measured.experts
    ]


def test_most_of_the_bytes_say_the_stored_dtype(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1, dtype="bfloat16")

    def widen(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()

    edit_weights(tmp_path / "e0", widen)
    assert loading.stored_dtype(tmp_path / "e0") == torch.bfloat16
    assert oracle.calibrated(family, dtype="stored").sensitivity.all()


def test_threads_are_honoured_and_put_back(
    family: Family, measured: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    cross_entropy = sensitivity.cross_entropy

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return cross_entropy(*arguments)

    monkeypatch.setattr(sensitivity, "cross_entropy", watched)
    recipe = oracle.recipe_of(family)
    found = sensmerge.calibrate(recipe, progress=False, threads=before + 1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(found.sensitivity, measured.sensitivity, rtol=1e-5)
    with pytest.raises(InputError, match="threads: 0 is no number of threads"):
        sensmerge.calibrate(recipe, progress=False, threads=0)


def test_quiet_is_quiet_and_lines_are_plain(
    family: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    family = family.copy(tmp_path)
    long = family.folder / "long.jsonl"
    long.write_text(json.dumps({"prompt": "w1 " * 900, "completion": "w2"}) + "\n")
    recipe = family.recipe(sensitivity={"max_length": 1000})
    recipe["models"][0]["calibration"] = "long.jsonl"
    loaded = Recipe.from_dict(recipe, folder=family.folder)
    sensmerge.calibrate(loaded, progress=False)
    assert capfd.readouterr() == ("", "")
    verbosity = logging.get_verbosity(), logging.is_progress_bar_enabled()
    sensmerge.calibrate(loaded, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "sensitivity ..."
    assert "alignment ..." in err.splitlines()
    assert "\r" not in err
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == verbosity


@pytest.mark.parametrize("kernel", ["sum_abs_product", "row_distances"])
def test_ctrl_c_goes_through(family: Family, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    monkeypatch.setattr(_core, kernel, interrupt)
    with pytest.raises(KeyboardInterrupt):
        sensmerge.calibrate(oracle.recipe_of(family), progress=False, threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_an_expert_without_samples_is_named(family: Family) -> None:
    data = family.recipe(sensitivity={})
    del data["models"][1]["calibration"]
    with pytest.raises(InputError, match="'e1' has no calibration samples"):
        sensmerge.calibrate(Recipe.from_dict(data, folder=family.folder), progress=False)


def test_what_can_be_refused_is_refused_before_a_model_is_loaded(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", None)
    family = family.copy(tmp_path)
    edit_weights(
        tmp_path / "e1",
        lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.2" in name],
    )
    with pytest.raises(InputError, match=r"'e1' has 2 blocks, model.layers.0 to model.layers.1"):
        oracle.calibrated(family)
    (tmp_path / "t2.jsonl").write_text('{"prompt": "w1"}')
    with pytest.raises(InputError, match=r"t2.jsonl, line 1: has no 'completion'"):
        oracle.calibrated(family)


def config(model: Path, **keys: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"num_hidden_layers": 4},
            "e1/config.json: num_hidden_layers: is 4, and the weights have 3",
        ),
        ({"num_hidden_layers": 2}, "e1: unexpected keys when loading: model.layers.2."),
        ({"model_type": "unheard"}, "e1: cannot be loaded: "),
        ({"intermediate_size": 50}, "e1: "),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(
    family: Family, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    family = family.copy(tmp_path)
    config(tmp_path / "e1", **keys)
    with pytest.raises(InputError) as refused:
        oracle.calibrated(family)
    assert f"{tmp_path}/{said}" in str(refused.value)


def test_code_that_comes_with_a_model_is_not_run(family: Family, tmp_path: Path) -> None:
    family = family.copy(tmp_path)
    (tmp_path / "e1" / "mine.py").write_text("raise SystemExit('was run')")
    config(tmp_path / "e1", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    with pytest.raises(InputError, match=r"e1: .* no such code is run"):
        oracle.calibrated(family)


def test_weights_of_integers_are_refused(family: Family, tmp_path: Path) -> None:
    family = family.copy(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(
        tmp_path / "e1", lambda tensors: tensors.update({name: tensors[name].to(torch.int8)})
    )
    with pytest.raises(InputError, match=f"e1, tensor '{name}': is stored as I8"):
        oracle.calibrated(family)


def test_folders_that_cannot_be_run_are_refused(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family.copy(tmp_path)
    data = family.recipe()
    data["models"][1]["model"] = "e1/model.safetensors"
    with pytest.raises(InputError, match="calibration needs the model's folder"):
        sensmerge.calibrate(Recipe.from_dict(data, folder=tmp_path), progress=False)
    # An adapter beside the weights would be applied here, where PEFT is installed, and not there.
    (tmp_path / "e1" / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(loading, "find_spec", lambda name: sys if name == "peft" else None)
    with pytest.raises(InputError, match=r"e1: transformers would apply the adapter"):
        oracle.calibrated(family)
    (tmp_path / "e1" / "config.json").unlink()
    with pytest.raises(InputError, match=r"e1: has no config.json"):
        oracle.calibrated(family)


def test_options_that_differ_from_the_measured_are_refused(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"sensitivity.distance: the recipe says sequence"):
        sensmerge.merge(
            oracle.recipe_of(family, distance="sequence"),
            tmp_path / "out",
            measured,
            progress=False,
        )
    assert not (tmp_path / "out").exists()
