"""The report's figures, drawn without any global state: the same input gives the same bytes."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from sensmerge.terminal import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sensmerge.scaling.sigma import Coefficients, Matrix

TOP = 5

_PNG_DPI = 160

# Readable on light and on dark pages, and told apart without colour vision.
BAR = "#8da3b8"
TOP_BAR = "#d1495b"
_INK = "#7a7f87"
_DIVERGING = "RdBu_r"

STYLE: Any = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "sensmerge",
    "text.color": _INK,
    # Names of models may hold dollar signs, which would begin a formula.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def sensitivity_svg(coefficients: Coefficients) -> str:
    """α by layer, one row an expert, the five most sensitive layers marked (Figure 3)."""
    with mpl.rc_context(STYLE):
        rows = len(coefficients.experts)
        figure = Figure(figsize=(_width(coefficients), 1.25 * rows + 0.6), layout="constrained")
        _draw_sensitivity(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0], coefficients)
        return svg(figure, "Sensitivity by layer")


def scale_svg(coefficients: Coefficients) -> str:
    """K·σ as a heat map, experts by layers, white where experts have equal shares."""
    with mpl.rc_context(STYLE):
        rows = len(coefficients.experts)
        figure = Figure(figsize=(_width(coefficients), 0.34 * rows + 1.1), layout="constrained")
        _draw_scale(figure, figure.subplots(), coefficients)
        return svg(figure, "K times sigma by expert and layer")


def alignment_svg(alignment: Matrix, experts: list[str]) -> str:
    """g_ij as a matrix with its values."""
    with mpl.rc_context(STYLE):
        count = len(experts)
        side = 0.62 * count + 2.0
        figure = Figure(figsize=(side + 0.6, side - 0.6), layout="constrained")
        axes = figure.subplots()
        axes.imshow(alignment, cmap="Blues", vmin=0, vmax=max(float(alignment.max()), 1e-12) * 1.3)
        for i in range(count):
            for j in range(count):
                axes.text(j, i, f"{alignment[i, j]:.3g}", ha="center", va="center", color="#1b1f24")
        names = labels(experts)
        axes.set_xticks(range(count), names, rotation=30, ha="right")
        axes.set_yticks(range(count), names)
        axes.set_xlabel("on the samples of expert j")
        axes.set_ylabel("model i")
        axes.spines[:].set_visible(False)
        return svg(figure, "Logit distances between experts")


def overview_png(coefficients: Coefficients) -> bytes:
    """Sensitivity by layer with K·σ below it, as a PNG on white."""
    with mpl.rc_context(STYLE | {"text.color": "#33373d", "axes.labelcolor": "#33373d"}):
        rows = len(coefficients.experts)
        heights = [1.15] * rows + [0.34 * rows + 1.0]
        size = (_width(coefficients), sum(heights) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows + 1, 1, height_ratios=heights)
        _draw_sensitivity(axes[:rows], coefficients)
        _draw_scale(figure, axes[rows], coefficients)
        return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as a PNG on white; the same figure gives the same bytes."""
    figure.set_dpi(_PNG_DPI)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": "sensmerge"})
    return file.getvalue()


def top_layers(alpha: Matrix) -> list[int]:
    """The five most sensitive layers of one expert, the first first."""
    order = np.argsort(-alpha, kind="stable")[:TOP]
    return [int(layer) for layer in order]


def labels(experts: list[str], longest: int = 28) -> list[str]:
    """Names short enough for a figure: the last part of each path, where that tells them apart."""
    experts = [plain(expert) for expert in experts]
    last = [expert.rstrip("/").rpartition("/")[2] for expert in experts]
    names = last if len(set(last)) == len(set(experts)) else experts
    return [short(name, longest) for name in names]


def short(name: str, longest: int = 28) -> str:
    """The end of a long name: names of models differ there."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _width(coefficients: Coefficients) -> float:
    return float(np.clip(0.19 * len(coefficients.layers) + 3.2, 6.4, 12.0))


def _draw_sensitivity(rows: Any, coefficients: Coefficients) -> None:
    layers = len(coefficients.layers)
    names = labels(coefficients.experts, 60)
    for axes, name, alpha in zip(rows, names, coefficients.alpha, strict=True):
        top = top_layers(alpha)
        colors = [TOP_BAR if layer in top else BAR for layer in range(layers)]
        axes.bar(range(layers), alpha, color=colors, width=0.78)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_ylabel("α")
        axes.set_ylim(0, float(alpha.max()) * 1.12)
        axes.margins(x=0.01)
        _layer_ticks(axes, coefficients)
    rows[-1].set_xlabel("layer  (the five most sensitive are marked)")


def _draw_scale(figure: Figure, axes: Axes, coefficients: Coefficients) -> None:
    scale = coefficients.scale
    even = coefficients.even
    low, high = min(float(scale.min()), 0.98 * even), max(float(scale.max()), 1.02 * even)
    norm = TwoSlopeNorm(vcenter=even, vmin=low, vmax=high)
    image = axes.imshow(scale, cmap=_DIVERGING, norm=norm, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(coefficients.experts)), labels(coefficients.experts))
    axes.tick_params(axis="y", length=0)
    _layer_ticks(axes, coefficients)
    axes.set_xlabel("layer")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label(coefficients.symbol)
    bar.outline.set_visible(False)


def _layer_ticks(axes: Axes, coefficients: Coefficients) -> None:
    """Label blocks by number; by name where there are layers outside the blocks too."""
    labels = [_tick(layer) for layer in coefficients.layers]
    step = max(1, -(-len(labels) // 40))
    places = list(range(0, len(labels), step))
    named = any(not label.isdecimal() for label in labels)
    rotation = 90 if named else 0
    axes.set_xticks(places, [labels[place] for place in places], rotation=rotation, fontsize=7.5)


def _tick(layer: str) -> str:
    last = plain(layer).rpartition(".")[2]
    return last if last.isdecimal() else short(last, 14)


def svg(figure: Figure, label: str) -> str:
    """A figure as an SVG for a page; the same figure gives the same text."""
    file = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    # Inside a page, an SVG needs neither prologue nor the fixed size; a label tells what it is.
    text = re.sub(r"^.*?(?=<svg )", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
