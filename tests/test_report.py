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
from sensmerge.report import figures, write, write_for
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
    assert "int8_mask" not in output.read_text()


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
