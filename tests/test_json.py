"""``--format json``: every command has it, and its document says what its text says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from families import Family, edit_weights
from hostile_files import EVIL
from sensmerge import Recipe, diff
from sensmerge.cli import commands, printing
from sensmerge.cli.table import command
from sensmerge.document import document
from sensmerge.merging.explained import explain
from sensmerge.models.inspection import human_size
from sensmerge.recipe import load
from sensmerge.workflow import plan
from test_bad_input import run
from test_package import ROOT

Said = pytest.CaptureFixture[str]

# Commands without the option.
APART = {
    "schema": "prints a JSON Schema, and nothing else",
    "demo": "has no result but the files in its folder",
}
SEARCH = ("--validation", "0.3")


class Bench:
    """A family with all that commands need, and the arguments of each command on it."""

    def __init__(self, family: Family) -> None:
        self.family, self.folder = family, family.folder
        few = {"samples": 4, "dtype": "float32"}
        self.recipe = self.write("sens.json", family.recipe(sensitivity=few, x_note=1))
        off = {"mode": "off"} | few
        self.plain = self.write("plain.json", family.recipe("linear", sensitivity=off))
        self.calibration = self.at("calibration.json")
        self.base, self.e0, self.out = self.at("base"), self.at("e0"), self.at("out")
        measured = ("--calibration", self.calibration)
        assert run("calibrate", self.recipe, "-o", self.calibration, "--quiet") == 0
        assert run("merge", self.recipe, self.out, *measured, "--quiet", "--no-sync") == 0
        for place in range(2):
            expert, lora = self.at(f"e{place}"), self.at(f"l{place}")
            assert run("extract-lora", expert, self.base, "-o", lora, "--rank", "2", "--quiet") == 0
        adapters = [{"model": f"base+l{place}"} for place in range(2)]
        lora = self.write("lora.json", family.recipe("task_arithmetic", models=adapters))
        words = ["echo", '{"score": 2, "of": "{model}"}']
        farm, farmed = self.farm(words), self.at("farmed")
        assert run("farm", farm, farmed, "--quiet") == 0
        fresh, file, planned = self.at("fresh"), self.at("written"), self.at("plan.json")
        parted = ("plan", self.plain, self.at("parts"), "-o", planned, "--quiet")
        assert run(*parted) == 0
        self.cases: dict[str, tuple[str, ...]] = {
            "board": (farmed,),
            "calibrate": (self.recipe, "-o", self.calibration),
            "coefficients": (self.recipe, *measured),
            "convert": (self.e0, fresh, "--dtype", "bfloat16", "--force"),
            "diff": (self.base, self.e0, "--json", file),
            "eval": (self.e0, self.plain, *self.task(), "-o", self.at("results.json")),
            "explain": (self.recipe,),
            "extract-lora": (self.e0, self.base, "-o", self.at("l2"), "--rank", "3", "--force"),
            "farm": (farm, farmed),
            "inspect": (self.e0,),
            "learn": (self.recipe, "-o", file + ".yaml", "--steps", "1", *SEARCH, *measured),
            "merge": (self.recipe, fresh, *measured, "--force", "--cuda"),
            "merge --dry-run": (self.recipe, fresh, *measured, "--force", "--dry-run"),
            "merge --plan": ("--plan", planned, "--shards", "1"),
            "merge-lora": (lora, self.at("l3"), "--rank", "2", "--force"),
            "methods": (),
            "plan": (self.recipe, "-o", file, *measured),
            "plan OUT": (self.recipe, self.at("other"), "-o", file, *measured),
            "report": (self.calibration, "-o", file, "--recipe", self.recipe),
            "soup": (self.plain, "-o", file + ".yaml", *SEARCH),
            "tune": (self.recipe, "-o", file + ".yaml", "--trials", "2", *SEARCH, *measured),
            "verify": (self.out,),
        }  # fmt: skip

    def task(self) -> tuple[str, ...]:
        """A small task of choices, as options."""
        folder = self.folder / "tasks"
        folder.mkdir()
        rows = [{"text": f"w{n}", "choices": ["w1 w2", "w3"], "answer": n % 2} for n in range(4)]
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        said = {
            "task": "choice", "dataset_path": "json", "output_type": "multiple_choice",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer", "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
            ],
        }  # fmt: skip
        (folder / "choice.yaml").write_text(json.dumps(said))
        return "--tasks", "choice", "--tasks-dir", str(folder)

    def at(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, data: Any) -> str:
        return str(self.family.write_recipe(data, name))

    def farm(self, words: list[str]) -> str:
        """A farm of two candidates, scored by a command."""
        evaluate = {"command": {"run": words, "score": "score"}}
        recipe = self.family.recipe("linear")
        data = {"recipe": recipe, "grid": {"seed": [3, 4]}, "evaluate": evaluate, "keep": 1}
        return self.write("farm.json", data)

    def command(self, case: str) -> list[str]:
        return [case.partition(" ")[0], *self.cases[case]]


@pytest.fixture(scope="module")
def bench(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(family.copy(tmp_path_factory.mktemp("bench")))


def documented() -> dict[str, list[str]]:
    """The keys of every command's document, by docs/json.md."""
    text = (ROOT / "docs" / "json.md").read_text().partition("## Keys by command")[2]
    rows = re.findall(r"^\| `([^`]+)` \| (`.*`) \|$", text, flags=re.M)
    return {command: re.findall(r"`(\w+)`", keys) for command, keys in rows}


