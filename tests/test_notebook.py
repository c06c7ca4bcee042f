"""Results as notebooks show them: whole, escaped, without script, and with what the text shows."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from families import Family, edit_weights
from sensmerge import MergeResult, Recipe, diff, markup, merge
from sensmerge.recipe import load
from sensmerge.search.results import Result
from sensmerge.search.settings import Settings
from sensmerge.search.soup import Soup, Step
from sensmerge.search.trials import Tuned
from sensmerge.terminal import plain
from sensmerge.workflow import plan
from test_scaling import found, measured

HOSTILE = 'x</style><script>alert("1")</script><img src=x onerror=a()>&amp;\x1b[31m\u202e'


class Page(HTMLParser):
    """The tags, attributes and text of a fragment, all of whose tags must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles = ""
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.styles += "".join(str(value) for name, value in attrs if name == "style")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


TAGS = {
    "div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "details", "summary", "pre",
}  # fmt: skip


def look(result: Any) -> str:
    """What a notebook shows of a result, after a check of what holds for every one."""
    page = Page(result._repr_html_())
    assert page.tags <= TAGS
    assert page.attributes <= {"style"}
    # Colours are the page's own, so that it reads on light and dark ones.
    assert not re.search(r"url|#[0-9a-f]{3}|(?<![-\w])color:(?!inherit)", page.styles)
    assert all(mark.isprintable() or mark == "\n" for mark in page.text)
    assert len(repr(result)) < 1000
    assert repr(result).isprintable()
    return page.text


@pytest.fixture(scope="module")
def hostile(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The family with a tensor whose name is hostile."""
    copied = family.copy(tmp_path_factory.mktemp("hostile"))
    for name in ("base", "e0", "e1"):
        edit_weights(
            copied.folder / name,
            lambda tensors: tensors.update({HOSTILE: tensors["lm_head.weight"].clone()}),
        )
    return copied


def asked(family: Family, **keys: Any) -> Recipe:
    models = [{"model": "e0", "parameters": {"weight": 0.25}}, {"model": "e1"}]
    data = {"merge_method": "linear", "models": models, f"x{HOSTILE}": 1} | keys
    return Recipe.from_dict(data, folder=family.folder)


def test_a_recipe(family: Family) -> None:
    recipe = asked(family, dtype="bfloat16")
    text = look(recipe)
    assert "Recipe: linear of 2 models" in text
    assert "dtype  bfloat16" in re.sub(" +", "  ", text)
    assert '{"weight": 0.25}' in text
    assert plain(recipe.notes[0]) in text
    assert all(plain(line) in text for line in recipe.to_yaml().splitlines())
    assert repr(recipe) == "Recipe('linear', models=['e0', 'e1'], base_model=None)"
    assert str(recipe) == repr(recipe)


def test_a_calibration_and_its_coefficients() -> None:
    calibration = measured(3, 12)
    experts = [replace(calibration.experts[0], model=HOSTILE), *calibration.experts[1:]]
    calibration = replace(calibration, experts=experts, notes=[f"a note {HOSTILE}"])
    text = look(calibration)
    assert plain(HOSTILE) in text
    assert f"a note {plain(HOSTILE)}" in text
    for expert, row in zip(calibration.experts, calibration.sensitivity, strict=True):
        assert f"{expert.loss:.4f}" in text
        top = sorted(range(12), key=lambda layer: -row[layer])[:5]
        assert ", ".join(calibration.layers[layer] for layer in top) in text
    assert all(f"{value:.4g}" in text for value in calibration.alignment.flat)

    for options in ({}, {"temperature": 100}, {"base": "expert"}):
        known = replace(calibration, options=calibration.options | options)
        coefficients = found(known, **options)
        text = look(coefficients)
        shown = [*coefficients.scale.flat, *coefficients.alpha.flat, *coefficients.tau]
        assert all(f"{value:.4f}" in text for value in [*shown, *coefficients.outside_scale])
        assert all(f"{plain(sentence)}." in text for sentence in coefficients.sentences())


def test_a_plan_and_a_merge(hostile: Family, tmp_path: Path) -> None:
    recipe = asked(hostile)
    planned = plan(recipe)
    text = look(planned)
    assert "linear of e0, e1" in text
    for line in planned.describe().splitlines():
        if line.startswith("model.safetensors"):
            file, name, stored, *numbers = line.split("  ")
            assert all(part in text for part in (file, name, stored, "  ".join(numbers)))
    assert all(plain(note) in text for note in planned.notes)
    assert planned.notes

    out = tmp_path / "a<b>"
    result = merge(recipe, out, progress=False, sync=False)
    text = look(result)
    said = result.describe()
    for part in (f"{result.tensors:,}", f"{result.parameters:,}", str(out), "model.safetensors"):
        assert part in text
        assert part in said or part == "model.safetensors"
    assert all(plain(note) in text for note in result.notes)
    whole = replace(result, coefficients=found(measured()))
    assert "K·σ lies between" in look(whole)


def test_a_plan_in_stages(hostile: Family) -> None:
    path = hostile.folder / "stages.yaml"
    models = "models: [{model: e0}, {model: e1}]"
    again = "models: [{model: first}, {model: e2}]\nmissing: skip"
    path.write_text(
        f"merge_method: linear\n{models}\nname: first\n---\nmerge_method: linear\n{again}\n"
    )
    planned = plan(load(path))
    text = look(planned)
    assert "stage first" in text
    assert "linear of first, e2" in text
    assert "sensmerge-plan-" not in text


def test_a_comparison(hostile: Family) -> None:
    folder = hostile.folder
    compared = diff(folder / "base", folder / "e0", folder / "e1", progress=False)
    text = look(compared)
    rows = [*compared.table().splitlines()[2:], *compared.table(tensors=True).splitlines()[2:]]
    assert len(rows) > 20
    shown = re.sub(r"\s+", " ", text)
    assert all(re.sub(r"\s+", " ", row.strip()) in shown for row in rows)
    assert all(plain(note) in text for note in compared.notes)


def test_searches() -> None:
    settings = Settings("linear", 0.5)
    one = Result("trial", settings, [1.0, 2.0], 1.5)
    other = replace(one, settings=Settings("ties", 0.25), validation_objective=1.75)
    tuned = Tuned({}, ["a", "b"], one, other, one, [one], [one, other], [HOSTILE])
    text = look(tuned)
    for row in tuned.table().splitlines():
        assert all(part in text for part in re.split(r"\s{2,}", row.strip()))
    assert plain(HOSTILE) in text
    steps = [Step(HOSTILE, 1.25, 1.25, kept=True), Step("b", 2.5, 1.3125, kept=False)]
    soup = Soup({}, steps, 1.5)
    text = look(soup)
    for row in soup.table().splitlines():
        assert all(part in text for part in re.split(r"\s{2,}", row.strip()))


def test_long_results_are_cut(tmp_path: Path) -> None:
    rows = [[f"row {place}", place] for place in range(markup.MOST_ROWS + 7)]
    text = Page(markup.table(["name", "number"], rows)).text
    assert f"row {markup.MOST_ROWS - 1} " in text
    assert f"row {markup.MOST_ROWS} " not in text
    assert "and 7 more" in text
    many = MergeResult(tmp_path, 1, 2, 3, ["s"] * 999, 0.5, ["note"] * (markup.MOST_ROWS + 2))
    assert "and 2 more" in look(many)
