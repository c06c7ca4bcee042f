"""The table of scores, in the form of the paper's: for terminals, for pages, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensmerge import markup
from sensmerge.evaluation.benchmarks import PAPER, area, title
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.evaluation.record import Evaluation

_AVERAGE = "Average"
_NONE = "-"


@dataclass(frozen=True)
class Cells:
    """A table as text.

    Attributes:
        areas: The area of every column; empty where it has none.
        head: The name of every column.
        rows: A row a model, its name first.
    """

    areas: list[str]
    head: list[str]
    rows: list[list[str]]


def cells(found: Evaluation) -> Cells:
    """The scores in percent, a row a model, and the mean of all columns.

    The paper's columns come first, in its order; an average is given where there are several
    columns, and a model has a score in each.
    """
    tasks = ordered(found.tasks)
    areas, head = [area(task) or "" for task in tasks], [title(task) for task in tasks]
    averaged = len(tasks) > 1
    rows = []
    for name, each in found.models.items():
        values = [each.scores[task].value if task in each.scores else None for task in tasks]
        if averaged:
            values.append(each.average(tasks))
        rows.append([plain(name), *map(percent, values)])
    if averaged:
        areas, head = [*areas, ""], [*head, _AVERAGE]
    return Cells(areas, head, rows)


def ordered(tasks: Sequence[str]) -> list[str]:
    """Tasks as columns: the paper's in its order, and the others behind them in theirs."""
    paper = [each.task for each in PAPER]
    return sorted(tasks, key=lambda task: paper.index(task) if task in paper else len(paper))


def percent(share: float | None) -> str:
    """A share in percent, with two digits; a dash where there is none."""
    return _NONE if share is None else f"{100 * share:.2f}"


def text_of(found: Evaluation) -> str:
    """The table for a terminal: areas over their columns, names on the left, numbers right."""
    made = cells(found)
    first = max([len("Model"), *(len(row[0]) for row in made.rows)])
    widths = [
        max([len(plain(name)), *(len(row[place]) for row in made.rows)])
        for place, name in enumerate(made.head, start=1)
    ]
    _widen(widths, made.areas)
    lines = []
    if any(made.areas):
        lines.append((" " * first + _over(made.areas, widths)).rstrip())
    lines.append(_line(["Model", *map(plain, made.head)], first, widths))
    lines += [_line(row, first, widths) for row in made.rows]
    return "\n".join(lines)


def markdown_of(found: Evaluation) -> str:
    """The table as Markdown."""
    made = cells(found)
    head = ["", *made.head]
    rows = [head, ["---", *["---:"] * len(made.head)], *made.rows]
    return "\n".join(
        f"| {' | '.join(plain(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )


def html_of(found: Evaluation) -> str:
    """The table as a notebook shows it, with the areas' means and what belongs to each score."""
    made = cells(found)
    by_area = found.areas()
    means = [
        [name, *(percent(each.average(tasks)) for tasks in by_area.values())]
        for name, each in found.models.items()
    ]
    details = [
        [
            name,
            task,
            score.metric,
            score.samples,
            percent(score.value),
            _NONE if score.error is None else percent(score.error),
            f"{score.seconds:.1f} s",
        ]
        for name, each in found.models.items()
        for task, score in each.scores.items()
    ]
    head = ["model", "task", "number", "samples", "score", "standard error", "time"]
    notes = [*found.notes, *found.differences()]
    return markup.shown(
        f"Evaluation: {len(found.models)} models, {len(found.tasks)} tasks, percent",
        markup.table(["model", *made.head], made.rows),
        markup.folded("By area", markup.table(["model", *by_area], means)) if by_area else "",
        markup.folded("By score", markup.table(head, details, words=3)),
        markup.notes(notes),
    )


def _widen(widths: list[int], areas: Sequence[str]) -> None:
    """Make columns wide enough for the area's name over them."""
    for name, places in _groups(areas):
        missing = len(name) - sum(widths[place] + 2 for place in places) + 2
        if name and missing > 0:
            widths[places[0]] += missing


def _over(areas: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(
        f"  {name:^{sum(widths[place] + 2 for place in places) - 2}}"
        for name, places in _groups(areas)
    )


def _groups(areas: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Neighbouring columns of one area."""
    found: list[tuple[str, list[int]]] = []
    for place, name in enumerate(areas):
        if found and name and found[-1][0] == name:
            found[-1][1].append(place)
        else:
            found.append((name, [place]))
    return found


def _line(cells: Sequence[str], first: int, widths: Sequence[int]) -> str:
    rest = "".join(f"  {cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))
    return f"{cells[0]:<{first}}{rest}".rstrip()