CASES = sorted(documented())


def leaves(part: Any) -> Iterator[Any]:
    """Every value and name of a document, and how many parts each part has."""
    if isinstance(part, dict | list):
        yield len(part)
        for each in part.values() if isinstance(part, dict) else part:
            yield from leaves(each)
        if isinstance(part, dict):
            yield from part
    else:
        yield part


def in_document(token: str, found: list[Any]) -> bool:
    """Whether a number that a text shows is a number of the document, or stands in its words."""
    if any(isinstance(each, str) and token in each for each in found):
        return True
    shown = float(token.replace(",", ""))
    unit = 10.0 ** -len(token.partition(".")[2])
    numbers = [each for each in found if isinstance(each, int | float)]
    # Shown as a share, a percentage or a size.
    scales = (1, 100, 1e-3, 1e-6)
    return any(abs(number * scale - shown) <= 0.51 * unit for number in numbers for scale in scales)


def test_every_command_has_the_option_or_a_reason() -> None:
    for name in commands.commands:
        forms = [each for each in command(name).params if each.name == "form"]
        if name in APART:
            assert not forms, name
            continue
        (form,) = forms
        assert isinstance(form.type, click.Choice)
        assert form.opts == ["--format"]
        assert form.default == "text"
        assert set(form.type.choices) >= {"text", "json"}
        assert name in documented(), name
    assert {case.partition(" ")[0] for case in CASES} == set(commands.commands) - set(APART)


@pytest.mark.parametrize("case", CASES)
def test_the_document_says_what_the_text_says(
    bench: Bench, case: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    give: Callable[..., None] = printing.give

    def kept(form: str, data: Any, text: str, **how: Any) -> None:
        texts.append(text)
        give(form, data, text, **how)

    monkeypatch.setattr(printing, "give", kept)
    capsys.readouterr()
    assert run(*bench.command(case), "--format", "json") == 0
    said = capsys.readouterr()
    data = json.loads(said.out, parse_constant=lambda name: pytest.fail(name))
    assert list(data) == documented()[case] or set(data) == set(documented()[case])

    # Notes are beside the document, all of them and each once; the rest there is progress.
    noted = [line for line in said.err.splitlines() if line.startswith("note: ")]
    assert sorted(noted) == sorted(f"note: {note}" for note in data["notes"])
    assert all(
        re.match(r"(note: |evaluating |[a-z ]+(: \d+ %| \.\.\.))", line)
        for line in said.err.splitlines()
    )

    (text,) = texts
    found = [*leaves(data)]
    numbers = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w|\.\d)", text.replace(", ", " "))
    assert [token for token in numbers if not in_document(token, found)] == []
    words = [str(each) for each in found]
    files = [word for word in text.split() if "/" in word.strip("(:")]
    assert [name for name in files if not any(name.strip(",:") in word for word in words)] == []


def test_a_number_that_the_document_lacks_is_seen() -> None:
    found = [*leaves({"a": [0.12345, 12], "name of 7": {"bytes": 4_200}})]
    assert all(in_document(token, found) for token in ("0.12", "12.35", "12", "7", "4.2", "4,200"))
    assert not any(in_document(token, found) for token in ("0.13", "13", "4.3", "8"))
    assert human_size(4_200) == "4.2 kB"


def test_the_text_is_printed_by_default_and_by_name(bench: Bench, capsys: Said) -> None:
    said = []
    for more in ([], ["--format", "text"], ["--format", "json"]):
        assert run(*bench.command("coefficients"), *more) == 0
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert "K·σ lies between" in said[0].out
    assert said[0].err.count("note: x_note") == 1
    data = json.loads(said[2].out)
    assert [note for note in data["notes"] if note.startswith("x_note")]
    recipe = Recipe.load(bench.recipe)
    assert data["scale"][1][2] == pytest.approx(3 * data["sigma"][1][2], rel=1e-15)
    assert data["experts"] == [expert.model for expert in recipe.experts]


@pytest.mark.parametrize("case", ["merge", "merge --dry-run", "diff", "plan", "verify"])
def test_quiet_keeps_the_document_alone(bench: Bench, case: str, capsys: Said) -> None:
    assert run(*bench.command(case), "--format", "json", "--quiet") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert set(json.loads(said.out)) == set(documented()[case])


