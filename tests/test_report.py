from __future__ import annotations

import re
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import sensmerge
from families import Family
from sensmerge import InputError, Recipe
from sensmerge.comparison.differences import Comparison, Sums
from sensmerge.report import figures, write, write_comparison, write_for
from sensmerge.search.results import Result
from sensmerge.search.settings import Settings
from sensmerge.search.trials import Tuned
from test_scaling import found, measured

HOSTILE = '<script>alert("x")</script>&$\\frac{a}$'


class Outline(HTMLParser):
    """Tags that are opened and not closed, and all text."""

    VOID = frozenset({"meta", "br", "img", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(tmp_path: Path, count: int = 3, layers: int = 32, **options: object) -> str:
    calibration = measured(count, layers)
    experts = list(calibration.experts)
    experts[0] = replace(experts[0], model=HOSTILE)
    calibration = replace(calibration, experts=experts, notes=["a note of the calibration"])
    write(calibration, found(calibration, **options), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("count", "layers", "options"),
    [
        (1, 1, {}),
        (2, 8, {"mode": "task"}),
        (3, 32, {"outside_blocks": "own"}),
        (8, 80, {"temperature": 100}),
    ],
)
def test_a_page_is_whole_and_stands_alone(
    tmp_path: Path, count: int, layers: int, options: dict[str, object]
) -> None:
    text = page(tmp_path, count, layers, **options)
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert not outline.tags & {"script", "link", "iframe", "img"}
    assert HOSTILE in outline.text
    assert "a note of the calibration" in outline.text.lower()
    assert all(f"e{expert}" in outline.text for expert in range(1, count))
    # The namespaces of SVG are names, not addresses that a browser would ask.
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert ("lower sensitivity.temperature" in outline.text) == (options.get("temperature") == 100)


def test_the_notes_of_a_merge_are_on_its_page(family: Family, tmp_path: Path) -> None:
    out, output = tmp_path / "out", tmp_path / "report.html"
    parameters = {"lambda": 0.5, "int8_mask": True}
    data = family.recipe(sensitivity={"samples": 2}, parameters=parameters, out_path=HOSTILE)
    recipe = Recipe.from_dict(data, folder=family.folder)
    result = sensmerge.merge(recipe, out, progress=False, sync=False)
    assert len(result.notes) >= 2
    write_for(out, output)
    outline = Outline()
    outline.feed(output.read_text())
    assert outline.open == []
    assert "script" not in outline.tags
    head, _, body = outline.text.partition("Notes")
    section = body.partition("Sensitivity by layer")[0]
    for note in result.notes:
        assert (head.lower() + section.lower()).count(note.lower()) == 1, note
    assert "parameters.int8_mask: task_arithmetic does not use it" in section

    (out / "sensmerge_output.json").write_text("[]")
    with pytest.raises(InputError, match=r"sensmerge_output\.json: cannot be read"):
        write_for(out, output)
    (out / "sensmerge_output.json").unlink()
    write_for(out, output)
    assert "int8_mask: task_arithmetic" not in output.read_text()


def test_the_recipe_is_on_the_page(family: Family, tmp_path: Path) -> None:
    recipe = family.write_recipe(family.recipe(sensitivity={"samples": 2}, out_path=HOSTILE))
    out, output = tmp_path / "out", tmp_path / "report.html"
    merged = sensmerge.merge(recipe, out, progress=False, sync=False)
    assert merged.calibration is not None
    merged.calibration.save(tmp_path / "calibration.json")
    write_for(out, output)
    outline = Outline()
    outline.feed(output.read_text())
    assert "script" not in outline.tags
    shown = outline.text.partition("Recipe\n")[2]
    written = (out / "sensmerge_recipe.yaml").read_text()
    assert written.strip() in shown
    assert HOSTILE in shown
    # Of a calibration alone no recipe is known, unless it is named.
    write_for(tmp_path / "calibration.json", output)
    assert "<h2>Recipe</h2>" not in output.read_text()
    write_for(tmp_path / "calibration.json", output, recipe=recipe)
    assert "<h2>Recipe</h2>" in output.read_text()


def test_the_losses_of_a_search_are_on_the_page(tmp_path: Path) -> None:
    own = Result("trial", Settings("ties", 0.4, 0.6, "full", 0.05), [1.25, 2.5], 1.875)
    even = Result("baseline", Settings("linear", None), [1.5, 2.75], 2.125, [1.0, 2.0], 1.5625)
    found_ = Tuned({}, ["chat", HOSTILE], own, own, even, [even], [own], [f"a note {HOSTILE}"])
    trials, output = tmp_path / "best.trials.json", tmp_path / "report.html"
    trials.write_text(found_.to_json())
    calibration = measured(3, 8)
    write(calibration, found(calibration), output, losses=trials)
    outline = Outline()
    outline.feed(output.read_text())
    assert outline.open == []
    assert "script" not in outline.tags
    section = outline.text.partition("Losses\n")[2].partition("How it was measured")[0]
    shown = ("taken", "plain merge", "ties", "1.2500", "2.7500", "2.1250", "1.5625", HOSTILE)
    assert all(each in section for each in (*shown, f"a note {HOSTILE}"))
    assert section.count("1.8750") == 2

    trials.write_text(found_.to_json().replace('"tasks"', '"names"'))
    with pytest.raises(InputError, match=r"best\.trials\.json: is no file of trials.*tasks"):
        write(calibration, found(calibration), output, losses=trials)
    few = replace(found_, tasks=["chat"])
    trials.write_text(few.to_json())
    with pytest.raises(InputError, match=r"taken: has 2 losses for 1 tasks"):
        write(calibration, found(calibration), output, losses=trials)


class Places(HTMLParser):
    """What lies within what: the elements above every element, with their classes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.above: list[str] = []
        self.found: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, list(self.above)))
        if tag not in Outline.VOID:
            name = dict(attrs).get("class")
            self.above.append(tag if name is None else f"{tag}.{name}")

    def handle_endtag(self, tag: str) -> None:
        self.above.pop()


def rules(style: str, query: str) -> str:
    """The rules of a style sheet for one kind of medium, without spaces."""
    start = style.index("{", style.index(query))
    depth, end = 1, start + 1
    while depth:
        depth += {"{": 1, "}": -1}.get(style[end], 0)
        end += 1
    return re.sub(r"\s+", "", style[start + 1 : end - 1])


def test_pages_fit_a_phone_and_paper(tmp_path: Path) -> None:
    sums = Sums(10, 5, 8, 4, 0.1, 1.0, 2.0, 3.0, 1.5)
    tensors = {f"model.layers.{place}.w": sums for place in range(40)}
    compared = tmp_path / "diff.html"
    write_comparison(Comparison("a", "b", None, tensors, ["note"]), compared)
    for text in (page(tmp_path, 8, 80), compared.read_text()):
        assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
        places = Places(text).found
        # What may be wide lies in what scrolls; every heading begins a section.
        assert all(above[-1] == "div.wide" for tag, above in places if tag == "table")
        assert all(above[-1].startswith("figure") for tag, above in places if tag == "svg")
        headings = [above[-1] for tag, above in places if tag == "h2"]
        assert len(headings) >= 5
        assert set(headings) == {"section"}
        style = text.partition("<style>")[2].partition("</style>")[0]
        plain = re.sub(r"\s+", "", style)
        assert "figure,.wide,pre{overflow-x:auto;max-width:100%;}" in plain
        assert "overflow-wrap:anywhere;}" in plain
        printed = rules(style, "@media print")
        assert "--ink:#000000;--soft:#000000;" in printed
        assert "--paper:#ffffff;" in printed
        assert "section,figure,svg,tr,dt,dd{break-inside:avoid;}" in printed
        assert "figure,.wide,pre{overflow:visible;}" in printed
        # After the rule for dark screens, over which it wins.
        assert style.index("@media print") > style.index("prefers-color-scheme: dark")


def test_a_page_without_notes_has_no_section_of_them(tmp_path: Path) -> None:
    calibration = measured(3, 8)
    write(calibration, found(calibration), tmp_path / "report.html")
    assert "Notes" not in (tmp_path / "report.html").read_text()
    assert "<h2>Notes</h2>" in page(tmp_path)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert page(tmp_path) == page(tmp_path)


def test_figures_are_labelled_svg() -> None:
    coefficients = found(measured(3, 8))
    for svg in (
        figures.sensitivity_svg(coefficients),
        figures.scale_svg(coefficients),
        figures.alignment_svg(np.eye(3), ["a", "b", "c"]),
    ):
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.attrib["aria-label"]


def test_the_top_five_layers_are_marked() -> None:
    coefficients = found(measured(2, 12))
    for alpha in coefficients.alpha:
        top = figures.top_layers(alpha)
        assert len(top) == 5
        assert min(alpha[top]) >= max(np.delete(alpha, top))
    svg = figures.sensitivity_svg(coefficients)
    assert svg.count("#d1495b") == 2 * 5


def test_experts_are_called_by_what_tells_them_apart() -> None:
    assert figures.labels(["../chat", "org/math", "code/"]) == ["chat", "math", "code"]
    assert figures.labels(["a/final", "b/final"]) == ["a/final", "b/final"]
    assert figures.labels(["x" * 50])[0] == "…" + "x" * 27


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    calibration = measured(3, 32)
    write(calibration, found(calibration), tmp_path / "r.html", png=tmp_path / "new" / "r.png")
    raw = (tmp_path / "new" / "r.png").read_bytes()
    width, height = struct.unpack(">II", raw[16:24])
    assert raw.startswith(b"\x89PNG")
    assert width > 600
    assert height > 400


def test_without_matplotlib_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from sensmerge.report import write\n"
        "try:\n    write(None, None, 'x.html')\n"
        "except ValueError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sensmerge[report]'" in said.stdout
