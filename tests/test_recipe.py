from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sensmerge import InputError, Recipe

PLAIN = """
models:
  - model: base   # no parameters necessary for the base
  - model: expert/one
    parameters:
      density: 0.5
      weight: [0, 0.3, 1e-1]
  - model: expert/two
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 1
merge_method: dare_ties
base_model: base
parameters:
  normalize: true
  int8_mask: true
  lambda: 0.7
dtype: float16
tokenizer_source: base
"""


def valid(**keys: Any) -> dict[str, Any]:
    return {"merge_method": "ties", "base_model": "b", "models": [{"model": "x"}]} | keys


def test_a_plain_mergekit_recipe_loads_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(PLAIN)
    recipe = Recipe.load(path)
    assert [expert.model for expert in recipe.experts] == ["expert/one", "expert/two"]
    assert recipe.experts[0].parameters.weight == [0.0, 0.3, 0.1]
    assert recipe.parameters.lambda_ == 0.7
    assert recipe.parameters.normalize is True
    assert (recipe.semantics, recipe.sensitivity, recipe.folder) == ("mergekit", None, tmp_path)


def test_what_the_user_wrote_is_what_is_kept(tmp_path: Path) -> None:
    path, copy = tmp_path / "recipe.yaml", tmp_path / "copy.yaml"
    path.write_text(PLAIN)
    copy.write_text(Recipe.load(path).to_yaml())
    assert Recipe.load(copy).model_dump() == Recipe.load(path).model_dump()


def test_the_defaults_of_sensitivity() -> None:
    sensitivity = Recipe.from_dict(valid(sensitivity={})).sensitivity
    assert sensitivity is not None
    assert sensitivity.model_dump() == {
        "mode": "full",
        "temperature": 0.05,
        "cross_task": "transfer",
        "positions": "completion",
        "distance": "token",
        "outside_blocks": "uniform",
        "dtype": "stored",
        "samples": 10,
        "max_length": 512,
        "seed": 0,
    }


@pytest.mark.parametrize("off", ["off", "false", "'off'"])
def test_off_is_off_in_any_yaml(tmp_path: Path, off: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "merge_method: linear\nmodels: [{model: a}]\nsensitivity:\n  mode: " + off + "\n"
    )
    sensitivity = Recipe.load(path).sensitivity
    assert sensitivity is not None
    assert sensitivity.mode == "off"


def test_linear_merges_the_base_where_it_is_listed() -> None:
    data = {"merge_method": "linear", "base_model": "b", "models": [{"model": "b"}]}
    assert len(Recipe.from_dict(data).experts) == 1


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"model": {"path": "org/name", "revision": "v1"}}, "org/name@v1"),
        ({"path": "org/name"}, "org/name"),
        ({"model": "org/name@v1"}, "org/name@v1"),
        ({"model": {"path": "org/name"}, "lora": {"path": "a"}}, "org/name+a"),
    ],
)
def test_models_may_be_mappings(model: dict[str, Any], name: str) -> None:
    recipe = Recipe.from_dict(valid(models=[{"model": model}]))
    assert recipe.experts[0].model == name


def test_what_mergekit_takes_and_does_nothing_with_is_taken() -> None:
    model = {"model": "x", "parameters": {"int8_mask": True}}
    recipe = Recipe.from_dict(
        valid(
            merge_method="task_arithmetic",
            models=[{"model": "b", "parameters": None}, model],
            parameters={"rescale": True},
            chat_template="auto",
            slices=None,
        )
    )
    assert recipe.parameters.rescale is None
    assert len(recipe.experts) == 1


def test_linear_merges_the_models_that_are_listed() -> None:
    data = {"merge_method": "linear", "base_model": "b", "models": [{"model": "x"}]}
    some: list[dict[str, Any]] = [{}, {"parameters": {"weight": 1}}, {"sensitivity": {}}]
    for keys in some:
        assert [expert.model for expert in Recipe.from_dict(data | keys).experts] == ["x"]


