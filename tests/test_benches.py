"""The benchmark times merges that are correct, and removes its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints
import measure
import merge
import sensmerge
import works
from sensmerge import Recipe
from sensmerge.recipe import methods


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    checkpoints.llama(folder / "tiny", "tiny", works.EXPERTS)
    return folder


def test_the_floor_computes_a_merge(family: Path, tmp_path: Path) -> None:
    models = [family / "tiny" / name for name in checkpoints.names(works.EXPERTS)]
    files = [str(model / checkpoints.FILE) for model in models]
    out = tmp_path / "floor"
    subprocess.run([merge.build_floor(), "--out", out, *files], check=True)
    data = {
        "merge_method": "task_arithmetic",
        "base_model": str(models[0]),
        "models": [
            {"model": str(model), "parameters": {"weight": 1 / works.EXPERTS}}
            for model in models[1:]
        ],
    }
    sensmerge.merge(Recipe.from_dict(data), tmp_path / "merged", progress=False)
    merged = tmp_path / "merged" / checkpoints.FILE
    assert tensors(merged) == tensors(out)


def tensors(path: Path) -> dict[str, bytes]:
    file = path.read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    del header["__metadata__"]
    places = {name: tensor["data_offsets"] for name, tensor in header.items()}
    return {name: file[start + first : start + last] for name, (first, last) in places.items()}


def test_every_work_has_its_row_and_nothing_is_left_behind(family: Path) -> None:
    before = {path.name for path in (family / "tiny").iterdir()}
    options = ["--size", "tiny", "--runs", "1", "--no-small", "--all", "--folder", str(family)]
    command = [sys.executable, str(measure.ROOT / "benches" / "merge.py"), *options]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == [work.name for work in works.WORKS]
    assert all(float(row[2]) > 0 for row in rows)
    made = {path.name for path in (family / "tiny").iterdir()} - before
    statistics = {f"expert{place}.fisher.safetensors" for place in range(works.EXPERTS)}
    assert made == {"recipe.json", "calibration.json", "statistics.json", *statistics}


def test_every_method_that_works_entry_by_entry_is_measured() -> None:
    known = {method.name for method in methods.every() if method.parameter("matrices") is None}
    assert {work.method for work in works.WORKS} == known


def test_checkpoints_are_made_once(family: Path) -> None:
    file = family / "tiny" / "base" / checkpoints.FILE
    made = file.stat().st_mtime_ns
    checkpoints.llama(family / "tiny", "tiny", works.EXPERTS)
    assert file.stat().st_mtime_ns == made
