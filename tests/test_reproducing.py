"""The paper's tables as commands, on a small family with tasks of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from sensmerge.recipe.yaml import read_yaml

EXAMPLE = Path(__file__).parents[1] / "examples" / "paper"


def paper(*arguments: str) -> str:
    """What the example prints; in this process, where the harness is imported already."""
    from reproducing import commands

    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_table_is_one_command(tmp_path: Path) -> None:
    models = tmp_path / "family" / "models.yaml"
    assert str(models) in paper("trial", str(tmp_path / "family"), "--quick")
    out = tmp_path / "out"
    how = (str(out), "--models", str(models), "--run-code", "--trust-tasks", "--limit", "1")
    for command in ("three-experts", "two-experts", "ablation", "samples"):
        assert str(out / f"{command}.md") in paper(command, *how)
    kept = json.loads((out / "results.json").read_text())
    assert kept["tasks"] == ["prose_choice", "math_answer", "code_runs"]
    # Three tables share the base, the experts and merges, each evaluated once.
    page = (out / "three-experts.md").read_text()
    for row in ("Base", "Chat", "Code", "DARE + Sens-Merging", "Task Arithmetic, λ = 1/3"):
        assert f"| {row} | " in page
        value = 100 * kept["models"][row]["scores"]["code_runs"]["value"]
        assert f" {value:.2f} |" in next(
            line for line in page.splitlines() if line.startswith(f"| {row} | ")
        )
    assert "| Math & Code: Ties-Merging + Sens-Merging | " in (out / "two-experts.md").read_text()
    assert "| Ties-Merging + cross-task | " in (out / "ablation.md").read_text()
    assert "20 samples | " in (out / "samples.md").read_text()
    # Each row is another model, but for three: of five calibration samples, 10 and 20 are all.
    prints = {name: each["fingerprint"] for name, each in kept["models"].items()}
    assert len(set(prints.values())) == len(prints) - 2
    recipe = (out / "recipes" / "ties-merging---sens-merging.yaml").read_text()
    assert "semantics: original" in recipe
    assert "density: 0.3" in recipe
    timed = paper("timing", str(out), "--models", str(models))
    assert "| Task-specific coefficients | " in timed
    assert (out / "timing.md").read_text() in timed


def test_the_papers_numbers_are_its_averages() -> None:
    # A digit that was copied wrongly shows in the average that the paper prints.
    averages = {
        ("LLaMA2-7B", "three-experts"): [
            25.50, 31.52, 24.98, 29.03, 34.78, 34.73, 35.13, 34.86, 35.13,
        ],
        ("LLaMA2-7B", "two-experts"): [
            28.78, 34.48, 34.98, 35.49, 35.16, 35.55, 31.82, 32.89, 33.54, 33.91, 32.83, 33.04,
        ],
        ("Mistral-7B", "three-experts"): [
            46.37, 44.59, 39.63, 37.51, 47.85, 46.09, 46.66, 44.97, 48.19,
        ],
        ("LLaMA2-13B", "three-experts"): [
            31.18, 37.42, 31.21, 34.52, 40.20, 39.89, 40.22, 40.13, 40.35,
        ],
    }  # fmt: skip
    (published,) = read_yaml(EXAMPLE / "published.yaml").documents
    for (family, table), wanted in averages.items():
        rows = published[family][table]
        found = [math.fsum(values) / len(values) for values in rows.values()]
        assert found == pytest.approx(wanted, abs=0.02), (family, table)


@pytest.mark.parametrize("name", ["llama-2-7b", "mistral-7b", "llama-2-13b"])
def test_the_papers_models_are_named(name: str) -> None:
    from experts import Experts

    found = Experts.load(EXAMPLE / "models" / f"{name}.yaml")
    (published,) = read_yaml(EXAMPLE / "published.yaml").documents
    assert found.name in published
    assert list(found.models) == ["Chat", "Math", "Code"]
    recipe = found.recipe("dare_linear", "full")
    assert (recipe.base_model, recipe.value("density"), recipe.value("lambda")) == (
        found.base, 0.5, 0.5,
    )  # fmt: skip
    assert recipe.sensitivity is not None
    assert recipe.sensitivity.samples == 10