def test_an_error_is_no_document(bench: Bench, capsys: Said) -> None:
    for arguments in (["inspect", bench.at("nothing")], ["methods", "nothing"]):
        assert run(*arguments, "--format", "json") == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")


def test_what_verify_finds_is_in_the_document(bench: Bench, tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "out"
    assert run("merge", bench.plain, str(out), "--quiet", "--no-sync") == 0
    assert run("verify", str(out), "--check", bench.plain, "--format", "json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["faults"] == []
    assert data["recipe"] == bench.plain
    (out / "config.json").write_text("{}")
    (out / "more").write_text("")
    assert run("verify", str(out), "--format", "json") == 2
    said = capsys.readouterr()
    data = json.loads(said.out)
    assert data["faults"] == [f"{out / 'config.json'}: has another content than the merge wrote"]
    assert data["unlisted"] == ["more"]
    assert f"error: {data['faults'][0]}" in said.err
    assert run("verify", str(out)) == 2
    assert capsys.readouterr().out == ""


def test_stages_have_their_own_documents(bench: Bench, capsys: Said) -> None:
    first = bench.family.recipe("linear", name="first")
    models = [{"model": "first"}, {"model": "e2"}]
    last = bench.family.recipe("linear", models=models, base_model=None)
    last = {key: value for key, value in last.items() if value is not None}
    path = bench.folder / "stages.yaml"
    path.write_text(f"{json.dumps(first)}\n---\n{json.dumps(last)}\n")
    keys = documented()
    assert run("explain", str(path), "--format", "json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in data["stages"]] == ["first", None]
    assert all(set(stage) == set(keys["explain"]) for stage in data["stages"])
    assert run("merge", str(path), bench.at("staged"), "--dry-run", "--format", "json") == 0
    out = capsys.readouterr().out
    data = json.loads(out)
    more = {"name", "planned_by"}
    assert all(set(stage) == {*keys["merge --dry-run"], *more} for stage in data["stages"])
    assert [stage["planned_by"] for stage in data["stages"]] == [[], ["first"]]
    assert data["stages"][1]["models"] == ["first", "e2"]
    assert "sensmerge-plan-" not in out


def test_names_steer_no_terminal(bench: Bench, tmp_path: Path, capsys: Said) -> None:
    copied = bench.family.copy(tmp_path)
    for name in ("base", "e0", "e1"):
        edit_weights(
            tmp_path / name,
            lambda tensors: tensors.update({EVIL: tensors["lm_head.weight"].clone()}),
        )
    models = [{"model": "e0"}, {"model": "e1"}]
    recipe = str(copied.write_recipe({"merge_method": "linear", "models": models, EVIL: 1}))
    base, e0 = str(tmp_path / "base"), str(tmp_path / "e0")
    said = {}
    for arguments in (
        ("inspect", base),
        ("diff", base, e0),
        ("merge", recipe, str(tmp_path / "out"), "--dry-run"),
        ("explain", recipe),
        ("extract-lora", e0, base, "-o", str(tmp_path / "lora"), "--rank", "2"),
    ):
        assert run(*arguments, "--format", "json") == 0
        out = capsys.readouterr().out
        assert out.isascii()
        assert all(mark.isprintable() or mark == "\n" for mark in out)
        assert json.dumps(EVIL)[1:-1] in out
        said[arguments[0]] = json.loads(out)
    assert EVIL in said["inspect"]["tensors"]
    assert EVIL in said["inspect"]["layers"]
    assert EVIL in said["diff"]["tensors"]
    assert EVIL in said["merge"]["tensors"]
    assert any(EVIL in note for note in said["explain"]["notes"])


def test_numbers_are_whole_and_finite(family: Family) -> None:
    third = 1 / 3
    text = document({"a": [third, math.nan, -math.inf], "b": {"c": math.inf}, "d": Path("x")})
    assert json.loads(text) == {"a": [third, None, None], "b": {"c": None}, "d": "x"}
    assert not re.search("nan|inf", text, flags=re.I)
    assert text.endswith("}\n")
    same = diff(family.folder / "e0", family.folder / "e0", family.folder / "e0", progress=False)
    assert math.isnan(same.whole.cosine)
    assert json.loads(same.to_json())["whole"]["cosine"] is None


def test_results_of_python_are_the_same_documents(bench: Bench, capsys: Said) -> None:
    assert run(*bench.command("merge --dry-run"), "--format", "json") == 0
    written = json.loads(capsys.readouterr().out)
    planned = plan(load(bench.recipe), calibration=bench.calibration)
    assert written == json.loads(document(planned.as_dict()))
    assert run(*bench.command("explain"), "--format", "json") == 0
    assert capsys.readouterr().out == explain(load(bench.recipe)).to_json()
