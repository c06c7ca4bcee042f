"""A model is identified by the path of its name: a base spelled in two ways is not an expert."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import sensmerge
from families import tensor_family
from sensmerge import InputError, Recipe
from sensmerge.recipe.places import place_of

SHAPES = {"a.w": (7, 5), "b.w": (11,)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tensor_family(folder / "models", experts=2, dtype="float32", shapes=SHAPES)
    (folder / "link").symlink_to("models/base")
    return folder


def recipe(folder: Path, base: str, *listed: str, **keys: Any) -> Recipe:
    data: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": name} for name in listed],
        "parameters": {"normalize": True},
    }
    return Recipe.from_dict(data | keys, folder=folder)


@pytest.mark.parametrize("base", ["models//base", "./models/base", "{folder}/models/base", "link"])
def test_a_base_spelled_in_two_ways_is_not_merged(models: Path, tmp_path: Path, base: str) -> None:
    experts = ("models/e0", "models/e1")
    plain = recipe(models, "models/base", *experts)
    twice = recipe(models, base.format(folder=models), "models/base", *experts)
    for name, each in (("plain", plain), ("twice", twice)):
        sensmerge.merge(each, tmp_path / name, progress=False, sync=False)
    expected, found = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "twice"))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_model_is_opened_once_and_given_by_any_spelling(models: Path) -> None:
    opened = sensmerge.open_models(
        recipe(models, "models/base", "link", "models/e0", merge_method="linear")
    )
    assert opened.base is opened.experts[0]
    given = sensmerge.open_models(
        recipe(models, "models/base", "models/e0"),
        {"./models//e0": opened.experts[1].checkpoint},
    )
    assert given.experts[0].checkpoint is opened.experts[1].checkpoint
    with pytest.raises(InputError, match="'models/e1' is not a model of the recipe"):
        sensmerge.open_models(
            recipe(models, "models/base", "models/e0"),
            {"models/e1": opened.experts[1].checkpoint},
        )


def test_names_of_what_is_not_there_are_text(tmp_path: Path) -> None:
    assert place_of("org/name@v1", tmp_path) == "org/name@v1"
    assert place_of("./org//name", tmp_path) == place_of("org/name", tmp_path) == "org/name"
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    assert place_of("org/name", tmp_path) == str((tmp_path / "org" / "name").resolve())


def test_recipes_can_be_copied(models: Path) -> None:
    one = recipe(models, "models/base", "models/e0")
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other.model_dump() == one.model_dump()
        assert other.parameters.get("normalize") is True
