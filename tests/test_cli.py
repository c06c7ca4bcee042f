"""The commands as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from families import Family
from test_bad_input import run

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def recipe(family: Family) -> str:
    return str(family.write_recipe(family.recipe("ties", sensitivity={"samples": 3}), "cli.json"))


@pytest.fixture(scope="module")
def calibration(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "calibration.json"
    assert run("calibrate", recipe, "-o", str(path), "--quiet") == 0
    return str(path)


def test_merge_calibrates_and_writes(recipe: str, tmp_path: Path, capsys: Said) -> None:
    assert run("merge", recipe, str(tmp_path / "out"), "--threads", "2", "--no-sync") == 0
    said = capsys.readouterr()
    assert f"wrote {tmp_path / 'out'}" in said.out
    assert "sensitivity ..." in said.err
    assert (tmp_path / "out" / "sensmerge_calibration.json").exists()


def test_quiet_is_quiet(recipe: str, calibration: str, tmp_path: Path, capsys: Said) -> None:
    options = ["--calibration", calibration, "--quiet"]
    assert run("merge", recipe, str(tmp_path / "out"), *options) == 0
    assert capsys.readouterr() == ("", "")


def test_a_dry_run_writes_nothing(
    recipe: str, calibration: str, tmp_path: Path, capsys: Said
) -> None:
    out = tmp_path / "out"
    assert run("merge", recipe, str(out), "--calibration", calibration, "--dry-run") == 0
    said = capsys.readouterr().out
    assert said.startswith("ties of e0, e1, e2; base_model: base\n")
    assert "model.layers.0.mlp.up_proj.weight" in said
    assert "nothing was written" in said
    assert run("merge", recipe, str(out), "--dry-run") == 0
    assert "without coefficients" in capsys.readouterr().out
    assert not out.exists()


def test_coefficients_in_three_formats(recipe: str, calibration: str, capsys: Said) -> None:
    asked = ["coefficients", recipe, "--calibration", calibration, "--format"]
    assert run(*asked, "json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["experts"] == ["e0", "e1", "e2"]
    assert data["layers"] == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert run(*asked, "text") == 0
    assert "K·σ lies between" in capsys.readouterr().out
    assert run(*asked, "mergekit") == 0
    plain = capsys.readouterr().out
    assert "sensitivity" not in plain
    assert "filter: model.embed_tokens" in plain


def test_a_report_of_a_file_and_of_a_folder(
    recipe: str, calibration: str, tmp_path: Path, capsys: Said
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "figure.png"
    assert run("report", calibration, "-o", str(page), "--png", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "out"
    assert run("merge", recipe, str(out), "--calibration", calibration, "--quiet") == 0
    assert run("report", str(out), "-o", str(page)) == 0
    assert "model.layers.2" in page.read_text()
    (out / "sensmerge_calibration.json").unlink()
    assert run("report", str(out), "-o", str(page)) == 2
    assert "nothing to report" in capsys.readouterr().err


def test_inspect_lists_tensors_and_layers(family: Family, capsys: Said) -> None:
    assert run("inspect", str(family.folder / "base")) == 0
    said = capsys.readouterr().out
    assert "model.layers.0.mlp.up_proj.weight" in said
    assert "48 × 32" in said
    assert "F32; 3 blocks" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["merge"], "RECIPE"),
        (["mrege"], "mrege"),
        (["merge", "nowhere.yaml", "out"], "nowhere.yaml"),
        (["inspect", "nowhere"], "nowhere"),
        (["report", "nowhere.json", "-o", "x.html"], "nowhere.json"),
        (["merge", "r.yaml", "out", "--threads", "0"], "threads"),
    ],
)
def test_usage_errors_exit_with_2(
    arguments: list[str], said: str, capsys: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys: Said) -> None:
    assert run() == 2
    said = capsys.readouterr()
    assert said.err.startswith("Usage: ")
    assert "error" not in said.err


@pytest.mark.parametrize("size", ["0", "5 parsecs", "-1GB", ""])
def test_sizes_that_are_none(recipe: str, tmp_path: Path, size: str, capsys: Said) -> None:
    assert run("merge", recipe, str(tmp_path / "out"), "--max-shard-size", size) == 2
    assert "max_shard_size" in capsys.readouterr().err
