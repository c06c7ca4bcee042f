"""Pictures of searches, in the report's style."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from sensmerge.report.figures import STYLE, labels, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sensmerge.search.history import History
    from sensmerge.search.trials import Tuned

# Told apart without colour vision (Okabe and Ito), and by their dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DARK = "#33373d"
_STYLE: Any = STYLE | {"text.color": _DARK, "axes.labelcolor": _DARK}

# Groups whose names fit below the axis.
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
    best = history.steps.index(history.best)
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
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)


def _draw_weights(rows: list[Axes], history: History) -> None:
    before, after = history.weights(history.steps[0]), history.weights(history.best)
    places = range(len(history.groups))
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    room = 0.08 * (high - low) or 0.1
    for expert, axes in enumerate(rows):
        colour = COLOURS[expert % len(COLOURS)]
        axes.plot(places, before[expert], color="#8a8f96", lw=1, ls=":", label="before")
        axes.plot(places, after[expert], color=colour, lw=1.2, marker="o", ms=3, label="after")
        axes.set_ylim(low - room, high + room)
        axes.set_title(f"Weights of {labels(history.tasks)[expert]}", fontsize=9, loc="left")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
        axes.set_xticks([])
    if len(history.groups) <= _NAMED:
        names = [group.removeprefix("model.") for group in history.groups]
        rows[-1].set_xticks(places, names, rotation=60, ha="right", fontsize=7)
    else:
        rows[-1].set_xlabel(f"{len(history.groups)} groups of tensors, in the model's order")
