"""The paper in miniature: every table is measured, and the page shows the measured numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MINIATURE = ROOT / "examples" / "miniature"


def miniature(*arguments: str) -> str:
    command = [sys.executable, str(MINIATURE), *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_it_runs_from_training_to_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    printed = miniature("run", str(folder), "--quick", "--draws", "1")
    page = (folder / "miniature.md").read_text(encoding="utf-8")
    assert str(folder / "miniature.md") in printed
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    losses = results["rows"]["learned, block, fresh"]["losses"][0]
    assert f"{sum(losses.values()) / 3:.3f}" in page
    for number in (1, 4, 5, 8):
        assert f"(Table {number})" in page
    for picture in ("miniature-temperature.png", "miniature-layers.png"):
        assert f"({picture})" in page
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    miniature("page", "-o", str(tmp_path))
    said = (tmp_path / "miniature.md").read_text(encoding="utf-8")
    assert said == (ROOT / "docs" / "miniature.md").read_text(encoding="utf-8")
    for picture in re.findall(r"\((miniature-\w+\.png)\)", said):
        assert (ROOT / "docs" / picture).is_file()
