"""YAML as mergekit reads it: PyYAML is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensmerge import InputError, Recipe
from sensmerge.recipe.yaml import Documents, parse_yaml, to_yaml

# Installed beside transformers.
yaml: Any = pytest.importorskip("yaml")

WORDS = [
    *("yes", "no", "on", "off", "y", "n", "Y", "True", "tRue", "NO", "~", "null", "Null", "''"),
    *("1e-9", "1e9", "1.0e9", "1.0e+9", "1_000", "1_0.5", ".5", "5.", "-.5", "+.5", "12e03"),
    *("010", "08", "0o7", "0x1F", "0b11", "0x", "0b", "00", "07", "09.5", "1:30", "1:30.5"),
    *(".inf", "-.inf", "+.inf", "0", "-0", "+1", "0_", "1__", "'a'", '"1"', "0.1", "-1.25"),
    *("1e-10", "1200", "bfloat16", "--", "1.2.3", ".e1"),
]


def read(text: str) -> Documents:
    return parse_yaml(text, Path("in-memory.yaml"))


def value(text: str) -> Any:
    (document,) = read(f"v: {text}\n").documents
    return document["v"]


@pytest.mark.parametrize("text", WORDS)
def test_words_and_numbers(text: str) -> None:
    expected = yaml.safe_load(f"v: {text}\n")["v"]
    assert repr(value(text)) == repr(expected)


@given(text=st.text("0123456789.eE+-_xobnaf:~yYesNnOofFtTrulL", min_size=1, max_size=8))
@settings(max_examples=500, deadline=None)
def test_any_plain_scalar(text: str) -> None:
    try:
        expected = yaml.safe_load(f"v: {text}\n")["v"]
    except (yaml.YAMLError, ValueError):
        # What PyYAML takes for a number and cannot read, such as 0x_.
        return
    if isinstance(expected, str | bool | int | float | None):
        assert repr(value(text)) == repr(expected)


def test_dates_and_equals_signs_are_text() -> None:
    assert value("2024-01-01") == "2024-01-01"
    assert value("=") == "="


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(
        [
            *WORDS,
            "2024-01-01",
            "=",
            "<<",
            "a: b",
            "x #y",
            "- z",
            "…",
            "\n",
            "\x85",
            "a\u2028b",
            "\u2029",
        ]
    )
    | st.text(max_size=6)
)


TEXTS = SCALARS.filter(lambda scalar: isinstance(scalar, str))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(v=VALUES)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read_back_here_and_by_mergekit(v: Any) -> None:
    text = to_yaml({"v": v})
    assert read(text).documents == [{"v": v}]
    assert yaml.safe_load(text) == {"v": v}


def test_a_key_twice() -> None:
    found = read("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert found.documents == [{"a": 3, "b": {"c": 2}}]
    assert sorted(found.twice) == [
        "line 2: 'c' stands a second time, after line 2; the last counts",
        "line 3: 'a' stands a second time, after line 1; the last counts",
    ]
    # An anchor's keys are not written twice.
    merged = read("d: &d {a: 1, b: 2}\ne: {<<: *d, a: 5}\n")
    assert merged == Documents([{"d": {"a": 1, "b": 2}, "e": {"a": 5, "b": 2}}], [])


def test_a_recipe_with_a_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "merge_method: ties\nmodels: [{model: x}]\nbase_model: b\nmerge_method: linear\n"
        "parameters: {weight: 1e-3, normalize: no}\n"
    )
    recipe = Recipe.load(path)
    note = "line 4: 'merge_method' stands a second time, after line 1; the last counts"
    assert (recipe.merge_method, recipe.notes) == ("linear", [note])
    assert (recipe.parameters.weight, recipe.parameters.normalize) == (0.001, False)
    with pytest.raises(InputError) as refused:
        Recipe.load(path, leniency="strict")
    assert str(refused.value) == f"{path}: {note}"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("org/name", "org/name"),
        ("{path: org/name}", "org/name"),
        ("{model: {path: org/name}}", "org/name"),
        ("{model: {path: org/name, revision: v1}, lora: null}", "org/name@v1"),
        ("{model: org/name@v1, override_architecture: null}", "org/name@v1"),
        ("{model: {path: org/name, revision: null}, override_architecture: X}", "org/name"),
    ],
)
def test_every_form_of_a_reference_everywhere(tmp_path: Path, written: str, name: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"merge_method: ties\nbase_model: {written}\nmodels: [{{model: {written}}}, {{model: x}}]\n"
        f"tokenizer_source: {written}\n"
    )
    recipe = Recipe.load(path)
    assert (recipe.base_model, recipe.models[0].model) == (name, name)
    assert recipe.tokenizer_source == name
    assert [expert.model for expert in recipe.experts] == ["x"]
    note = (
        "base_model.override_architecture and 2 more like it: not used; tensors are matched by "
        "their names"
    )
    assert recipe.notes == ([note] if "X" in written else [])
