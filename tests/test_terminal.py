"""Names in files are shown as text: on the terminal, in the model card, in reports and comments."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from families import Family, edit_weights
from hostile_files import EVIL
from sensmerge import Calibration, InputError, Recipe, merge
from sensmerge.comparison.differences import diff
from sensmerge.recipe.yaml import parse_yaml
from sensmerge.report import write as write_report
from sensmerge.report import write_comparison
from sensmerge.scaling.sigma import coefficients
from sensmerge.terminal import lines, plain
from test_bad_input import run


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("models/base λ 模型 é", "models/base λ 模型 é"),
        ("a\x1b]0;t\x07b", r"a\x1b]0;t\x07b"),
        ("a\r\nerror: b\t", r"a\r\nerror: b\t"),
        ("\x00\x7f\x85\x9b", r"\x00\x7f\x85\x9b"),
        ("\u202egnp\u2069\u200b\ufeff", r"\u202egnp\u2069\u200b\ufeff"),
        ("a\u2028b\ud800\U000e0041", r"a\u2028b\ud800\U000e0041"),
        ("x" * 201, "x" * 149 + "…" + "x" * 50),
        (["a\n"], r"['a\n']"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: Any, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(), st.integers(1, 20_000))
def test_a_line_is_a_line_and_short(text: str, times: int) -> None:
    shown = plain(text * times)
    assert shown.isprintable()
    assert len(shown) <= 40_000
    assert len(lines(text)) == text.count("\n") + 1
    if text.isprintable() and len(text) < 100:
        assert plain(text) == text


def test_ten_megabytes_are_a_line() -> None:
    assert len(plain("a" * 10**7)) == 200
    assert len(plain("a b" * 10**7)) <= 4000


def test_faults_are_lines_whatever_their_names_hold() -> None:
    error = InputError([f"a: {EVIL}", "b"])
    assert error.lines == (f"a: {EVIL}", "b")
    assert InputError("a\nb").lines == ("a\nb",)
    with pytest.raises(InputError) as refused:
        Recipe.from_dict({"merge_method": EVIL, EVIL: 1, "models": []}, leniency="strict")
    assert len(refused.value.lines) == 3


def clean(text: str) -> bool:
    forged = any(line.startswith("error: forged") for line in text.splitlines())
    return not forged and all(mark.isprintable() or mark == "\n" for mark in text)


@pytest.fixture
def evil(family: Family, tmp_path: Path) -> Family:
    """A family with a tensor, a layer and a folder of hostile names."""
    copied = family.copy(tmp_path)
    for name in ("base", "e0", "e1"):
        edit_weights(
            tmp_path / name,
            lambda tensors: tensors.update({EVIL: tensors["lm_head.weight"].clone()}),
        )
    return copied


def test_tables_hold_no_more_than_their_rows(
    evil: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = evil.folder
    recipe = str(evil.write_recipe({
        "merge_method": "linear",
        "models": [{"model": "e0"}, {"model": "e1"}],
        EVIL + "z": 1,
    }))  # fmt: skip
    base, out = str(folder / "base"), str(folder / "out")
    for command in (
        ("inspect", base),
        ("diff", base, str(folder / "e0")),
        ("diff", base, str(folder / "e0"), "--tensors"),
        ("merge", recipe, out, "--dry-run"),
        ("explain", recipe),
        ("merge", recipe, out, "--no-sync"),
        ("merge-lora", recipe, str(folder / "lora"), "--rank", "2"),
        ("extract-lora", str(folder / "e0"), base, "-o", str(folder / "lora"), "--rank", "2"),
        ("extract-lora", base, base, "-o", str(folder / f"lora{EVIL[:9]}"), "--rank", "2"),
    ):
        run(*command)
        said = capfd.readouterr()
        assert said.out + said.err
        assert clean(said.out + said.err), command


def test_the_card_holds_names_as_text(family: Family, tmp_path: Path) -> None:
    family = family.copy(tmp_path)
    name = "e0<img src=x onerror=alert(1)>|`a`[b](c)"
    (tmp_path / "e0").rename(tmp_path / name)
    models = [{"model": name}, {"model": "e1", "parameters": {"weight": 0.5}}]
    recipe = Recipe.from_dict(
        {"merge_method": "linear", "models": models, "```\n# forged\n": 1}, tmp_path
    )
    out = tmp_path / "out"
    merge(recipe, out, progress=False, sync=False)
    card = (out / "README.md").read_text(encoding="utf-8")
    before, fence, rest = re.split(r"^(`{3,})yaml$", card, maxsplit=1, flags=re.MULTILINE)
    inside, after = rest.split(f"\n{fence}\n", 1)
    assert fence not in inside
    assert parse_yaml(inside, Path("card")).documents == [recipe.source]
    for part in (before, after):
        assert "<" not in part
        assert "\n# forged" not in part
    assert r"&lt;img src=x onerror=alert(1)&gt;\|\`a\`\[b\](c) | expert |" in before


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


def test_pages_hold_names_as_text(measured: Calibration, evil: Family, tmp_path: Path) -> None:
    text = measured.to_json()
    data = json.loads(text)
    names = [data["layers"][0], data["outside"]["layers"][0]]
    for name in names:
        text = text.replace(json.dumps(name), json.dumps(f"{name}{EVIL}$\\frac$"))
    text = text.replace('"model": "e0"', json.dumps({"model": f"e0{EVIL}$x"})[1:-1])
    found = Calibration.from_json(text)
    page = tmp_path / "report.html"
    recipe = Recipe.from_dict({"merge_method": "linear", "models": [{"model": "a"}],
                               "sensitivity": {"outside_blocks": "own"}})  # fmt: skip
    assert recipe.sensitivity is not None
    sigma = coefficients(found, recipe.sensitivity)
    write_report(found, sigma, page, png=tmp_path / "report.png", notes=[EVIL])
    assert clean("\n".join(lines(sigma.table())))
    assert not any(line.startswith("error: forged") for line in sigma.table().splitlines())
    comparison = tmp_path / "diff.html"
    write_comparison(diff(evil.folder / "base", evil.folder / "e0", progress=False), comparison)
    for path in (page, comparison):
        written = path.read_text(encoding="utf-8")
        tags = Tags()
        tags.feed(written)
        assert "img" not in tags.tags
        assert "\x1b" not in written
        assert "\u202e" not in written


def test_a_comment_ends_where_its_line_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sensmerge.search import pictures
    from sensmerge.search.descent import Learned

    monkeypatch.setattr(pictures, "learned_png", lambda history: b"")
    recipe = {"merge_method": "linear"}
    history: Any = None
    Learned(recipe, history, ["a\nbase_model: b"]).write(tmp_path / "learned.yaml")
    written = (tmp_path / "learned.yaml").read_text()
    assert parse_yaml(written, Path("learned")).documents == [recipe]
    assert r"# a\nbase_model: b" in written


@pytest.mark.parametrize("name", ["~nosuchuser/samples.jsonl", "s" * 5000, "a\0b"])
def test_names_that_lead_nowhere_are_bad_input(
    family: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    family = family.copy(tmp_path)
    recipe = family.recipe(sensitivity={})
    recipe["models"][0]["calibration"] = name
    path = str(family.write_recipe(recipe))
    assert run("merge", path, str(tmp_path / "out")) == 2
    said = capfd.readouterr().err
    assert name[:40].replace("\0", r"\x00") in said
    assert "Traceback" not in said
    assert run("merge", path, str(tmp_path / ("o" * 300))) == 2
    assert "ooo" in capfd.readouterr().err
