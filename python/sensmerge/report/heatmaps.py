"""Heat maps of two models compared: kinds of tensors by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sensmerge.models.layers import block_of, blocks
from sensmerge.report.figures import STYLE, short, svg
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.comparison.differences import Comparison, Sums

# What is outside the blocks has a column of its own.
_OUTSIDE = "–"


def heat_maps(comparison: Comparison) -> list[tuple[str, str, str]]:
    """A heat map for each measure: its title, what it shows, and the SVG."""
    vectors = "task vectors" if comparison.base is not None else "weights"
    shown: list[tuple[str, str, Callable[[Sums], float], dict[str, Any]]] = [
        (
            "Relative L2",
            f"norm of the difference, by that of the first model's {vectors}",
            lambda sums: sums.relative,
            {"cmap": "Blues", "vmin": 0},
        ),
        (
            "Cosine",
            f"of the angle between the two models' {vectors}",
            lambda sums: sums.cosine,
            {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
            if comparison.base is not None
            else {"cmap": "Blues_r", "vmax": 1},
        ),
        (
            "Changed",
            "share of the entries that differ",
            lambda sums: sums.changed_share,
            {"cmap": "Blues", "vmin": 0, "vmax": 1},
        ),
        (
            "Same sign",
            f"share of one sign among the entries of the {vectors} that are zero in neither",
            lambda sums: sums.agreement,
            {"cmap": "Blues_r", "vmax": 1},
        ),
    ]
    return [
        (title, said, _drawn(comparison, title, measure, colors))
        for title, said, measure, colors in shown
    ]


def _drawn(
    comparison: Comparison, title: str, measure: Callable[[Sums], float], colors: dict[str, Any]
) -> str:
    columns = blocks(comparison.tensors)
    outside = any(block_of(name) is None for name in comparison.tensors)
    kinds = list(dict.fromkeys(_kind(name) for name in comparison.tensors))
    values = np.full((len(kinds), len(columns) + outside), np.nan)
    for name, sums in comparison.tensors.items():
        block = block_of(name)
        column = len(columns) if block is None else columns.index(block)
        values[kinds.index(_kind(name)), column] = measure(sums)
    with mpl.rc_context(STYLE):
        size = (float(np.clip(0.3 * values.shape[1] + 3.6, 6.4, 14.0)), 0.24 * len(kinds) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        if np.isnan(values).all():
            colors = colors | {"vmin": 0, "vmax": 1}
        image = axes.imshow(values, aspect="auto", interpolation="none", **colors)
        names = [block.rpartition(".")[2] for block in columns] + [_OUTSIDE] * outside
        step = max(1, math.ceil(len(names) / 40))
        places = range(0, len(names), step)
        axes.set_xticks(places, [names[place] for place in places], fontsize=7.5)
        axes.set_yticks(range(len(kinds)), [short(plain(kind), 44) for kind in kinds], fontsize=7.5)
        axes.tick_params(length=0)
        axes.set_xlabel(f"block  ({_OUTSIDE}: outside the blocks)" if outside else "block")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
        bar.outline.set_visible(False)
        return svg(figure, title)


def _kind(name: str) -> str:
    """A tensor's name without its block."""
    block = block_of(name)
    return name if block is None else name.removeprefix(f"{block}.")
