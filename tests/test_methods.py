"""The registry of methods in Python, and the table and the schema made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sensmerge import InputError, Recipe
from sensmerge.recipe import methods, tables
from sensmerge.recipe.methods import Parameter, Range, Search
from sensmerge.recipe.schema import recipe_schema
from test_bad_input import run
from test_package import ROOT, loaded_by

Said = pytest.CaptureFixture[str]

DOCUMENTATION = ROOT / "docs" / "methods" / "README.md"
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
# The newer one has what has become faster since.
MEASURED = [
    ROOT / "benches" / "records" / f"merge-1b-{name}.md"
    for name in ("methods-2026-11-26", "2026-11-27")
]

KEEP = Range(above=0.0, most=1.0)
FRACTION = Parameter("kept", "fraction kept", "model", "number", 1.0, KEEP, by_tensor=True)
SWITCH = Parameter("odd", "odd or not", "merge", "switch", False)


def test_both_semantics_have_the_same_methods() -> None:
    for name in methods.names():
        found = [methods.find(name, semantics) for semantics in methods.SEMANTICS]
        assert [each.semantics for each in found if each is not None] == list(methods.SEMANTICS)
    assert methods.find("nothing") is None
    assert methods.find(methods.names()[0]) is methods.every()[0]


def test_a_name_is_of_one_kind_and_one_owner() -> None:
    # Recipes are read by it where the method is unknown, and the schema has one entry for each.
    for name in methods.parameter_names():
        known = methods.parameters_named(name)
        assert len({(each.kind, each.owner) for each in known}) == 1, name
    assert set(methods.parameter_names("model")) < set(methods.parameter_names())


def test_defaults_and_bounds_of_searches_are_values() -> None:
    for method in methods.every():
        for parameter in method.parameters:
            if parameter.default is not None:
                assert parameter.read(parameter.default) == parameter.default
            if parameter.search is not None:
                for bound in parameter.search.bounds(3):
                    assert parameter.read(bound) == bound


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [
        (FRACTION, 0, "0 is not above 0 and at most 1"),
        (FRACTION, [0.5, 1.5], "1.5 is not above 0 and at most 1"),
        (FRACTION, [{"filter": "mlp", "value": [1, -2]}], "-2 is not above 0 and at most 1"),
        (FRACTION, True, "expected a number, a list of numbers"),
        (FRACTION, None, "expected a number, a list of numbers"),
        (FRACTION, [], "expected a number, a list of numbers"),
        (SWITCH, 2, "expected true or false, not '2'"),
        (SWITCH, [True], "expected true or false, not '[True]'"),
    ],
)
def test_values_are_checked_against_kind_and_range(
    parameter: Parameter, value: Any, said: str
) -> None:
    with pytest.raises(ValueError, match="^" + said.replace("[", r"\[")):
        parameter.read(value)


def test_ranges_in_words() -> None:
    assert Range().words() == ""
    assert Range(least=-1, most=0.5).words() == "at least -1 and at most 0.5"
    assert Range(least=0).admits(0)
    assert not Range(above=0).admits(0)
    assert Search(0.25, 1.5, True, True, None).bounds(5) == (0.05, 1.5)
    assert Search(0.1, 1.0, False, False, 0.3).bounds(5) == (0.1, 1.0)


def test_nothing_is_loaded_before_it_is_needed() -> None:
    assert loaded_by("import sensmerge").isdisjoint({"pydantic", "numpy", "sensmerge._core"})
    loaded = loaded_by("import sensmerge.recipe")
    assert {"pydantic", "sensmerge.recipe.methods"} <= loaded
    cached = "import sensmerge.recipe.methods as m; assert m._registry.cache_info().currsize == 0"
    assert "sensmerge.recipe.methods" in loaded_by(cached)


def test_the_command_lists_and_describes(capsys: Said) -> None:
    assert run("methods") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["method", "models", "base", "parameters", "(defaults)"]
    assert [line.split()[0] for line in said.splitlines()[1:]] == methods.names()
    assert run("methods", "--semantics", "original") == 0
    original = capsys.readouterr().out
    assert "ties_density" in original
    assert "ties_density" not in said
    assert run("methods", "slerp") == 0
    assert "a number; must be given; under parameters" in capsys.readouterr().out
    assert run("methods", "tie") == 2
    assert "did you mean 'ties'?" in capsys.readouterr().err


def test_the_documentation_has_the_table() -> None:
    """The part of docs/methods/README.md between its markers is the registry's table."""
    text = DOCUMENTATION.read_text(encoding="utf-8")
    between = text.partition(BEGIN)[2].partition(END)[0]
    assert between.strip() == tables.as_markdown().strip(), (
        f"write into {DOCUMENTATION}, between its markers:\n\n{tables.as_markdown()}"
    )


def measured() -> dict[str, list[str]]:
    """Seconds, their ratio to the floor, and memory, of the first work of every measured method."""
    from works import WORKS

    rows = [row for each in MEASURED for row in each.read_text(encoding="utf-8").splitlines()]
    found = {cells[0]: cells for row in rows if len(cells := row.strip("| ").split(" | ")) == 7}
    return {
        work.method: [found[work.name][1].split()[0], found[work.name][2], found[work.name][6]]
        for work in reversed(WORKS)
        if work.name in found
    }


