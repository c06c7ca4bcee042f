from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensmerge import InputError, Recipe
from sensmerge.models.references import resolve
from sensmerge.recipe.tokenizer import ModelToken, Zero

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
        "measure": "taylor",
        "cross_task": "transfer",
        "tau": None,
        "base": "origin",
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


def test_the_tokenizer_is_written_in_two_ways() -> None:
    said: list[tuple[dict[str, Any], str]] = [
        ({}, "base"),
        ({"tokenizer_source": "union"}, "union"),
        ({"tokenizer_source": "model:x"}, "x"),
        ({"tokenizer_source": {"model": {"path": "x"}}}, "x"),
        ({"tokenizer": {}}, "union"),
        ({"tokenizer": {"source": "base"}}, "base"),
        ({"tokenizer": {"source": {"path": "x"}}}, "x"),
        ({"tokenizer_source": "org/outside"}, "org/outside"),
    ]
    for keys, source in said:
        assert Recipe.from_dict(valid(**keys)).wanted_tokenizer.source == source
    token = {"kind": "model_token", "model": {"path": "x"}, "token_id": 7}
    rows = {"a": {"source": {"kind": "zero"}}, "b": {"source": "x", "force": True}}
    rows |= {"c": {"source": token}, "d": {"source": None}}
    wanted = Recipe.from_dict(valid(tokenizer={"tokens": rows, "pad_to_multiple_of": 8}))
    tokens = wanted.wanted_tokenizer.tokens
    assert isinstance(tokens["a"].source, Zero)
    assert (tokens["b"].source, tokens["b"].force) == ("x", True)
    assert tokens["c"].source == ModelToken(kind="model_token", model="x", token_id=7)
    assert tokens["d"].source is None
    assert wanted.wanted_tokenizer.names() == ["x", "x"]


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
        ({"temperature": 1}, "temperature: unknown key; did you mean 'sensitivity.temperature'?"),
        ({"parameters": {"lambda_": 1}}, "parameters.lambda_: unknown key; did you mean 'lambda'?"),
        ({"models": [{"model": {"path": 5}}]}, "models[0].model: expected a path"),
        (
            {"models": [{"model": {"model": "x", "overide_architecture": "LlamaForCausalLM"}}]},
            "models[0].model: expected a path",
        ),
        ({"models": ["x"]}, "models[0]: expected a mapping"),
        ({"parameters": {"weight": 10**400}}, "parameters.weight: the number is too large"),
        ({"parameters": {"weight": [{"filter": 5, "value": 1}]}}, "filter: 5 is not text"),
        ({"parameters": {"weight": [{"filter": "mlp"}]}}, "each condition needs a value"),
        (
            {"chat_template": "chatlm"},
            "chat_template: unknown value 'chatlm'; did you mean 'chatml'?",
        ),
        ({"chat_template": 3}, "chat_template: unknown value '3'; known: auto, alpaca, "),
        ({"tokenizer_source": "other"}, "'other' is neither a model of the recipe nor a folder"),
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
        ({"parameters": {"density": 0}}, "parameters.density: 0 is not above 0 and at most 1"),
        ({"parameters": {"density": 1.01}}, "parameters.density: 1.01 is not"),
        ({"parameters": {"density": [0.5, -0.1]}}, "parameters.density: -0.1 is not"),
        ({"dtype": "int8"}, "dtype: unknown value 'int8'"),
        ({"seed": -1}, "seed"),
        ({"slices": [{}]}, "slices[0].sources: is missing"),
        ({"modules": {"text": {}}}, "modules: expected a mapping of modules, each with models or"),
        ({"tokenizer": "union"}, "tokenizer: expected a mapping of keys to values"),
        ({"tokenizer": {"source": "y"}}, "tokenizer.source: 'y' is neither a model of the recipe"),
        ({"tokenizer": {"source": 3}}, "tokenizer.source: expected a path"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "tokenizer.pad_to_multiple_of"),
        ({"tokenizer": {}, "tokenizer_source": "base"}, "stands beside 'tokenizer'; keep one"),
        ({"tokenizer": {"tokens": {"w": {"source": "y"}}}}, "tokens: 'y' is not a model of the"),
        ({"tokenizer": {"tokens": {"w": {"forse": 1}}}}, "tokens.w.forse: unknown key; did you"),
        (
            {"tokenizer": {"tokens": {"w": {"source": {"kind": "none"}}}}},
            "tokenizer.tokens.w.source: unknown kind 'none'; known: zero, model_token",
        ),
        (
            {"tokenizer": {"tokens": {"w": {"source": {"kind": "zero", "token": "x"}}}}},
            "a row of zeros takes no more keys than kind",
        ),
        (
            {"tokenizer": {"tokens": {"w": {"source": {"kind": "model_token", "model": "x"}}}}},
            "a model_token takes one of token and token_id",
        ),
        ({"parameters": {"rescale": True}, "semantics": "original"}, "parameters.rescale"),
        ({"parameters": {"density": [0.5, 1]}, "semantics": "original"}, "parameters.density"),
        ({"merge_method": "linear", "parameters": {"lambda": 2}}, "linear has no lambda"),
        (
            {"merge_method": "linear", "parameters": {"lambda": "auto"}},
            "auto: linear has no lambda",
        ),
        ({"merge_method": "ensemble"}, "merge_method: unknown value 'ensemble'"),
        ({"merge_method": None}, "merge_method: is missing"),
        ({"merge_method": ["ties"]}, "merge_method: unknown value '['ties']'"),
        ({"merge_method": "Dare-Ties"}, "did you mean 'dare_ties'?"),
        ({"dtype": "q4_k_m"}, "dtype: unknown value 'q4_k_m'; known: bfloat16,"),
        ({"models": None}, "models: input should be a valid list"),
        ({"parameters": {"lamda": 1}}, "parameters.lamda: unknown key; did you mean 'lambda'?"),
        ({"lamda": 1}, "lamda: unknown key; did you mean 'parameters.lambda'?"),
        ({"parameters": {"normalize": "maybe"}}, "parameters.normalize: expected true or false"),
        ({"parameters": {"weight": "auto"}}, "parameters.weight: expected a number"),
        (
            {"semantics": "original", "parameters": {"density": [0.5, 1]}},
            "ties with semantics: original takes one number for the whole model; give one, or use "
            "semantics: mergekit",
        ),
        ({"semantics": "original", "out_path": "x"}, "out_path: unknown key"),
        ({"semantics": "original", "parameters": {"filter_wise": True}}, "has no filter_wise"),
        ({"merge_method": "slerp", "models": [{"model": "x"}]}, "parameters.t: is missing; slerp"),
        (
            {"merge_method": "slerp", "models": [{"model": "x"}, {"model": "y"}]},
            "models: slerp merges exactly 2, the base among them, not 3",
        ),
        ({"merge_method": "model_stock"}, "merges at least 2 besides the base, not 1"),
        ({"merge_method": "model_stock", "base_model": None}, "base_model: model_stock adds"),
        ({"merge_method": "passthrough", "models": [{"model": "x"}] * 2}, "merges exactly 1,"),
        ({"merge_method": "slerp", "sensitivity": {}}, "sensitivity: slerp has no weights that"),
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
        ("- just a list", "mapping"),
        ("", "mapping"),
        ("a: 1\n---\nb: 2\n", "holds several documents (stages, with --- between them); `sens"),
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