@pytest.mark.parametrize("text", ["sensitivity:", "sensitivity: {}", "sensitivity: null"])
def test_an_empty_section_asks_for_the_defaults(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("merge_method: linear\nmodels: [{model: a}]\n" + text + "\n")
    sensitivity = Recipe.load(path).sensitivity
    assert sensitivity is not None
    assert sensitivity.mode == "full"


def test_numbers_written_as_text_are_numbers_everywhere() -> None:
    weight = [{"filter": "mlp", "value": "1e-3"}, {"value": ["1e-1", 2]}]
    recipe = Recipe.from_dict(valid(parameters={"weight": weight}))
    assert recipe.parameters.weight == [{"filter": "mlp", "value": 0.001}, {"value": [0.1, 2.0]}]


def test_it_is_known_which_keys_of_sensitivity_were_written() -> None:
    sensitivity = Recipe.from_dict(valid(sensitivity={"mode": False, "samples": 10})).sensitivity
    assert sensitivity is not None
    assert sensitivity.model_fields_set == {"mode", "samples"}


def test_the_source_is_the_recipes_own() -> None:
    data = valid(parameters={"weight": [1, 2]})
    recipe = Recipe.from_dict(data)
    data["parameters"]["weight"].append(3)
    assert recipe.source["parameters"] == {"weight": [1, 2]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"merge_method": "tie"}, "merge_method: unknown value 'tie'; did you mean 'ties'?"),
        ({"merge_metod": "ties"}, "merge_metod: unknown key; did you mean 'merge_method'?"),
        (
            {"models": [{"model": "x", "parameters": {"wieght": 1}}]},
            "models[0].parameters.wieght: unknown key; did you mean 'weight'?",
        ),
        ({"models": [{"model": "x", "weight": 1}]}, "did you mean 'models[0].parameters.weight'?"),
        (
            {"models": [{"model": "x", "parameters": {"normalize": True}}]},
            "models[0].parameters.normalize: unknown key; did you mean 'parameters.normalize'?",
        ),
        ({"temperature": 1}, "temperature: unknown key; did you mean 'sensitivity.temperature'?"),
        ({"parameters": {"lambda_": 1}}, "parameters.lambda_: unknown key; did you mean 'lambda'?"),
        ({"models": [{"model": {"path": 5}}]}, "models[0].model: expected a path"),
        (
            {"models": [{"model": {"model": "x", "override": 1}}]},
            "models[0].model: expected a path",
        ),
        ({"models": ["x"]}, "models[0]: expected a mapping"),
        ({"parameters": {"weight": 10**400}}, "parameters.weight: the number is too large"),
        ({"parameters": {"weight": [{"filter": 5, "value": 1}]}}, "filter: 5 is no text"),
        ({"parameters": {"weight": [{"filter": "mlp"}]}}, "each condition has a value"),
        ({"chat_template": "chatml"}, "chat_template: replacing it is not supported"),
        ({"tokenizer_source": "other"}, "tokenizer_source: 'other' is no model of the recipe"),
        ({"sensitivity": {"temprature": 1}}, "did you mean 'temperature'?"),
        ({"sensitivity": {"mode": "ful"}}, "sensitivity.mode: unknown value 'ful'"),
        ({"sensitivity": {"temperature": 0}}, "sensitivity.temperature"),
        ({"sensitivity": {"temperature": float("nan")}}, "sensitivity.temperature"),
        ({"sensitivity": {"samples": 0}}, "sensitivity.samples"),
        ({"models": []}, "models"),
        ({"models": [{"model": "b"}]}, "no expert to merge"),
        ({"base_model": None}, "base_model: ties adds task vectors"),
        ({"parameters": {"weight": float("nan")}}, "parameters.weight: nan is not a finite"),
        ({"parameters": {"weight": [1, float("inf")]}}, "parameters.weight: inf is not"),
        ({"parameters": {"weight": "heavy"}}, "parameters.weight"),
        ({"parameters": {"weight": True}}, "parameters.weight"),
        ({"parameters": {"density": 0}}, "parameters.density: 0 is not a fraction"),
        ({"parameters": {"density": 1.01}}, "parameters.density: 1.01 is not"),
        ({"parameters": {"density": [0.5, -0.1]}}, "parameters.density: -0.1 is not"),
        ({"dtype": "int8"}, "dtype: unknown value 'int8'"),
        ({"seed": -1}, "seed"),
        ({"slices": [{}]}, "slices: merging slices is not supported"),
        ({"tokenizer_source": "union"}, "tokenizer_source: 'union' is not supported"),
        ({"parameters": {"rescale": True}, "semantics": "original"}, "parameters.rescale"),
        ({"parameters": {"density": [0.5, 1]}, "semantics": "original"}, "parameters.density"),
        ({"merge_method": "linear", "parameters": {"lambda": 2}}, "linear has no lambda"),
    ],
)
def test_refusals_name_the_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        Recipe.from_dict(valid(**change))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "line 1"),
        ("a: 1\na: 2\n", "line 2"),
        ("- just a list", "mapping"),
        ("", "mapping"),
        ("!!python/object/apply:os.system [x]", "recipe.yaml"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        Recipe.load(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        Recipe.load(tmp_path / "nothing.yaml")
