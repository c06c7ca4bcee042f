"""Greedy soups: a step has the loss of the merge on disk, and the choice is the greedy one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import sensmerge
import torch_oracle as oracle
from families import Family, edit_weights
from sensmerge import InputError, Recipe
from sensmerge.cli import commands
from sensmerge.search.judge import Objective
from sensmerge.search.soup import soup

FEW = {"sensitivity": {"mode": "off", "samples": 4, "dtype": "float32"}}


@pytest.fixture(scope="module")
def spoiled(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The family with an expert that a merge is better without."""
    copy = family.copy(tmp_path_factory.mktemp("spoiled"))

    def spoil(tensors: dict[str, Any]) -> None:
        torch.manual_seed(0)
        head = "lm_head.weight"
        tensors[head] = tensors[head] + 3 * torch.randn(tensors[head].shape)

    edit_weights(copy.folder / "e1", spoil)
    return copy


def losses_on_disk(family: Family, names: list[str], out: Path, **keys: Any) -> list[float]:
    """Every task's loss of a merge of some experts, written and run by transformers."""
    models = [{"model": name} for name in names]
    said = {"models": models} | {"merge_method": "linear", "base_model": "base"} | keys
    sensmerge.merge(Recipe.from_dict(said, family.folder), out, progress=False, sync=False)
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        return [
            float(np.mean([oracle.loss(model, sample) for sample in oracle.samples_of(family, i)]))
            for i in range(3)
        ]


@pytest.mark.parametrize("kind", ["mean", "worst"])
def test_a_soup_is_the_greedy_choice(spoiled: Family, tmp_path: Path, kind: str) -> None:
    asked = Recipe.from_dict(spoiled.recipe("linear", **FEW), spoiled.folder)
    objective = Objective(kind)
    found = soup(asked, objective=objective, threads=1, progress=False)

    def loss(names: list[str]) -> float:
        return objective.of(losses_on_disk(spoiled, names, tmp_path / "-".join(names)))

    alone = {name: loss([name]) for name in ("e0", "e1", "e2")}
    order = sorted(alone, key=lambda name: alone[name])
    assert order[-1] == "e1"
    kept, best = order[:1], alone[order[0]]
    for name in order[1:]:
        together = loss([*kept, name])
        if together <= best:
            kept, best = [*kept, name], together
    assert [step.model for step in found.steps] == order
    assert [step.alone for step in found.steps] == pytest.approx(
        [alone[name] for name in order], rel=1e-5
    )
    assert found.kept == kept
    assert "e1" not in kept
    assert found.loss == pytest.approx(best, rel=1e-5)
    assert found.all == pytest.approx(loss(["e0", "e1", "e2"]), rel=1e-5)
    assert found.loss <= found.steps[0].alone
    assert found.loss < found.all


def test_the_recipe_has_those_that_are_kept(spoiled: Family, tmp_path: Path) -> None:
    path = spoiled.write_recipe(spoiled.recipe("linear", **FEW))
    out = tmp_path / "soup.yaml"
    done = CliRunner().invoke(
        commands, ["soup", str(path), "-o", str(out), "--validation", "0.25", "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "left out" in done.output
    assert "on the validation samples" in done.stderr
    written = Recipe.load(out)
    names = [Path(model.model).name for model in written.models]
    assert names
    assert "e1" not in names
    assert out.read_text().startswith("# greedy soup by sensmerge")
    sensmerge.merge(written, tmp_path / "merged", progress=False, sync=False)
    text = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert text["model_type"] == "llama"


def test_a_soup_of_task_vectors(spoiled: Family, tmp_path: Path) -> None:
    keys = FEW | {"parameters": {"lambda": 0.5}}
    asked = Recipe.from_dict(spoiled.recipe("task_arithmetic", **keys), spoiled.folder)
    found = soup(asked, threads=1, progress=False)
    wanted = losses_on_disk(
        spoiled,
        found.kept,
        tmp_path / "out",
        merge_method="task_arithmetic",
        parameters={"lambda": 0.5},
    )
    assert found.loss == pytest.approx(float(np.mean(wanted)), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sensitivity": {"mode": "full"}}, "sensitivity: coefficients depend on which experts"),
        ({"tokenizer_source": "union"}, "tokenizer: a united vocabulary depends"),
        ({"merge_method": "slerp"}, "models"),
    ],
)
def test_refusals(spoiled: Family, change: dict[str, Any], said: str) -> None:
    data = spoiled.recipe("linear", **FEW) | change
    with pytest.raises(InputError, match=said):
        soup(Recipe.from_dict(data, spoiled.folder), threads=1, progress=False)
    one = spoiled.recipe("linear", **FEW)
    one["models"] = one["models"][:1]
    with pytest.raises(InputError, match="chosen from two experts or more"):
        soup(Recipe.from_dict(one, spoiled.folder), threads=1, progress=False)