def test_a_recipe_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(PLAIN, encoding="utf-16")
    with pytest.raises(InputError, match=r"yaml: is not UTF-8 text: .*; save it as UTF-8$"):
        Recipe.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        Recipe.load(tmp_path / "nothing.yaml")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "models: [{model: x, wieght: 1}, {model: y, parameters: {wieght: 1, density: 2}}]\n"
        "dtype: int8\n"
        "merge_method: ensemble\n"
        "tokenizer_source: onion\n"
        "chat_template: chatlm\n"
        "parameters: {normalize: 3, lambda: heavy, unheard_of: 1}\n"
        "sensitivity: {temprature: 1, samples: 0}\n"
    )
    with pytest.raises(InputError) as refused:
        Recipe.load(path)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert [line.removeprefix(f"{path}: ").split(": ")[0] for line in lines] == [
        "merge_method",
        "models[0].wieght",
        "models[1].parameters.wieght",
        "models[1].parameters.density",
        "dtype",
        "tokenizer_source",
        "chat_template",
        "parameters.normalize",
        "parameters.lambda",
        "sensitivity.temprature",
        "sensitivity.samples",
    ]


def test_what_is_not_supported_does_not_hide_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    (tmp_path / "a+b").mkdir()
    sources = "[{model: b}, {model: a+b}]"
    path.write_text(
        f"slices: [{{sources: {sources}}}, {{sources: {sources}}}]\n"
        "base_model: b\n"
        "merge_method: ensemble\n"
        "tokenizer_source: onion\n"
    )
    with pytest.raises(InputError) as refused:
        Recipe.load(path)
    lines = [line.removeprefix(str(path)) for line in str(refused.value).splitlines()]
    assert [line.split(" is ")[0].split("; ")[0] for line in lines] == [
        ": merge_method: unknown value 'ensemble'",
        ": tokenizer_source: 'onion'",
    ]


