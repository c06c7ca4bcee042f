"""The paper's tables: which models each has, and how it is written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sensmerge
from experts import SAMPLES, Experts, label
from sensmerge import Recipe
from sensmerge.demo.recipes import METHODS
from sensmerge.evaluation.benchmarks import PAPER
from sensmerge.evaluation.record import Evaluation
from sensmerge.evaluation.table import markdown_of
from sensmerge.files import write_atomically
from sensmerge.recipe.yaml import read_yaml

HERE = Path(__file__).resolve().parent

# The ablation's methods, and the two pairs of experts that the paper merges.
ABLATED = ("task_arithmetic", "ties")
PAIRS = (("Chat", "Math"), ("Math", "Code"))
MORE_SAMPLES = 20

Rows = dict[str, str | Recipe]


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        command: Its command, and its key in ``published.yaml``.
        title: Its title.
        rows: The models of its rows, by the samples that their coefficients are measured on.
    """

    command: str
    title: str
    rows: Callable[[Experts], dict[int, Rows]]


def three_experts(experts: Experts) -> dict[int, Rows]:
    """Each model alone, and all experts merged by each method, plain and with Sens-Merging."""
    rows: Rows = dict(experts.single())
    for method in METHODS:
        rows |= {label(method, mode): experts.recipe(method, mode) for mode in (None, "full")}
    # At λ = 1 a sum of several task vectors is over-scaled: what a smaller step alone does.
    count = len(experts.models)
    fair = experts.recipe("task_arithmetic", scale=1 / count)
    return {SAMPLES: rows | {f"{label('task_arithmetic')}, λ = 1/{count}": fair}}


def two_experts(experts: Experts) -> dict[int, Rows]:
    """Each pair of experts merged by each method, plain and with Sens-Merging."""
    rows: Rows = dict(experts.single())
    for pair in PAIRS:
        for method in METHODS:
            for mode in (None, "full"):
                name = f"{' & '.join(pair)}: {label(method, mode)}"
                rows[name] = experts.recipe(method, mode, names=pair)
    return {SAMPLES: rows}


def ablation(experts: Experts) -> dict[int, Rows]:
    """Both factors of the coefficients, and each alone."""
    modes = (None, "task", "cross", "full")
    return {
        SAMPLES: {
            label(method, mode): experts.recipe(method, mode)
            for method in ABLATED
            for mode in modes
        }
    }


def samples(experts: Experts) -> dict[int, Rows]:
    """Coefficients that are measured on 10 and on 20 samples of each expert."""
    return {
        count: {
            f"{label('task_arithmetic', 'full')}, {count} samples": experts.recipe(
                "task_arithmetic", "full", samples=count
            )
        }
        for count in (SAMPLES, MORE_SAMPLES)
    }


TABLES = {
    table.command: table
    for table in (
        Table("three-experts", "Three experts (Tables 1 to 3)", three_experts),
        Table("two-experts", "Two experts (Table 5)", two_experts),
        Table("ablation", "Ablation (Table 4)", ablation),
        Table("samples", "10 against 20 samples (Table 8)", samples),
    )
}


def evaluated(table: Table, experts: Experts, folder: Path, **how: Any) -> Evaluation:
    """Evaluate the rows of a table that the results of earlier commands do not have.

    Args:
        table: The table.
        experts: The models.
        folder: Where calibrations, recipes and results are kept.
        how: Options of :func:`sensmerge.evaluate`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for count, rows in table.rows(experts).items():
        recipes = {name: row for name, row in rows.items() if isinstance(row, Recipe)}
        for name, recipe in recipes.items():
            written = "".join(each if each.isalnum() else "-" for each in name.lower())
            write_atomically(folder / "recipes" / f"{written}.yaml", recipe.to_yaml())
        needs = any(recipe.sensitivity is not None for recipe in recipes.values())
        measured = experts.measured(folder, count, device=how["device"]) if needs else None
        found = sensmerge.evaluate(
            rows,
            experts.tasks,
            results=folder / "results.json",
            tasks_dir=experts.tasks_dir,
            calibration=measured,
            **how,
        )
        names += rows
    return Evaluation(found.tasks, {name: found.models[name] for name in names}, found.notes)


def page(table: Table, experts: Experts, found: Evaluation) -> str:
    """The table as Markdown, with the paper's below it where it has one of these models."""
    parts = [f"# {table.title}", "Percent; zero-shot, pass@1.", markdown_of(found)]
    published = published_rows(experts.name, table.command)
    if published:
        head = [each.title for each in PAPER]
        lines = [f"| {' | '.join(['', *head, 'Average'])} |", f"|---{'|---:' * 8}|"]
        for name, values in published.items():
            shown = [*values, math.fsum(values) / len(values)]
            lines.append(f"| {' | '.join([name, *(f'{value:.2f}' for value in shown)])} |")
        parts += ["## In the paper", "\n".join(lines)]
    notes = [*found.notes, *found.differences()]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in dict.fromkeys(notes))]
    return "\n\n".join(parts) + "\n"


def published_rows(family: str, command: str) -> dict[str, list[float]]:
    """The paper's numbers for a table; empty where it has none."""
    (document,) = read_yaml(HERE / "published.yaml").documents
    rows: dict[str, list[float]] = document.get(family, {}).get(command, {})
    return rows
