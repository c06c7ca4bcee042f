"""Pictures of searches, in the report's style."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from sensmerge.report.figures import STYLE, labels, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sensmerge.search.history import History
    from sensmerge.search.trials import Tuned

# Colours that can be told apart without colour vision (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DARK = "#33373d"
_STYLE: Any = STYLE | {"text.color": _DARK, "axes.labelcolor": _DARK}

# Up to this many groups, their names fit below the axis.
_NAMED = 40


def learned_png(history: History) -> bytes:
    """The loss by step, and every expert's weights before and after."""
    experts = len(history.tasks)
    with mpl.rc_context(_STYLE):
        width = min(16.0, max(7.0, 0.28 * len(history.groups) + 2))
        figure = Figure(figsize=(width, 2.8 + 1.3 * experts), layout="constrained")
        rows = figure.subplots(1 + experts, 1, height_ratios=[2.2] + [1] * experts)
        _draw_losses(rows[0], history)
        _draw_weights(list(rows[1:]), history)
        return png(figure)


def _draw_losses(axes: Axes, history: History) -> None:
    steps = range(len(history.steps))
    axes.plot(
        steps, [step.loss for step in history.steps], color=COLOURS[0], marker="o", ms=3,
        label="learned from",
    )  # fmt: skip
    best = history.steps.index(history.taken)
    if history.steps[0].validation:
        axes.plot(
            steps, [step.validation_loss for step in history.steps], color=COLOURS[1], marker="s",
            ms=3, ls="--", label="validation",
        )  # fmt: skip
    axes.axvline(best, color="#b0b4ba", lw=0.8, zorder=0)
    kept = "the start is kept" if best == 0 else f"step {best} is kept"
    axes.set_title(f"Mean loss by step; {kept}", fontsize=9, loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("mean loss, nats a token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)


def _draw_weights(rows: list[Axes], history: History) -> None:
    before, after = history.weights(history.steps[0]), history.weights(history.taken)
    places = range(len(history.groups))
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    room = 0.08 * (high - low) or 0.1
    for expert, axes in enumerate(rows):
        colour = COLOURS[expert % len(COLOURS)]
        axes.plot(places, before[expert], color="#8a8f96", lw=1, ls=":", label="before")
        axes.plot(places, after[expert], color=colour, lw=1.2, marker="o", ms=3, label="after")
        axes.set_ylim(low - room, high + room)
        axes.set_title(f"Weights of {labels(history.tasks)[expert]}", fontsize=9, loc="left")
        # Beside the title, where no line runs.
        axes.legend(
            frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2,
            borderpad=0, borderaxespad=0.2,
        )  # fmt: skip
        axes.set_xticks([])
    if len(history.groups) <= _NAMED:
        names = [group.removeprefix("model.") for group in history.groups]
        rows[-1].set_xticks(places, names, rotation=60, ha="right", fontsize=7)
    else:
        rows[-1].set_xlabel(f"{len(history.groups)} groups of tensors, in the model's order")


def tuned_png(found: Tuned) -> bytes:
    """The trials' losses over temperature and over λ, by task, with the best plain merge."""
    columns = [
        ("temperature", "T", [each for each in found.trials if each.settings.temperature]),
        ("scale", "λ", [each for each in found.trials if each.settings.scale]),
    ]
    columns = [column for column in columns if _spread(column)] or columns[1:]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.4 + 4.6 * len(columns), 4.4), layout="constrained")
        panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, (key, symbol, results) in zip(panels, columns, strict=True):
            _draw_trials(axes, found, key, symbol, results)
        panels[0].set_ylabel("mean loss on the samples searched with, nats a token")
        title = f"a point a trial; lines: the least of {2 * _REACH + 1} neighbours"
        panels[0].set_title(title, fontsize=9, loc="left")
        panels[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return png(figure)


def _spread(column: tuple[str, str, list[Any]]) -> bool:
    key, _, results = column
    return len({getattr(each.settings, key) for each in results}) > 1


def _draw_trials(axes: Axes, found: Tuned, key: str, symbol: str, results: list[Any]) -> None:
    ordered = sorted(results, key=lambda each: getattr(each.settings, key))
    places = [getattr(each.settings, key) for each in ordered]
    names = labels(found.tasks)
    for task, name in enumerate(names):
        colour = COLOURS[task % len(COLOURS)]
        losses = [each.losses[task] for each in ordered]
        axes.plot(places, losses, ".", color=colour, ms=4, alpha=0.6, label=name)
        axes.plot(places, _running_least(losses), color=colour, lw=1, alpha=0.8)
    axes.plot(
        places, [each.objective for each in ordered], "D", color="#33373d", ms=3,
        label="objective",
    )  # fmt: skip
    axes.axhline(found.plain.objective, color="#8a8f96", lw=1, ls="--", label="best plain merge")
    best = getattr(found.best.settings, key)
    if best:
        axes.plot(best, found.best.objective, "*", color=_STAR, ms=12, label="best trial", zorder=5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(symbol)


_STAR = "#d1495b"


# Neighbours on each side over which a line takes the least loss.
_REACH = 3


def _running_least(losses: list[float]) -> list[float]:
    """The least loss among every trial and its neighbours.

    Trials differ in several settings. The least loss shows the dependence on one of them for good
    values of the others.
    """
    return [
        min(losses[max(0, place - _REACH) : place + _REACH + 1]) for place in range(len(losses))
    ]