def test_a_key_that_cannot_be_read_does_not_hide_the_others() -> None:
    with pytest.raises(InputError) as refused:
        Recipe.from_dict({"merge_method": "ties", "models": "x", "semantics": "both"})
    assert [line.split(": ")[0] for line in str(refused.value).splitlines()] == [
        "models", "semantics", "base_model",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        ({"parameters": {"int8_mask": True}}, ["parameters.int8_mask: ties does not use it"]),
        (
            {"merge_method": "task_arithmetic", "parameters": {"rescale": True}},
            ["parameters.rescale: task_arithmetic does not use it"],
        ),
        (
            {"merge_method": "linear", "parameters": {"lambda": 1, "density": 0.5}},
            [f"parameters.{key}: linear does not use it" for key in ("lambda", "density")],
        ),
        (
            {"merge_method": "model_stock", "models": [
                {"model": "x", "parameters": {"weight": 1}},
                {"model": "y", "parameters": {"weight": 1}},
            ]},
            ["models[0].parameters.weight and 1 more like it: model_stock does not use it"],
        ),
        ({"out_path": "x"}, ["out_path: unknown key, not used"]),
        ({"parameters": {"random_seed": 5}},
         ["parameters.random_seed: unknown key, not used; the nearest known key is 'seed'"]),
        ({"semantics": "original", "parameters": {"rescale": False}},
         ["parameters.rescale: ties does not use it"]),
        (
            {"models": [{"model": "b", "parameters": {"weight": 0.2}}, {"model": "x"}]},
            ["models[0].parameters: not used, since this is the base"],
        ),
        ({"models": [{"model": "x"}, {"model": "./x"}, {"model": "y"}, {"model": "x//"}]},
         [f"models[{place}]: is the same model as models[0]" for place in (1, 3)]),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_noted(change: dict[str, Any], notes: list[str]) -> None:
    recipe = Recipe.from_dict(valid(**change))
    assert recipe.notes == notes
    for name in ("rescale", "density", "lambda", "int8_mask"):
        if recipe.method.parameter(name) is None:
            assert recipe.parameters.get(name) is None


def test_switches_as_mergekits_yaml_has_them() -> None:
    for written, value in [(True, True), ("yes", True), ("Off", False), (0, False), (None, None)]:
        assert Recipe.from_dict(valid(parameters={"normalize": written})).parameters.get(
            "normalize"
        ) in (value, value is True if value is not None else None)


def test_values_and_defaults_are_the_methods() -> None:
    recipe = Recipe.from_dict(valid(parameters={"lambda": 0.5}))
    assert (recipe.value("lambda"), recipe.value("density"), recipe.value("normalize")) == (
        0.5, recipe.default("density"), True,
    )  # fmt: skip
    assert recipe.default("t") is None
    assert recipe.parameters.lambda_ == recipe.parameters.get("lambda")
    with pytest.raises(AttributeError, match="no method has a parameter 'lamda'"):
        _ = recipe.parameters.lamda


BASES = [
    ("ties", ["x"], ["b", "x"]),
    ("ties", ["x"], ["x"]),
    ("slerp", ["b", "x"], ["x"]),
    ("slerp", ["b", "x"], ["x", "b"]),
    ("nuslerp", ["x", "y"], ["b", "x", "y"]),
    ("linear", ["x"], ["x"]),
    ("linear", ["x", "b"], ["x", "b"]),
    ("passthrough", ["b"], ["b"]),
]


@pytest.mark.parametrize(("method", "merged", "listed"), BASES)
def test_the_part_of_the_base(method: str, merged: list[str], listed: list[str]) -> None:
    models = [{"model": name} for name in listed]
    parameters = {"t": 0.5} if method == "slerp" else {}
    recipe = Recipe.from_dict(valid(merge_method=method, models=models, parameters=parameters))
    assert [expert.model for expert in recipe.experts] == merged


def test_some_methods_need_no_base() -> None:
    models = [{"model": "x"}, {"model": "y"}]
    for method, parameters in [("slerp", {"t": [0, 1]}), ("nuslerp", {}), ("linear", {})]:
        data = {"merge_method": method, "models": models, "parameters": parameters}
        assert [expert.model for expert in Recipe.from_dict(data).experts] == ["x", "y"]


@pytest.mark.parametrize("spelling", ["base", "./base", "models/..//base", "{folder}/base", "link",
                                      "~/base", "models/link"])  # fmt: skip
def test_a_model_is_what_its_name_resolves_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("base", "models/x", "models/y"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("base")
    (tmp_path / "models" / "link").symlink_to("../base")
    models = [{"model": spelling.format(folder=tmp_path)}, {"model": "models/x"}]
    for base in ("base", "./base//", "link"):
        data = valid(base_model=base, models=models, tokenizer_source="./link")
        recipe = Recipe.from_dict(data, folder=tmp_path)
        assert [expert.model for expert in recipe.experts] == ["models/x"]
    data = valid(base_model="models/y", models=[{"model": "base"}, *models])
    assert Recipe.from_dict(data, folder=tmp_path).notes == [
        "models[1]: is the same model as models[0]"
    ]


def test_a_path_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models/base", "models/x", "recipes/models/x"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    data = valid(base_model="models/base", models=[{"model": "models/x"}, {"model": "org/none"}])
    recipe = Recipe.from_dict(data, folder="recipes")
    assert recipe.notes == [
        "models/base: is taken from the current folder; the recipe's has no such path"
    ]
    assert resolve("models/base", recipe.places) == Path("models/base")
    # The recipe's folder comes first.
    assert resolve("models/x", recipe.places) == Path("recipes/models/x")


def test_a_home_of_nobody_is_a_name_like_any_other(tmp_path: Path) -> None:
    models = [{"model": "~nobody-of-this-name/x"}]
    assert Recipe.from_dict(valid(models=models), folder=tmp_path).experts[0].model[0] == "~"
    with pytest.raises(InputError, match="no such folder"):
        resolve("~nobody-of-this-name/x", tmp_path)


def test_names_on_the_hub_are_told_apart_by_revision() -> None:
    models = [{"model": "org/b@v1"}, {"model": "org/b"}, {"model": "org/B"}]
    recipe = Recipe.from_dict(valid(base_model="org/b", models=models))
    assert [expert.model for expert in recipe.experts] == ["org/b@v1", "org/B"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(
        ["auto", "ties", "slerp", "ensemble", "x", "", "base", "union", "original", "1e-3"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([
            "model", "parameters", "weight", "density", "lambda", "t", "filter", "value", "path",
            "normalize", "int8_mask", "mode", "temperature", "calibration", "wieght", "odd",
        ]) | st.integers(0, 2), inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
KEYS = st.sampled_from([
    "merge_method", "models", "base_model", "parameters", "dtype", "tokenizer_source", "tokenizer",
    "sensitivity", "semantics", "seed", "slices", "chat_template", "odd_key", "lamda",
]) | st.integers(0, 2)  # fmt: skip


@given(data=st.dictionaries(KEYS, JSON, max_size=6), method=st.sampled_from(["ties", "slerp"]))
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_is_read_or_refused(data: dict[Any, Any], method: str) -> None:
    before = repr(data)
    for recipe in (data, valid() | data, data | {"merge_method": method}):
        with suppress(InputError):
            Recipe.from_dict(recipe)
    assert repr(data) == before
