"""The documentation: links between its pages, its index, and that its commands do what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sensmerge
from families import Family, llama_family
from sensmerge.demo.text import TASKS
from test_bad_input import run

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", flags=re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
# A command as pages show it: indented, after a line break; what follows # is a comment.
COMMAND = re.compile(r"^ {4}(sensmerge .*)$", flags=re.MULTILINE)
# A file that a page asks for, by its name and a block behind it.
FILE = re.compile(r"`([\w.]+)`:\n\n```\w+\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every page of the repository."""
    places = ("*.md", "docs/**/*.md", "benches/records/*.md", "examples/*/*.md", "rust/*/*.md")
    return sorted(path for place in places for path in ROOT.glob(place))


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


@cache
def anchors(path: Path) -> set[str]:
    """What a link may name in a page: its headings, as code hosts and the site write them."""
    found: dict[str, int] = {}
    for heading in HEADING.findall(prose(path)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        times = found.setdefault(anchor, 0)
        found[anchor] += 1
        if times:
            found[f"{anchor}-{times}"] = 1
    return set(found)


def links(path: Path) -> Iterator[str]:
    """Where the links and pictures of a page lead, in this repository."""
    for link in LINK.findall(prose(path)):
        if not re.match(r"[a-z]+:", link):
            yield link


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.resolve()), link


def test_anchors_are_those_of_code_hosts(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lines = ["# A page: one", "## `two` words", "```", "# none", "```", "## [Two](a.md) words"]
    page.write_text("\n".join([*lines, "### λ and K·σ", ""]), encoding="utf-8")
    assert anchors(page) == {"a-page-one", "two-words", "two-words-1", "λ-and-kσ"}


def test_the_index_leads_to_every_page() -> None:
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "README.md")}
    assert {*DOCS.glob("*.md")} - {DOCS / "README.md"} <= listed
    records = ROOT / "benches" / "records"
    assert {*records.glob("*.md")} - {records / "README.md"} == {
        records / link for link in links(records / "README.md")
    }
    methods = {(DOCS / "methods" / link).resolve() for link in links(DOCS / "methods/README.md")}
    assert {*(DOCS / "methods").glob("*.md")} - {DOCS / "methods" / "README.md"} <= methods


def test_the_page_on_python_names_what_is_public() -> None:
    table = (DOCS / "python.md").read_text(encoding="utf-8").partition("|---|---|\n")[2]
    rows = table.partition("\n\n")[0].splitlines()
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[1])}
    methods = {"load", "seeded"}
    assert named == {*sensmerge.__all__} | methods


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models and samples where the tutorial has those of the demo."""
    folder = tmp_path_factory.mktemp("tutorial") / "family"
    made = llama_family(folder, experts=2, layers=2, dtype="bfloat16")
    (folder / "calibration").mkdir()
    for place, task in enumerate(("math", "code")):
        assert task in TASKS
        (folder / f"e{place}").rename(folder / task)
        (folder / f"t{place}.jsonl").rename(folder / "calibration" / f"{task}.jsonl")
    return made


def followed(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """What each command of a page prints, run in a folder in the page's order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    for name, content in FILE.findall(text):
        Path(name).write_text(content, encoding="utf-8")
    said = {}
    for line in COMMAND.findall(text):
        command = " ".join(shlex.split(line, comments=True))
        if command == "sensmerge demo family":
            continue  # trains for minutes, and has tests of its own; the fixture stands for it
        code = run(*command.split()[1:])
        captured = capsys.readouterr()
        assert code == 0, f"{command}: {captured.err}"
        said[command] = captured.out + captured.err
    return said


def test_the_tutorial_can_be_followed(
    family: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = followed("tutorial.md", family.folder.parent, monkeypatch, capsys)
    shown = shown_outputs((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    assert (len(said), len(shown)) == (14, 8)
    for command, lines in shown.items():
        printed = [without_numbers(line) for line in said[command].splitlines()]
        for line in lines:
            assert without_numbers(line) in printed, f"{command} does not print: {line}"


def shown_outputs(text: str) -> dict[str, list[str]]:
    """The lines that a page shows of a command's output: the block of text behind it."""
    shown = {}
    for command, block in re.findall(
        r"^ {4}(sensmerge [^\n]*)\n\n```text\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL
    ):
        shown[command] = [line for line in block.splitlines() if line.strip() not in ("", "...")]
    return shown


def without_numbers(line: str) -> str:
    """A line with single spaces, without numbers and units: these depend on the models."""
    return " ".join(re.sub(r"-?\d[\d.,]*(e-?\d+)?( [kMG]?B\b)?", "0", line).split())


def test_the_commands_of_the_page_on_mergekit_work(
    family: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = family.folder.parent / "from-mergekit"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        "merge_method: ties\nbase_model: ../family/base\n"
        "models: [{model: ../family/math}, {model: ../family/code}]\n"
        "parameters: {density: 0.5, weight: 0.5}\ndtype: bfloat16\n"
    )
    (folder / "old").symlink_to(family.folder / "math")
    said = followed("mergekit.md", folder, monkeypatch, capsys)
    assert len(said) == 6
    assert "different from mergekit 0.1.5" in said["sensmerge explain recipe.yaml"]
    command = "sensmerge merge recipe.yaml merged --cuda --lazy-unpickle --out-shard-size 1B"
    assert said[command].count("without effect") == 1
