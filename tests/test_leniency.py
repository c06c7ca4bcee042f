"""Unknown keys: slips are refused, keys that mergekit ignores are noted, and both can be chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensmerge import InputError, Recipe
from sensmerge.recipe import Leniency
from sensmerge.recipe.leniency import LENIENCIES
from test_bad_input import run

Said = pytest.CaptureFixture[str]


def valid(**keys: Any) -> dict[str, Any]:
    return {"merge_method": "ties", "base_model": "b", "models": [{"model": "x"}]} | keys


def refusal(data: dict[str, Any], leniency: Leniency = "mergekit") -> str | None:
    """The refusal of a recipe; None if it is taken."""
    try:
        Recipe.from_dict(data, leniency=leniency)
    except InputError as error:
        return str(error)
    return None


# A key that has effect elsewhere, and the note that says where.
ELSEWHERE: list[tuple[dict[str, Any], str]] = [
    ({"normalize": False}, "normalize: not used here; it counts as 'parameters.normalize'"),
    ({"density": 0.5}, "density: not used here; it counts as 'parameters.density'"),
    ({"parameters": {"dtype": "x"}}, "parameters.dtype: not used here; it counts as 'dtype'"),
    (
        {"models": [{"model": "x", "weight": 1}, {"model": "y", "weight": 2}]},
        "models[0].weight and 1 more like it: not used here; it counts as "
        "'models[].parameters.weight'",
    ),
    (
        {"models": [{"model": "x", "parameters": {"normalize": True}}]},
        "models[0].parameters.normalize: not used here; it counts as 'parameters.normalize'",
    ),
    (
        {"models": [{"model": "x", "revision": "v1"}]},
        "models[0].revision: not used here; it counts as 'model: NAME@REVISION'",
    ),
]
# A key that nothing resembles.
ODD: list[tuple[dict[str, Any], str]] = [
    ({"out_path": "x"}, "out_path: unknown key, not used"),
    ({"parameters": {"smooth": False}}, "parameters.smooth: unknown key, not used"),
    ({"parameters": {7: 1}}, "parameters[7]: unknown key, not used"),
    (
        {"parameters": {"random_seed": 1}},
        "parameters.random_seed: unknown key, not used; the nearest known key is 'seed'",
    ),
]
# A slip, and the key that was probably meant.
SLIPS: list[tuple[dict[str, Any], str, str]] = [
    ({"lamda": 1}, "lamda", "parameters.lambda"),
    ({"dtpye": "float16"}, "dtpye", "dtype"),
    ({"parameters": {"desnity": 0.5}}, "parameters.desnity", "density"),
    ({"models": [{"model": "x", "parameter": {}}]}, "models[0].parameter", "parameters"),
]
# Keys that mergekit cannot have ignored, since it has none of that name.
OURS: list[dict[str, Any]] = [
    {"sensitivity": {"odd": 1}},
    {"temperature": 1},
    {"models": [{"model": "x", "calibration": {"path": "a", "odd": 1}}]},
    {"semantics": "original", "out_path": "x"},
    {"semantics": "original", "normalize": True},
]


@pytest.mark.parametrize(("change", "note"), ELSEWHERE + ODD)
def test_what_mergekit_ignores_is_noted(change: dict[str, Any], note: str) -> None:
    for leniency in ("mergekit", "lenient"):
        assert note in Recipe.from_dict(valid(**change), leniency=leniency).notes
    assert "unknown key" in str(refusal(valid(**change), "strict"))


@pytest.mark.parametrize(("change", "key", "meant"), SLIPS)
def test_slips_are_refused_unless_asked(change: dict[str, Any], key: str, meant: str) -> None:
    said = f"{key}: unknown key; did you mean '{meant}'?"
    assert refusal(valid(**change)) == said
    assert refusal(valid(**change), "strict") == said
    notes = Recipe.from_dict(valid(**change), leniency="lenient").notes
    assert notes == [f"{key}: unknown key, not used; the nearest known key is '{meant}'"]


@pytest.mark.parametrize("change", OURS)
def test_leniency_is_not_for_keys_that_mergekit_lacks(change: dict[str, Any]) -> None:
    assert "unknown key" in str(refusal(valid(**change)))
    assert refusal(valid(**change), "lenient") is None


def test_a_recipe_that_is_changed_is_read_as_it_was() -> None:
    data = valid(lamda=1, parameters={"lambda": "auto"})
    recipe = Recipe.from_dict(data, leniency="lenient")
    assert recipe.chosen(0.25, 1.0).value("lambda") == 0.25
    with pytest.raises(InputError, match="lamda"):
        Recipe.from_dict(recipe.source)


NAMES = st.text("abcdeghlmnrtwy_", max_size=12)


@given(name=NAMES, where=st.sampled_from(["", "parameters", "models"]))
@settings(max_examples=200, deadline=None)
def test_strict_refuses_what_others_note(name: str, where: str) -> None:
    data = valid()
    if where == "parameters":
        data["parameters"] = {name: 1}
    elif where == "models":
        data["models"][0][name] = 1
    else:
        data[name] = 1
    known = refusal(data, "strict")
    if known is None or "unknown key" not in known:
        return
    # What is not refused is noted, by name.
    for leniency in LENIENCIES[1:]:
        if refusal(data, leniency) is None:
            notes = Recipe.from_dict(data, leniency=leniency).notes
            assert any(known.partition(":")[0] in note for note in notes)
    assert refusal(data, "lenient") is None


@pytest.fixture
def models(tmp_path: Path) -> Path:
    from families import tensor_family

    tensor_family(tmp_path, experts=1, dtype="float32", shapes={"a.w": (3, 4)})
    return tmp_path


def test_the_commands_options(models: Path, capsys: Said) -> None:
    path, out = models / "recipe.yaml", models / "out"
    text = "merge_method: ties\nbase_model: base\nmodels: [{model: e0}]\nmerge_method: linear\n"
    path.write_text(text)
    assert run("merge", str(path), str(out), "--dry-run") == 0
    said = capsys.readouterr().out
    assert said.startswith("linear of ")
    assert "line 4: 'merge_method' stands a second time, after line 1; the last counts" in said
    assert run("merge", str(path), str(out), "--dry-run", "--strict") == 2
    assert f"error: {path}: line 4: 'merge_method' stands" in capsys.readouterr().err
    path.write_text(text + "lamda: 1\n")
    for command in (["merge", str(path), str(out), "--dry-run"], ["plan", str(path), "-o", "x"]):
        assert run(*command) == 2
        assert "did you mean 'parameters.lambda'?" in capsys.readouterr().err
    assert run("merge", str(path), str(out), "--dry-run", "--lenient") == 0
    assert "lamda: unknown key, not used" in capsys.readouterr().out
    assert run("plan", str(path), "-o", str(models / "plan.json"), "--lenient") == 0
    assert "lamda: unknown key, not used" in capsys.readouterr().err
    assert not out.exists()
