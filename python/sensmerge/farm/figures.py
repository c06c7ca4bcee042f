"""The figures of a board's page."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sensmerge.report.figures import BAR, STYLE, TOP_BAR, scale_svg, short, svg
from sensmerge.scaling.sigma import Coefficients
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sensmerge.farm.board import Board
    from sensmerge.farm.database import Candidate

_COLUMNS = 3
# Places, and pairs of tasks, that are drawn.
_MOST = 12
# Words on an axis.
_WORDS = 12


def parameters_svg(board: Board) -> str | None:
    """Scores against the values of every place that varies; None where nothing does."""
    varied = [
        name
        for name in board.parameters
        if len({str(each.chosen[name]) for each in board.done if name in each.chosen}) > 1
    ][:_MOST]
    if not varied:
        return None

    def draw(axes: Axes, name: str) -> None:
        there = [each for each in board.done if name in each.chosen]
        places = _along(axes, [each.chosen[name] for each in there])
        _scatter(axes, places, [each.score or 0.0 for each in there], _best(board, there))
        axes.set_xlabel(short(plain(name)))
        axes.set_ylabel("score")

    return _grid(varied, draw, "Score by parameter")


def fronts_svg(board: Board) -> str | None:
    """Scores of tasks against each other, by pairs; None for fewer than two tasks."""
    pairs = list(itertools.combinations(board.tasks, 2))[:_MOST]
    whole = [each for each in board.done if set(each.scores) == set(board.tasks)]
    if not pairs or not whole:
        return None
    front = [place for place, each in enumerate(whole) if each.number in board.front]

    def draw(axes: Axes, pair: tuple[str, str]) -> None:
        one, two = ([each.scores[task] for each in whole] for task in pair)
        _scatter(axes, one, two, front)
        axes.set_xlabel(short(plain(pair[0])))
        axes.set_ylabel(short(plain(pair[1])))

    return _grid(pairs, draw, "Scores of tasks against each other")


def coefficients_svg(candidate: Candidate) -> str | None:
    """The coefficients of a candidate; None for a plain merge."""
    found = candidate.coefficients
    if found is None:
        return None
    arrays = {key: np.array(found[key]) for key in ("alpha", "tau", "sigma", "outside")}
    same = {
        key: found[key]
        for key in ("experts", "layers", "mode", "temperature", "cross_task", "outside_blocks")
    }
    given: dict[str, Any] = {**arrays, **same}
    return scale_svg(Coefficients(**given, base=found["base"] == "expert"))


def _grid(each: Any, draw: Any, label: str) -> str:
    """One small figure for each, in rows."""
    rows = math.ceil(len(each) / _COLUMNS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * _COLUMNS, 2.5 * rows), layout="constrained")
        places = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axes, one in zip(places, each, strict=False):
            draw(axes, one)
        for axes in places[len(each) :]:
            axes.set_visible(False)
        return svg(figure, label)


def _best(board: Board, there: list[Candidate]) -> list[int]:
    return [place for place, each in enumerate(there) if each is board.best]


def _scatter(axes: Axes, along: list[float], up: list[float], marked: list[int]) -> None:
    axes.scatter(along, up, s=16, color=BAR, linewidths=0)
    chosen = [[values[place] for place in marked] for values in (along, up)]
    axes.scatter(chosen[0], chosen[1], s=30, color=TOP_BAR, linewidths=0)


def _along(axes: Axes, values: list[Any]) -> list[float]:
    """Places of values on the horizontal axis: numbers where they are, words side by side."""
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        return [number for number in numbers if number is not None]
    words = list(dict.fromkeys(str(value) for value in values))
    step = max(1, math.ceil(len(words) / _WORDS))
    shown = range(0, len(words), step)
    axes.set_xticks(
        list(shown), [short(plain(words[place]), 16) for place in shown], rotation=30, ha="right"
    )
    return [float(words.index(str(value))) for value in values]


def _number(value: Any) -> float | None:
    """A value as a number, also where YAML 1.1 takes it for text (1e-3); None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