def properties() -> str:
    """What each method can do and costs, as a Markdown table."""
    lines = [
        "| method | in mergekit | weights by layer | weights learned | reads of samples | "
        "seconds | over the floor | memory |",
        "|---|---|---|---|---|---:|---:|---:|",
    ]
    costs = measured()
    for method in methods.every():
        whole = method.parameter("matrices") is not None
        cost = costs.get(method.name, ["", "", "of the largest matrices" if whole else ""])
        marks = [method.in_mergekit, method.coefficients, method.learnable]
        cells = ["yes" if mark else "" for mark in marks]
        lines.append("| " + " | ".join([method.name, *cells, method.statistic or "", *cost]) + " |")
    return "\n".join(lines)


def test_the_documentation_has_the_table_of_properties() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    between = text.partition("<!-- properties:begin -->")[2].partition("<!-- properties:end -->")[0]
    assert between.strip() == properties(), f"write into {DOCUMENTATION}:\n\n{properties()}"
    assert set(measured()) <= set(methods.names())


def test_the_table_of_the_documentation_has_every_default() -> None:
    rows = tables.as_markdown().splitlines()[2:]
    assert len(rows) == len(methods.names())
    for method, row in zip(methods.every(), rows, strict=True):
        assert f"`{method.name}`" in row
        assert row.count("|") == rows[0].count("|")
        for parameter in method.parameters:
            assert f"`{parameter.name}` (" in row
    assert "`normalize` (mergekit: false; original: true)" in tables.as_markdown()


def test_the_command_writes_the_schema(tmp_path: Path, capsys: Said) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()
    assert run("schema", "-o", str(tmp_path / "recipe.json")) == 0
    assert json.loads((tmp_path / "recipe.json").read_text()) == recipe_schema()


RECIPES = """
{merge_method: linear, models: [{model: a}, {model: {path: org/name, revision: v1}}]}
---
merge_method: dare_ties
base_model: b
models:
  - {model: b, parameters: }
  - {model: a, parameters: {density: [0.5, 1], weight: [{filter: mlp, value: 1e-3}, {value: 1}]}}
  - {model: c, calibration: [a.jsonl, b.jsonl]}
  - {model: d, calibration: {path: a.jsonl, samples: 3}}
parameters: {normalize: true, lambda: auto, int8_mask: true, weight: {value: "0.5"}}
dtype: bfloat16
out_dtype: float16
tokenizer_source: base
sensitivity: {temperature: auto, mode: cross}
---
{merge_method: slerp, models: [{model: a}, {model: b}], parameters: {t: [0, 1]}, dtype: }
---
name: first
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: {model: {path: b}, lora: , override_architecture: X}, layer_range: [1, 3]}
    parameters: {weight: {filter: mlp, value: 0.5}}
    base_model: a
---
{merge_method: linear, modules: {default: {models: [{model: a}, {model: b}], parameters: }}}
"""
WRONG: list[dict[str, Any]] = [
    {"merge_method": "tie"},
    {"merge_method": None},
    {"base_model": None},
    {"models": []},
    {"models": ["x"]},
    {"models": [{"model": "x", "weight": 1}]},
    {"parameters": {"wieght": 1}},
    {"parameters": {"density": 2}},
    {"parameters": {"normalize": "maybe"}},
    {"parameters": {"weight": True}},
    {"parameters": {"weight": []}},
    {"merge_method": "slerp"},
    {"sensitivity": {"temperature": 0}},
    {"sensitivity": {"mode": "ful"}},
    {"dtype": "int8"},
    {"seed": -1},
    {"lamda": 1},
]


def test_the_schema_takes_what_is_a_recipe() -> None:
    schema = recipe_schema()
    for recipe in YAML(typ="safe", pure=True).load_all(RECIPES):
        Recipe.from_dict(recipe)
        assert fits(recipe, schema, schema)


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_the_schema_refuses_what_is_none(change: dict[str, Any]) -> None:
    schema = recipe_schema()
    recipe = {"merge_method": "ties", "base_model": "b", "models": [{"model": "x"}]}
    assert fits(recipe, schema, schema)
    wrong = {key: value for key, value in (recipe | change).items() if value is not None}
    with pytest.raises(InputError):
        Recipe.from_dict(wrong, leniency="strict")
    assert not fits(wrong, schema, schema)


TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int,
    "boolean": bool, "null": type(None),
}  # fmt: skip


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits a JSON Schema; only keywords of the recipes' schema are supported."""

    def inner(part: Any, rule: dict[str, Any]) -> bool:
        return fits(part, rule, root)

    def typed(name: str) -> bool:
        is_number = name in ("number", "integer")
        return isinstance(value, TYPES[name]) and not (is_number and isinstance(value, bool))

    if "$ref" in schema and not inner(value, root["$defs"][schema["$ref"].rpartition("/")[2]]):
        return False
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds and not any(map(typed, kinds)):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(inner(value, rule) for rule in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(inner(value, rule) for rule in schema["oneOf"]) != 1:
        return False
    if not all(inner(value, rule) for rule in schema.get("allOf", [])):
        return False
    if "if" in schema and inner(value, schema["if"]) and not inner(value, schema["then"]):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        bounds = (
            value > schema.get("exclusiveMinimum", -float("inf"))
            and value >= schema.get("minimum", -float("inf"))
            and value <= schema.get("maximum", float("inf"))
            and value < schema.get("exclusiveMaximum", float("inf"))
        )
        if not bounds:
            return False
    if isinstance(value, str):
        return len(value) >= int(schema.get("minLength", 0))
    if isinstance(value, list):
        items = all(inner(part, schema.get("items", {})) for part in value)
        return items and len(value) >= int(schema.get("minItems", 0))
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if schema.get("additionalProperties", True) is False and not set(value) <= set(known):
            return False
        return set(value).issuperset(schema.get("required", [])) and all(
            inner(part, known[key]) for key, part in value.items() if key in known
        )
    return True
